"""The memory format of a training: contiguous where a layer corrupts or refuses channels-last; restored afterwards."""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisyteacher as nt
from helpers import Fork
from noisyteacher.data import epoch_batches
from noisyteacher.device import choose_memory_format, corrupts_memory
from noisyteacher.errors import UsageError
from noisyteacher.models import as_classifier

IMAGES_28 = torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
CHANNELS = (1, 2, 3, 4, 6, 7, 8, 9, 12, 16)
SIDE, IMAGES = 8, 16


def shapes() -> list[nn.Conv2d]:
    """660 convolutions: kernels 1, 3 and 5, strides 1 and 2, ungrouped with any channels and depthwise."""
    layers = []
    for kernel, stride in product((1, 3, 5), (1, 2)):
        where = {"kernel_size": kernel, "stride": stride, "padding": kernel // 2}
        layers += [nn.Conv2d(i, o, **where) for i, o in product(CHANNELS, CHANNELS)]  # type: ignore[arg-type]
        layers += [nn.Conv2d(i, i, groups=i, **where) for i in CHANNELS]  # type: ignore[arg-type]
    return layers


class Side(nn.Module):
    """Convolutions next to each other, each before a layer of logits; the logits are summed."""

    def __init__(self, layers: list[nn.Conv2d]) -> None:
        super().__init__()
        self.stems = nn.ModuleDict({str(i): nn.Conv2d(3, i, 3, padding=1) for i in CHANNELS})
        self.layers = nn.ModuleList(layers)
        self.heads = nn.ModuleList(nn.Conv2d(layer.out_channels, 2, 3) for layer in layers)

    def forward(self, x: Tensor) -> Tensor:
        read = {int(name): stem(x) for name, stem in self.stems.items()}
        pairs = zip(self.layers, self.heads, strict=True)
        logits: Tensor = sum(head(layer(read[layer.in_channels])).mean((2, 3)) for layer, head in pairs)  # type: ignore[assignment,index]
        return logits / len(self.layers)


def train_all_shapes() -> None:
    """Train two networks that have all the shapes between them: those that corrupt memory, and the others."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (IMAGES, 3, SIDE, SIDE), dtype=torch.uint8, generator=draw)
    pairs = [(image, number % 2) for number, image in enumerate(images)]
    data = nt.load_data({"train": pairs, "val": pairs, "test": pairs})
    for corrupts in (True, False):
        layers = [layer for layer in shapes() if corrupts_memory(layer) is corrupts]
        model = nt.build_model(Side(layers), data)
        nt.fit(model, data.train, nt.supervised(), epochs=1, batch_size=IMAGES, lr=1e-3)
        sys.stdout.write(f"{len(layers)} trained\n")


@pytest.mark.parametrize(
    ("layer", "corrupts"),
    [
        (nn.Conv2d(3, 48, 1, 2), True),
        (nn.Conv2d(7, 1, 1, 3), True),
        (nn.Conv2d(6, 8, 1, (1, 2)), True),
        (nn.Conv2d(6, 8, 1, 2, padding=1, dilation=2), True),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 8, 1, 2)).parametrizations.weight, True),
        (nn.ConvTranspose2d(16, 4, 1, 2), True),
        (nn.Conv2d(3, 48, 1), False),
        (nn.Conv2d(3, 48, 2, 2), False),
        (nn.Conv2d(3, 48, (1, 3), 2), False),
        (nn.Conv2d(16, 4, 1, 2), False),
        (nn.Conv2d(6, 6, 1, 2, groups=6), False),
        (nn.Linear(3, 4), False),
        (nn.BatchNorm2d(4), False),
    ],
    ids=str,
)
def test_layers_that_corrupt_memory_are_known_by_their_shape(layer: nn.Module, corrupts: bool) -> None:
    assert corrupts_memory(layer) is corrupts


def test_the_order_is_decided_before_anything_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 1, 2), nn.Flatten(), nn.Linear(72, 2))
    images = torch.rand(4, 3, 8, 8)
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: pytest.fail("it was tried"))
    assert choose_memory_format(model, images) is torch.contiguous_format


def test_no_shape_of_convolution_ends_a_training_process(tmp_path: Path) -> None:
    process = Fork(train_all_shapes, tmp_path / "process")
    assert process.wait() == 0, process.err[-2000:]
    assert process.out.split() == ["91", "trained", "569", "trained"]


def test_batches_are_in_plain_order_unless_asked_otherwise() -> None:
    """A convolution goes channels-last where its images alone are so, in a first step that is only checked, too."""
    split = nt.load_data([(torch.zeros(3, 8, 8, dtype=torch.uint8), number % 2) for number in range(40)]).train
    how = {"seed": 0, "epoch": 0, "first": 0, "batches": 1, "batch_size": 4, "every_view": False, "total_steps": 2}
    batch = next(epoch_batches(split, ("clean",), device=torch.device("cpu"), **how))  # type: ignore[arg-type]
    assert batch.images.shape == (4, 3, 8, 8)
    assert batch.images.is_contiguous()


class ViewedInTraining(nn.Module):
    """Flattens by `.view` in training alone, which refuses channels-last memory; counts its calls."""

    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Conv2d(3, 2, 3))
        self.last, self.aux = nn.Linear(1152, 10), nn.Linear(1152, 10)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = self.body(x)
        out: Tensor = self.last(y.flatten(1))
        return out + self.aux(y.view(len(y), -1)) if self.training else out


def test_a_model_that_flattens_by_view_in_training_alone_is_trained_in_plain_order() -> None:
    network = ViewedInTraining()
    model = as_classifier(network, input_shape=(1, 28, 28))
    calls = network.calls
    assert choose_memory_format(model, IMAGES_28) is torch.contiguous_format
    assert network.calls == calls  # it was a copy that was tried
    assert all(weight.grad is None for weight in model.parameters())
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
    assert all(weight.is_contiguous() for weight in there.parameters())

    def failing(done: Any) -> None:
        assert model.network[3].weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[index]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        nt.fit(model, data.train, nt.supervised(), val=data.val, epochs=1, progress=failing)
    assert all(weight.is_contiguous() for weight in model.parameters())
