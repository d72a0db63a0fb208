"""The nine networks of Sau & Balasubramanian 2016, written as the paper writes them (its sections 5.1 to 5.5).

`C5(S1P2)@64` is a 5x5 convolution of stride 1, padding 2 and 64 kernels, `MP`/`AP` max/average pooling, `D` dropout,
`FC` a fully connected layer, `K` the number of classes. A ReLU follows every hidden layer. Pooling uses ceil mode:
only then do the multiplications the paper states for NIN come out. NIN's last average covers the whole image,
whatever its size.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from torch import nn

from noisyteacher.errors import MismatchError, UsageError
from noisyteacher.models.head import Head
from noisyteacher.text import unknown_name

NIN = "C5(S1P2)@192-C1@160-C1@96-MP3(S2)-D0.5-C5(S1P2)@192-C1@192-C1@192-AP3(S2)-D0.5-C3(S1P1)@192-C1@192-C1@K-AP"
ALEXNET = (
    "C5(S1P2)@96-MP3(S2)-C5(S1P2)@256-MP3(S2)-C3(S1P1)@384-C3(S1P1)@384-C3(S1P1)@256-MP3(S2)"
    "-FC2048-D0.5-FC2048-D0.5-FCK"
)
PAPER: dict[str, str] = {
    "lenet": "C5(S1P0)@20-MP2(S2)-C5(S1P0)@50-MP2(S2)-FC500-FCK",
    "mlp800": "FC800-FC800-FCK",
    "nin": NIN,
    "lenet-svhn": "C5(S1P2)@32-MP3(S2)-C5(S1P2)@64-MP3(S2)-FC1024-FCK",
    "lenet-cifar": "C5(S1P2)@64-MP2(S2)-C5(S1P2)@128-MP2(S2)-FC1024-FCK",
    "alexnet-cifar": ALEXNET,
    "student1": "C5(S1P2)@64-MP2(S2)-C5(S1P2)@112-MP2(S2)-C3(S1P1)@128-MP2(S2)-FC1024-FCK",
    "student2": "C5(S1P2)@32-MP2(S2)-C5(S1P2)@32-MP2(S2)-C3(S1P1)@64-MP2(S2)-FC1024-FCK",
    "student3": "C5(S1P2)@16-MP2(S2)-C5(S1P2)@32-MP2(S2)-C3(S1P1)@64-MP2(S2)-FC1024-FCK",
}
"""Name -> layers. The MNIST pair, NIN (teacher of SVHN and CIFAR-10), their students, Teacher2, Students 1 to 3."""

Network = TypeVar("Network", bound=nn.Module)

CONV = re.compile(r"C(\d+)(?:\(S(\d+)P(\d+)\))?@(\d+|K)")
POOL = re.compile(r"(MP|AP)(\d+)\(S(\d+)\)")
FULL = re.compile(r"FC(\d+|K)")
DROP = re.compile(r"D(\d*\.\d+)")


def paper_options(name: str) -> dict[str, float | bool]:
    """The options of one of the paper's networks with their defaults: `dropout`, and for nin `final_relu`."""
    stated = DROP.search(PAPER[name])
    options: dict[str, float | bool] = {"dropout": float(stated[1]) if stated else 0.0}
    return {**options, "final_relu": False} if name == "nin" else options


def paper_network(name: str, classes: int, input_shape: tuple[int, int, int], **options: float | bool) -> nn.Sequential:
    """One of the paper's networks: float32 `[B, C, H, W]` to logits `[B, classes]`; He-normal weights, zero biases.

    `dropout` is the probability to DROP, after every hidden fully connected layer (Table 5), or in place of the 0.5
    that nin and alexnet-cifar state. `final_relu` (nin only) puts a ReLU before the last average, which forbids
    negative logits. Raises UnknownNameError for a network or option, UsageError for a value out of range, and
    MismatchError when images of `input_shape` (C, H, W) are too small for the layers.
    """
    if name not in PAPER:
        raise unknown_name("model", name, PAPER)
    known = paper_options(name)
    for option in options:
        if option not in known:
            raise unknown_name(f"option of model {name!r}", option, known)
    settings = {**known, **options}
    dropout = settings["dropout"]
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise UsageError(f"dropout {dropout!r}: it is a probability to drop, from 0 up to but not including 1")
    if not isinstance(settings.get("final_relu", False), bool):
        raise UsageError(f"final_relu {settings['final_relu']!r}: it is true or false")
    plan = _Plan(name, classes, *input_shape, dropout=float(dropout))
    words = PAPER[name].split("-")
    for word in words:
        plan.add(word, final_relu=bool(settings.get("final_relu", False)))
    return he_normal(nn.Sequential(plan.layers))


def he_normal(network: Network) -> Network:
    """The same network with He-normal weights (He et al. 2015, eq. 10: variance 2 / fan-in) and zero biases."""
    for layer in network.modules():
        # On the meta device there is nothing to draw, and torch would spend two seconds importing how not to.
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and not layer.weight.is_meta:
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return network


@dataclass
class _Plan:
    """The layers so far and the shape behind them; names count per kind, so options do not shift them."""

    name: str
    classes: int
    channels: int
    height: int
    width: int
    dropout: float
    layers: OrderedDict[str, nn.Module] = field(default_factory=OrderedDict)

    def add(self, word: str, final_relu: bool) -> None:
        """Append what one word of the notation stands for."""
        drops_stated = "-D" in PAPER[self.name]
        if found := CONV.fullmatch(word):
            kernel, stride, padding = int(found[1]), int(found[2] or 1), int(found[3] or 0)
            out = self._width(found[4])
            self._put("conv", nn.Conv2d(self.channels, out, kernel, stride, padding))
            self.channels = out
            self._resize(lambda size: (size + 2 * padding - kernel) // stride + 1, word)
            if found[4] != "K" or final_relu:
                self._put("relu", nn.ReLU())
        elif found := POOL.fullmatch(word):
            kernel, stride = int(found[2]), int(found[3])
            pool = nn.MaxPool2d if found[1] == "MP" else nn.AvgPool2d
            self._put("pool", pool(kernel, stride, ceil_mode=True))
            self._resize(lambda size: _ceil_pool(size, kernel, stride), word)
        elif found := FULL.fullmatch(word):
            if "flatten1" not in self.layers:
                self._put("flatten", nn.Flatten())
                self.channels, self.height, self.width = self.channels * self.height * self.width, 1, 1
            out = self._width(found[1])
            self._put("fc", (Head if found[1] == "K" else nn.Linear)(self.channels, out))
            self.channels = out
            if found[1] != "K":
                self._put("relu", nn.ReLU())
                if self.dropout and not drops_stated:
                    self._put("drop", nn.Dropout(self.dropout))
        elif DROP.fullmatch(word):
            if self.dropout:
                self._put("drop", nn.Dropout(self.dropout))
        else:  # "AP" alone: the average over the whole image
            self._put("pool", nn.AdaptiveAvgPool2d(1))
            self._put("flatten", nn.Flatten())

    def _width(self, text: str) -> int:
        return self.classes if text == "K" else int(text)

    def _put(self, kind: str, layer: nn.Module) -> None:
        number = 1 + sum(name.rstrip("0123456789") == kind for name in self.layers)
        self.layers[f"{kind}{number}"] = layer

    def _resize(self, rule: Callable[[int], int], word: str) -> None:
        self.height, self.width = rule(self.height), rule(self.width)
        if min(self.height, self.width) < 1:
            raise MismatchError(
                f"the images are too small for model {self.name!r}: nothing is left of them at {word} of "
                f"{PAPER[self.name]}; use larger images or 'mlp800', which takes any size"
            )


def _ceil_pool(size: int, kernel: int, stride: int) -> int:
    """Windows of a pooling in ceil mode: the last may reach over the edge; it starts inside as long as they overlap."""
    return math.ceil((size - kernel) / stride) + 1
