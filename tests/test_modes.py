"""A model lent in another order of its layers: equal bits, and given back as it was."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisyteacher as nt
from noisyteacher.models import Classifier, as_classifier
from noisyteacher.modes import pooling_first
from noisyteacher.train import loop

IMAGES = torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def kinds(stack: nn.Module) -> str:
    return " ".join(type(one).__name__ for one in stack.children())


def layers(model: Classifier) -> list[nn.Module]:
    return list(model.network.children())


def stack(relu: nn.Module, pool: nn.Module) -> Classifier:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), relu, pool, nn.Flatten(), nn.LazyLinear(10))
    with torch.no_grad():
        network(torch.zeros(1, 1, 28, 28))
    return as_classifier(network, input_shape=(1, 28, 28))


def test_a_max_pooling_is_lent_before_its_relu_and_given_back() -> None:
    model = stack(nn.ReLU(), nn.MaxPool2d(2))
    names = list(model.state_dict())
    answers = model(IMAGES)

    def failing() -> None:
        with pooling_first(model, IMAGES):
            assert kinds(model.network) == "Conv2d MaxPool2d ReLU Flatten Linear"
            assert list(model.state_dict()) == names
            assert torch.equal(model(IMAGES), answers)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert kinds(model.network) == "Conv2d ReLU MaxPool2d Flatten Linear"


@pytest.mark.parametrize("pool", [nn.AvgPool2d(2), nn.MaxPool2d(2, padding=1, ceil_mode=True)])
@pytest.mark.parametrize("relu", [nn.ReLU(), nn.ReLU(inplace=True), nn.GELU(), nn.ReLU6()])
def test_only_what_gives_equal_bits_is_exchanged(relu: nn.Module, pool: nn.Module) -> None:
    model = stack(relu, pool)
    answers = model(IMAGES)
    with pooling_first(model, IMAGES):
        first = type(layers(model)[1]).__name__
        assert (first == "MaxPool2d") == (type(relu) is nn.ReLU and type(pool) is nn.MaxPool2d)
        assert torch.equal(model(IMAGES), answers)


def test_layers_with_hooks_keep_their_places() -> None:
    model = stack(nn.ReLU(), nn.MaxPool2d(2))
    seen: list[Tensor] = []
    layers(model)[1].register_forward_hook(lambda layer, given, made: seen.append(made))
    with pooling_first(model, IMAGES):
        model(IMAGES)
    assert seen[-1].shape == (4, 3, 26, 26)


class Between(nn.Module):
    """Uses what comes out of the ReLU beside what is pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(3, 1, 1))
        self.last = nn.Linear(3 * 26 * 26, 10)

    def forward(self, x: Tensor) -> Tensor:
        raw = self.block[:2](x)
        out: Tensor = self.last((raw + self.block[2](raw)).flatten(1))
        return out


class Failing(Between):
    """Cannot answer at all."""

    def forward(self, x: Tensor) -> Tensor:
        raise ZeroDivisionError


@pytest.mark.parametrize("module", [Between, Failing])
def test_a_model_that_looks_in_between_is_left_alone(module: type[Between]) -> None:
    network = module()
    model = as_classifier(network, classes=10)
    with pooling_first(model, IMAGES):
        assert kinds(network.block) == "Conv2d ReLU MaxPool2d"
    assert kinds(network.block) == "Conv2d ReLU MaxPool2d"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["lenet", "lenet-svhn"])
def test_training_with_the_pooling_first_ends_in_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, name: str, precision: str
) -> None:
    data = nt.load_data("mnist-5k", limit=96)
    orders: list[str] = []

    def trained() -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        model = nt.build_model(name, data, seed=0)
        objective = nt.supervised()

        def watching(logits: Tensor, batch: Any) -> Any:
            orders.append(kinds(model.network))
            return objective(logits, batch)

        watching.check, watching.record = objective.check, objective.record  # type: ignore[attr-defined]
        history = nt.fit(model, data.train, watching, val=data.val, epochs=2, precision=precision, seed=0)
        assert "ReLU MaxPool2d" in kinds(model.network)
        return [{**line, "seconds": 0.0} for line in history.epochs], model.state_dict()

    lines, weights = trained()
    assert all("MaxPool2d ReLU" in one and "ReLU MaxPool2d" not in one for one in orders)
    monkeypatch.setattr(loop, "pooling_first", lambda model, images: contextlib.nullcontext())
    orders.clear()
    plain_lines, plain = trained()
    assert all("ReLU MaxPool2d" in one for one in orders)
    assert lines == plain_lines
    assert all(torch.equal(weights[key], plain[key]) for key in plain)
