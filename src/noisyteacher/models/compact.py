"""Compact students: three small residual networks with fewer parameters, bytes and multiplications than the paper's.

A 3x3 stem, then stages that halve the image, each of residual blocks of two 3x3 convolutions with batch norm (He et al.
2016, arXiv 1512.03385), an average over the image and one linear layer. All convolutions are dense and every activation
is a ReLU behind a batch norm: that runs fast on CPUs, fuses, and can be held in int8. docs/models.md has the figures.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor, nn

from noisyteacher.errors import UsageError
from noisyteacher.models.classifier import Head
from noisyteacher.models.paper import he_normal
from noisyteacher.text import unknown_name


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
"""Name -> widths and depths. At 3 x 32 x 32 they multiply less than the paper's Students 3, 2 and 1."""

LARGEST = 96
"""Images are halved in the stem until their shorter side has fewer pixels than this."""


def compact_options() -> dict[str, float]:
    """The options of a compact student with their defaults: `width` multiplies every number of channels."""
    return {"width": 1.0}


def without_width(name: str) -> tuple[str, dict[str, float]]:
    """The network's name without its width, and the width as an option; any other name unchanged, without options.

    `without_width("compact-s:0.75") == ("compact-s", {"width": 0.75})`. Raises UsageError for a width that is not a
    number; its range is checked when the network is built.
    """
    member, colon, width = name.partition(":")
    if member not in COMPACT or not colon:
        return name, {}
    try:
        return member, {"width": float(width)}
    except ValueError:
        raise UsageError(
            f"model {name!r}: expected {member}:WIDTH, a number that multiplies its channels, such as {member}:0.75"
        ) from None


def compact_network(name: str, classes: int, input_shape: tuple[int, int, int], **options: float) -> nn.Sequential:
    """One of the compact students: float32 `[B, C, H, W]` of any size to logits `[B, classes]`; He-normal weights.

    The last batch norm of every block starts at 0, so that the block starts as its shortcut (Goyal et al. 2017, arXiv
    1706.02677). `width` (above 0) multiplies the channels, in steps of 8. Raises UnknownNameError for a network or
    option, UsageError for a width out of range.
    """
    if name not in COMPACT:
        raise unknown_name("model", name, COMPACT)
    defaults = compact_options()
    for option in options:
        if option not in defaults:
            raise unknown_name(f"option of model {name!r}", option, defaults)
    width = {**defaults, **options}["width"]
    if isinstance(width, bool) or not isinstance(width, (int, float)) or not 0 < width <= 16:
        raise UsageError(f"width {width!r}: expected a number above 0 and at most 16, which multiplies the channels")
    member, layers = COMPACT[name], OrderedDict[str, nn.Module]()
    channels = input_shape[0]
    for number, stride in enumerate(_stem_strides(min(input_shape[1:])), 1):
        outputs = _channels(member.stem, width)
        layers[f"stem{number}"] = _conv_norm(channels, outputs, 3, stride, relu=True)
        channels = outputs
    for stage, (wide, blocks) in enumerate(member.stages, 1):
        for block in range(1, blocks + 1):
            outputs = _channels(wide, width)
            layers[f"stage{stage}_{block}"] = Residual(channels, outputs, stride=2 if block == 1 else 1)
            channels = outputs
    layers["pool"], layers["flatten"] = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    layers["fc"] = Head(channels, classes)
    network = he_normal(nn.Sequential(layers))
    for module in network.modules():
        if isinstance(module, Residual):
            module.start_as_shortcut()
    return network


class Residual(nn.Module):
    """relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)); the shortcut is 1x1 where channels or size change."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """`stride` is that of the first convolution and of the shortcut."""
        super().__init__()
        self.first = _conv_norm(inputs, outputs, 3, stride, relu=True)
        self.second = _conv_norm(outputs, outputs, 3, 1, relu=False)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else _conv_norm(inputs, outputs, 1, stride, relu=False)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Float32 `[B, outputs, ceil(H / stride), ceil(W / stride)]` of `[B, inputs, H, W]`."""
        out: Tensor = self.relu(self.second(self.first(x)) + self.shortcut(x))
        return out

    def start_as_shortcut(self) -> None:
        """Set the scale of the last batch norm to 0."""
        norm = self.second.get_submodule("norm")
        assert isinstance(norm, nn.BatchNorm2d)
        if not norm.weight.is_meta:
            nn.init.zeros_(norm.weight)


def _conv_norm(inputs: int, outputs: int, kernel: int, stride: int, *, relu: bool) -> nn.Sequential:
    """Convolution without a bias, batch norm and, with `relu`, a ReLU; only the stride changes the size."""
    layers = OrderedDict[str, nn.Module]()
    layers["conv"] = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    layers["norm"] = nn.BatchNorm2d(outputs)
    if relu:
        layers["relu"] = nn.ReLU()
    return nn.Sequential(layers)


def _stem_strides(shorter: int) -> list[int]:
    """Strides of the stem: 1, or for large images as many 2s as they need. `_stem_strides(224) == [2, 2]`."""
    strides = []
    while shorter >= LARGEST:
        strides.append(2)
        shorter = -(-shorter // 2)
    return strides or [1]


def _channels(count: int, width: float) -> int:
    """The number of channels times the width, in steps of 8 unless the width is 1. `_channels(48, 0.5) == 24`."""
    return count if width == 1 else max(8, 8 * round(count * width / 8))
