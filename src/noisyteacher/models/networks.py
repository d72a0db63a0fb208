"""The package's own networks: the nine of Sau & Balasubramanian 2016 and three compact residual students.

All weights are He-normal (He et al. 2015, eq. 10: variance 2 / fan-in), all biases zero.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, nn

from noisyteacher.errors import MismatchError, UsageError
from noisyteacher.models.classifier import Head
from noisyteacher.models.preprocess import Shape
from noisyteacher.text import unknown_name

Network = TypeVar("Network", bound=nn.Module)

PAPER: dict[str, str] = {
    "lenet": "C5(S1P0)@20-MP2(S2)-C5(S1P0)@50-MP2(S2)-FC500-FCK",
    "mlp800": "FC800-FC800-FCK",
    "mlp128": "FC128-FC128-FCK",
    "nin": "C5(S1P2)@192-C1@160-C1@96-MP3(S2)-D0.5-C5(S1P2)@192-C1@192-C1@192-AP3(S2)-D0.5-C3(S1P1)@192-C1@192-C1@K-AP",
    "lenet-svhn": "C5(S1P2)@32-MP3(S2)-C5(S1P2)@64-MP3(S2)-FC1024-FCK",
    "lenet-cifar": "C5(S1P2)@64-MP2(S2)-C5(S1P2)@128-MP2(S2)-FC1024-FCK",
    "alexnet-cifar": "C5(S1P2)@96-MP3(S2)-C5(S1P2)@256-MP3(S2)-C3(S1P1)@384-C3(S1P1)@384-C3(S1P1)@256-MP3(S2)"
    "-FC2048-D0.5-FC2048-D0.5-FCK",
    "student1": "C5(S1P2)@64-MP2(S2)-C5(S1P2)@112-MP2(S2)-C3(S1P1)@128-MP2(S2)-FC1024-FCK",
    "student2": "C5(S1P2)@32-MP2(S2)-C5(S1P2)@32-MP2(S2)-C3(S1P1)@64-MP2(S2)-FC1024-FCK",
    "student3": "C5(S1P2)@16-MP2(S2)-C5(S1P2)@32-MP2(S2)-C3(S1P1)@64-MP2(S2)-FC1024-FCK",
}
"""Name -> layers, as the paper writes them (its sections 5.1 to 5.5); mlp128 is a small mlp800, and not the paper's.

`C5(S1P2)@64` is a 5x5 convolution of stride 1, padding 2 and 64 kernels, `MP`/`AP` max/average pooling, `D` dropout,
`FC` a fully connected layer, `K` the number of classes. Pooling uses ceil mode: only then do the multiplications the
paper states for NIN come out. NIN's last average covers the whole image. A ReLU follows every hidden layer, but a max
pooling comes before it: the numbers and gradients are the same, and there are fewer of them.
"""
_LAYER = re.compile(
    r"C(?P<kernel>\d+)(\(S(?P<stride>\d+)P(?P<padding>\d+)\))?@(?P<channels>\d+|K)"
    r"|(?P<pool>MP|AP)(?P<window>\d+)\(S(?P<step>\d+)\)|FC(?P<features>\d+|K)|D(?P<dropout>\d*\.\d+)|AP"
)


@dataclass(frozen=True)
class Member:
    """Channels of the stem, and channels and blocks of each stage; the first block of a stage halves the image."""

    stem: int
    stages: tuple[tuple[int, int], ...]


COMPACT: dict[str, Member] = {
    "compact-xs": Member(16, ((24, 1), (48, 1), (80, 1))),
    "compact-s": Member(16, ((32, 1), (48, 2), (96, 1))),
    "compact-m": Member(32, ((56, 2), (112, 2), (128, 1))),
}
"""Name -> widths and depths. At 3 x 32 x 32 they multiply less than the paper's Students 3, 2 and 1 (docs/models.md).

A 3x3 stem, then stages of residual blocks (He et al. 2016, arXiv 1512.03385), an average over the image and a linear
layer. Dense convolutions with a ReLU behind a batch norm run fast on CPUs, fuse, and quantize to int8.
"""
LARGEST = 96
"""Images are halved in a compact network's stem until their shorter side has fewer pixels than this."""


def he_normal(network: Network) -> Network:
    """The same network with He-normal weights and zero biases; on the meta device there is nothing to draw."""
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and not layer.weight.is_meta:
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return network


def default_options(name: str) -> dict[str, float | bool]:
    """The options of a network with their defaults: `dropout`, for nin `final_relu`; for a compact one `width`."""
    if name in COMPACT:
        return {"width": 1.0}
    stated = re.search(r"-D([\d.]+)", PAPER[name])
    options: dict[str, float | bool] = {"dropout": float(stated[1]) if stated else 0.0}
    return {**options, "final_relu": False} if name == "nin" else options


def _check_options(name: str, options: dict[str, float | bool]) -> dict[str, float | bool]:
    """All options of the network. Raises UnknownNameError for an option, UsageError for a value out of range."""
    checked = default_options(name)
    for option, value in options.items():
        if option not in checked:
            raise unknown_name(f"option of model {name!r}", option, checked)
        number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else -1
        if option == "dropout" and not 0 <= number < 1:
            raise UsageError(f"dropout {value!r}: expected a probability to drop, from 0 up to but not including 1")
        if option == "width" and not 0 < number <= 16:
            raise UsageError(f"width {value!r}: expected a number above 0 and at most 16: it multiplies the channels")
        if option == "final_relu" and not isinstance(value, bool):
            raise UsageError(f"final_relu {value!r}: expected true or false")
    return {**checked, **options}


def paper_network(name: str, classes: int, input_shape: Shape, **options: float | bool) -> nn.Sequential:
    """One of the paper's networks: float32 `[B, C, H, W]` to logits `[B, classes]`.

    `dropout` is the probability to DROP, after every hidden fully connected layer (Table 5), or in place of the 0.5
    that nin and alexnet-cifar state. `final_relu` (nin only) puts a ReLU before the last average, which forbids
    negative logits. Raises UnknownNameError for an option, UsageError for a value out of range, and
    MismatchError when images of `input_shape` (C, H, W) are too small for the layers.
    """
    settings = _check_options(name, options)
    dropout, drops_stated = settings["dropout"], "-D" in PAPER[name]
    layers, numbers = OrderedDict[str, nn.Module](), Counter[str]()

    def add(kind: str, layer: nn.Module) -> None:
        # Numbers count per kind, so that options do not shift the names of weights.
        numbers[kind] += 1
        layers[f"{kind}{numbers[kind]}"] = layer

    words = PAPER[name].split("-")
    channels, height, width = input_shape
    for word, previous, following in zip(words, ["", *words], [*words[1:], ""], strict=False):
        layer = _LAYER.fullmatch(word)
        assert layer is not None
        if layer["kernel"]:
            kernel, stride, padding = int(layer["kernel"]), int(layer["stride"] or 1), int(layer["padding"] or 0)
            outputs = classes if layer["channels"] == "K" else int(layer["channels"])
            add("conv", nn.Conv2d(channels, outputs, kernel, stride, padding))
            channels = outputs
            height, width = ((size + 2 * padding - kernel) // stride + 1 for size in (height, width))
            if not following.startswith("MP") and (layer["channels"] != "K" or settings.get("final_relu")):
                add("relu", nn.ReLU())
        elif layer["pool"]:
            kernel, stride = int(layer["window"]), int(layer["step"])
            add("pool", (nn.MaxPool2d if layer["pool"] == "MP" else nn.AvgPool2d)(kernel, stride, ceil_mode=True))
            height, width = (-((kernel - size) // stride) + 1 for size in (height, width))
            if layer["pool"] == "MP" and previous.startswith("C"):
                add("relu", nn.ReLU())
        elif layer["features"]:
            if not numbers["flatten"]:
                add("flatten", nn.Flatten())
                channels, height, width = channels * height * width, 1, 1
            hidden = layer["features"] != "K"
            outputs = int(layer["features"]) if hidden else classes
            add("fc", (nn.Linear if hidden else Head)(channels, outputs))
            channels = outputs
            if hidden:
                add("relu", nn.ReLU())
            if hidden and dropout and not drops_stated:
                add("drop", nn.Dropout(dropout))
        elif layer["dropout"]:
            if dropout:
                add("drop", nn.Dropout(dropout))
        else:
            add("pool", nn.AdaptiveAvgPool2d(1))
            add("flatten", nn.Flatten())
        if min(height, width) < 1:
            size = f"{input_shape[1]} x {input_shape[2]}"
            raise MismatchError(f"images of {size} pixels are too small for model {name!r}, at {word} of {PAPER[name]}")
    return he_normal(nn.Sequential(layers))


def without_width(name: str) -> tuple[str, dict[str, float]]:
    """The network's name without its width, and the width as an option; any other name unchanged, without options.

    `without_width("compact-s:0.75") == ("compact-s", {"width": 0.75})`. Raises UsageError for a wrong width.
    """
    member, colon, width = name.partition(":")
    if colon and member in PAPER:
        raise UsageError(f"model {name!r}: {member} has no width to choose, {', '.join(COMPACT)} have")
    if member not in COMPACT or not colon:
        return name, {}
    try:
        return member, {"width": float(width)}
    except ValueError:
        raise UsageError(f"model {name!r}: expected {member}:WIDTH, a number such as {member}:0.75") from None


def compact_network(name: str, classes: int, input_shape: Shape, **options: float | bool) -> nn.Sequential:
    """One of the compact students: float32 `[B, C, H, W]` of any size to logits `[B, classes]`.

    `width` (above 0) multiplies the channels, in steps of 8. The last batch norm of every block starts at 0, so that
    the block starts as its shortcut (Goyal et al. 2017, arXiv 1706.02677). Raises UnknownNameError for an
    option, UsageError for a width out of range.
    """
    factor = _check_options(name, options)["width"]

    def scaled(count: int) -> int:
        return count if factor == 1 else max(8, 8 * round(count * factor / 8))

    member, layers = COMPACT[name], OrderedDict[str, nn.Module]()
    channels, shorter, number = input_shape[0], min(input_shape[1:]), 1
    while number == 1 or shorter >= LARGEST:
        stride = 2 if shorter >= LARGEST else 1
        layers[f"stem{number}"] = _conv_norm(channels, scaled(member.stem), 3, stride, relu=True)
        channels, shorter, number = scaled(member.stem), -(-shorter // stride), number + 1
    for stage, (count, blocks) in enumerate(member.stages, 1):
        for block in range(1, blocks + 1):
            layers[f"stage{stage}_{block}"] = Residual(channels, scaled(count), stride=2 if block == 1 else 1)
            channels = scaled(count)
    layers["pool"], layers["flatten"] = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    layers["fc"] = Head(channels, classes)
    return he_normal(nn.Sequential(layers))


class Residual(nn.Module):
    """relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)); the shortcut is 1x1 where channels or size change."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = _conv_norm(inputs, outputs, 3, stride, relu=True)
        self.second = _conv_norm(outputs, outputs, 3, 1, relu=False)
        nn.init.zeros_(self.second.get_parameter("norm.weight"))
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else _conv_norm(inputs, outputs, 1, stride, relu=False)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.second(self.first(x)) + self.shortcut(x))
        return out


def _conv_norm(inputs: int, outputs: int, kernel: int, stride: int, *, relu: bool) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    layers = OrderedDict[str, nn.Module](conv=conv, norm=nn.BatchNorm2d(outputs))
    return nn.Sequential(OrderedDict(layers, relu=nn.ReLU()) if relu else layers)
