"""The nine networks of Sau & Balasubramanian 2016, written as the paper writes them (its sections 5.1 to 5.5).

`C5(S1P2)@64` is a 5x5 convolution of stride 1, padding 2 and 64 kernels, `MP`/`AP` max/average pooling, `D` dropout,
`FC` a fully connected layer, `K` the number of classes. Pooling uses ceil mode: only then do the multiplications the
paper states for NIN come out. NIN's last average covers the whole image, whatever its size. A ReLU follows every hidden
layer; before a max pooling it comes behind the pooling, which gives the same numbers and the same gradients, and has
fewer of them to go through.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from itertools import zip_longest
from typing import TypeVar

from torch import nn

from noisyteacher.errors import MismatchError, UsageError
from noisyteacher.models.classifier import Head
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
    defaults = paper_options(name)
    for option in options:
        if option not in defaults:
            raise unknown_name(f"option of model {name!r}", option, defaults)
    settings = {**defaults, **options}
    dropout, final_relu = settings["dropout"], settings.get("final_relu", False)
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise UsageError(f"dropout {dropout!r}: expected a probability to drop, from 0 up to but not including 1")
    if not isinstance(final_relu, bool):
        raise UsageError(f"final_relu {final_relu!r}: expected true or false")

    layers = OrderedDict[str, nn.Module]()
    numbers = Counter[str]()

    def add(kind: str, layer: nn.Module) -> None:
        # Numbers count per kind, so that options do not shift the names of weights.
        numbers[kind] += 1
        layers[f"{kind}{numbers[kind]}"] = layer

    drops_stated = "-D" in PAPER[name]
    words = PAPER[name].split("-")
    channels, height, width = input_shape
    relu_waits = False
    for word, following in zip_longest(words, words[1:], fillvalue=""):
        if conv := CONV.fullmatch(word):
            kernel, stride, padding = int(conv[1]), int(conv[2] or 1), int(conv[3] or 0)
            outputs = classes if conv[4] == "K" else int(conv[4])
            add("conv", nn.Conv2d(channels, outputs, kernel, stride, padding))
            channels = outputs
            height, width = ((size + 2 * padding - kernel) // stride + 1 for size in (height, width))
            if conv[4] != "K" or final_relu:
                relu_waits = following.startswith("MP")
                if not relu_waits:
                    add("relu", nn.ReLU())
        elif pool := POOL.fullmatch(word):
            kernel, stride = int(pool[2]), int(pool[3])
            add("pool", (nn.MaxPool2d if pool[1] == "MP" else nn.AvgPool2d)(kernel, stride, ceil_mode=True))
            height, width = (-((kernel - size) // stride) + 1 for size in (height, width))
            if relu_waits:
                add("relu", nn.ReLU())
                relu_waits = False
        elif full := FULL.fullmatch(word):
            if not numbers["flatten"]:
                add("flatten", nn.Flatten())
                channels, height, width = channels * height * width, 1, 1
            outputs = classes if full[1] == "K" else int(full[1])
            add("fc", (Head if full[1] == "K" else nn.Linear)(channels, outputs))
            channels = outputs
            if full[1] != "K":
                add("relu", nn.ReLU())
                if dropout and not drops_stated:
                    add("drop", nn.Dropout(dropout))
        elif DROP.fullmatch(word):
            if dropout:
                add("drop", nn.Dropout(dropout))
        else:  # "AP" alone: the average over the whole image
            add("pool", nn.AdaptiveAvgPool2d(1))
            add("flatten", nn.Flatten())
        if min(height, width) < 1:
            raise MismatchError(
                f"images of {input_shape[1]} x {input_shape[2]} pixels are too small for model {name!r}: nothing is "
                f"left of them at {word} of {PAPER[name]}; use larger images or 'mlp800', which takes any size"
            )
    return he_normal(nn.Sequential(layers))


def he_normal(network: Network) -> Network:
    """The same network with He-normal weights (He et al. 2015, eq. 10: variance 2 / fan-in) and zero biases."""
    for layer in network.modules():
        # On the meta device there is nothing to draw, and torch would spend two seconds on imports for it.
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and not layer.weight.is_meta:
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return network
