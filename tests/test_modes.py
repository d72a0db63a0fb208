"""A model lent in another order of its layers: equal bits, and given back as it was."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisyteacher as nt
from noisyteacher.errors import UsageError
from noisyteacher.models import Classifier, as_classifier
from noisyteacher.modes import layout_of, pooling_first, pools_behind_relus
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
    pairs = pools_behind_relus(model.network)

    def failing() -> None:
        with pooling_first(pairs):
            assert kinds(model.network) == "Conv2d MaxPool2d ReLU Flatten Linear"
            assert list(model.state_dict()) == names
            assert torch.equal(model(IMAGES), answers)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert kinds(model.network) == "Conv2d ReLU MaxPool2d Flatten Linear"


def test_an_interruption_between_two_exchanges_leaves_no_half() -> None:
    class Dict(OrderedDict[str, nn.Module]):
        left = 3

        def __setitem__(self, key: str, value: nn.Module) -> None:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
            super().__setitem__(key, value)

    first, second = (nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)) for _ in range(2))
    whole = nn.Sequential(first, second)
    second._modules = layers = Dict()
    OrderedDict.update(layers, {"0": nn.ReLU(), "1": nn.MaxPool2d(2)})
    layers.left = 2
    with pytest.raises(KeyboardInterrupt), pooling_first(pools_behind_relus(whole)):
        pytest.fail("it was interrupted before")
    assert (kinds(first), kinds(second)) == ("ReLU MaxPool2d", "ReLU MaxPool2d")


@pytest.mark.parametrize("pool", [nn.AvgPool2d(2), nn.MaxPool2d(2, padding=1, ceil_mode=True)])
@pytest.mark.parametrize("relu", [nn.ReLU(), nn.ReLU(inplace=True), nn.GELU(), nn.ReLU6()])
def test_only_what_gives_equal_bits_is_exchanged(relu: nn.Module, pool: nn.Module) -> None:
    model = stack(relu, pool)
    answers = model(IMAGES)
    with pooling_first(pools_behind_relus(model.network)):
        first = type(layers(model)[1]).__name__
        assert (first == "MaxPool2d") == (type(relu) is nn.ReLU and type(pool) is nn.MaxPool2d)
        assert torch.equal(model(IMAGES), answers)


def test_layers_that_are_watched_keep_their_places() -> None:
    model = stack(nn.ReLU(), nn.MaxPool2d(2))
    pairs = pools_behind_relus(model.network)
    relu = layers(model)[1]
    seen: list[Tensor] = []

    def look(layer: nn.Module, given: Any, made: Tensor) -> None:
        if layer is relu:
            seen.append(made)

    for watch in (relu.register_forward_hook, nn.modules.module.register_module_forward_hook):
        hook = watch(look)
        with pooling_first(pairs):
            model(IMAGES)
        hook.remove()
    assert [one.shape[2] for one in seen] == [26, 26]
    relu.forward = lambda x: seen.append(x) or x
    with pooling_first(pairs):
        model(IMAGES)
    assert seen[-1].shape[2] == 26


class Between(nn.Module):
    """Uses in training, where no trial in eval mode would see it, what comes out of the ReLU beside what is pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2))
        self.last, self.aux = nn.Linear(3 * 13 * 13, 10), nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        raw = self.block[:2](x)
        out: Tensor = self.last(self.block[2](raw).flatten(1))
        return out + self.aux(raw.mean((2, 3))) if self.training else out


def test_a_module_with_a_forward_of_its_own_keeps_its_order() -> None:
    assert pools_behind_relus(Between()) == []
    assert pools_behind_relus(nn.Sequential(Between(), nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)))) != []

    class Own(nn.Sequential):
        pass

    assert pools_behind_relus(nn.Sequential(Own(nn.ReLU(), nn.MaxPool2d(2)))) == []


@pytest.mark.parametrize(("name", "precision"), [("lenet", "fp32"), ("lenet", "bf16"), ("lenet-svhn", "fp32")])
def test_training_with_the_pooling_first_ends_in_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, name: str, precision: str
) -> None:
    data = nt.load_data("mnist-5k", limit=64)
    least: list[float] = []
    pool = nn.MaxPool2d.forward

    def watched(self: nn.MaxPool2d, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            least.append(float(x.detach().min()))
        out: Tensor = pool(self, x)
        return out

    monkeypatch.setattr(nn.MaxPool2d, "forward", watched)

    def trained() -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        model = nt.build_model(name, data, seed=0)
        history = nt.fit(model, data.train, nt.supervised(), val=data.val, epochs=2, precision=precision, seed=0)
        assert "ReLU MaxPool2d" in kinds(model.network)
        return [{**line, "seconds": 0.0} for line in history.epochs], model.state_dict()

    lines, weights = trained()
    tried = 2  # of the copy on which the memory order is tried
    assert all(one < 0 for one in least[tried:])
    monkeypatch.setattr(loop, "pooling_first", lambda pairs: contextlib.nullcontext())
    least.clear()
    plain_lines, plain = trained()
    assert all(one == 0 for one in least)
    assert lines == plain_lines
    assert all(torch.equal(weights[key], plain[key]) for key in plain)


class ViewedInTraining(nn.Module):
    """Flattens by `.view` in training alone, which refuses channels-last memory; counts how often it is asked."""

    asked = 0

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Conv2d(3, 2, 3))
        self.last, self.aux = nn.Linear(1152, 10), nn.Linear(1152, 10)

    def forward(self, x: Tensor) -> Tensor:
        self.asked += 1
        y = self.body(x)
        out: Tensor = self.last(y.flatten(1))
        return out + self.aux(y.view(len(y), -1)) if self.training else out


def test_a_model_that_flattens_by_view_in_training_alone_is_trained_in_plain_order() -> None:
    network = ViewedInTraining()
    model = as_classifier(network, input_shape=(1, 28, 28))
    asked = network.asked
    assert layout_of(model, IMAGES) is torch.contiguous_format
    assert network.asked == asked  # it was a copy that was tried
    assert all(one.grad is None for one in model.parameters())
    data = nt.load_data("mnist-5k", limit=64)
    assert len(nt.fit(model, data.train, nt.supervised(), val=data.val, epochs=1).epochs) == 1


def test_a_refused_or_failed_training_gives_the_model_back_as_it_was(tmp_path: Path) -> None:
    data = nt.load_data("mnist-5k", limit=64)
    nt.fit(nt.build_model("lenet", data), data.train, nt.supervised(), val=data.val, epochs=1, run=tmp_path / "run")
    model = nt.build_model("lenet", data)
    with pytest.raises(UsageError, match="holds a training already"):
        nt.fit(model, data.train, nt.supervised(), val=data.val, epochs=1, run=tmp_path / "run")

    there = nt.build_model("lenet", data).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    nt.fit(there, data.train, nt.supervised(), val=data.val, epochs=1, run=tmp_path / "run", resume=True)
    assert all(one.is_contiguous() for one in there.parameters())

    def failing(done: Any) -> None:
        assert model.network[3].weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[index]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        nt.fit(model, data.train, nt.supervised(), val=data.val, epochs=1, progress=failing)
    assert all(one.is_contiguous() for one in model.parameters())
