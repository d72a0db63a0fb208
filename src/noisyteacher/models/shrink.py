"""`shrink:RATIO`: a narrower, untrained copy of a network, with the same layers, names and connections."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from noisyteacher.errors import UsageError
from noisyteacher.models.channels import Channels, Value, channels_of
from noisyteacher.models.paper import he_normal
from noisyteacher.modes import inference

SHRINK = "shrink:"
STEP = 8
"""Numbers of channels that are multiples of it and stay large stay such: what CPUs work on at once."""
DEEPEST = 8


def ratio_of(name: str) -> float:
    """The ratio in `shrink:RATIO`. `ratio_of("shrink:0.5") == 0.5`. Raises UsageError unless 0 < RATIO <= 1."""
    try:
        ratio = float(name.removeprefix(SHRINK))
    except ValueError:
        ratio = math.nan
    if not 0 < ratio <= 1:
        raise UsageError(f"model {name!r}: expected {SHRINK}RATIO with 0 < RATIO <= 1, such as {SHRINK}0.5")
    return ratio


def origin_of(architecture: Mapping[str, Any]) -> str:
    """The name of the network that is built first: the architecture's own, or behind `shrink:` what was narrowed.

    Raises UsageError when a record of a narrowed network does not say it.
    """
    found: Any = architecture
    for _ in range(DEEPEST):
        if not (isinstance(found, Mapping) and isinstance(found.get("name"), str)):
            break
        if not isinstance(found.get("options"), Mapping):
            break
        if not found["name"].startswith(SHRINK):
            return str(found["name"])
        found = found["options"].get("of")
    raise UsageError("the record of a narrowed network does not say what it was narrowed from")


def shrunk(network: nn.Module, ratio: float, input_shape: tuple[int, int, int]) -> nn.Module:
    """A copy of the network with every hidden number of channels times the ratio (0 < ratio <= 1), at least 1.

    Image channels and classes are kept. Multiples of 8 stay such where the result is 16 or more; grouped convolutions
    keep their groups, depthwise ones stay depthwise. Weights are He-normal, batch norms new, all on torch's default
    device. Multiplications fall about with ratio squared. Raises UsageError naming the first layer that is not
    understood, or when there is no hidden layer.
    """
    copied = copy.deepcopy(network).train()
    found = channels_of(copied, input_shape[0])
    widths = _new_widths(found, ratio)
    if not set(widths) - found.kept:
        raise UsageError(f"{type(network).__name__} cannot be narrowed: it has no hidden layer")

    def count(value: Value) -> int:
        return widths[found.root(value.group)] * value.times

    for use in found.uses:
        layer = use.layer
        if isinstance(layer, nn.Conv2d):
            depthwise = layer.groups == layer.in_channels > 1
            layer.in_channels, layer.out_channels = count(use.read), count(use.made)
            layer.groups = layer.in_channels if depthwise else layer.groups
            size = (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
            _renew(layer, {"weight": size, "bias": (layer.out_channels,)})
        elif isinstance(layer, nn.Linear):
            layer.in_features, layer.out_features = count(use.read), count(use.made)
            _renew(layer, {"weight": (layer.out_features, layer.in_features), "bias": (layer.out_features,)})
        else:
            layer.num_features = count(use.made)
            _renew(layer, dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (layer.num_features,)))
            if layer.num_batches_tracked is not None:
                layer.num_batches_tracked = torch.tensor(0)
            layer.reset_parameters()
    _answers(he_normal(copied), input_shape)
    return copied


def _new_widths(found: Channels, ratio: float) -> dict[int, int]:
    """The new number of channels by root group."""
    roots = {found.root(group) for group in range(len(found.widths))}
    return {
        root: found.widths[root] if root in found.kept else narrowed(found.widths[root], ratio, found.steps[root])
        for root in roots
    }


def narrowed(width: int, ratio: float, multiple: int = 1) -> int:
    """So many channels times the ratio, rounded, a multiple of `multiple` and at least that.

    `narrowed(160, 0.5) == 80`, `narrowed(50, 0.5) == 25`, `narrowed(96, 0.3) == 32`, `narrowed(3, 0.1) == 1`.
    """
    eights = width % STEP == 0 and width * ratio >= 2 * STEP
    step = math.lcm(STEP if eights else 1, multiple)
    return min(width, max(step, step * math.floor(width * ratio / step + 0.5)))


def _renew(layer: nn.Conv2d | nn.Linear | _BatchNorm, sizes: Mapping[str, tuple[int, ...]]) -> None:
    """Each tensor that the layer has, anew: of this size, float32, learned if it is a parameter."""
    for name, size in sizes.items():
        old = getattr(layer, name, None)
        if old is not None:
            new = torch.zeros(size)
            setattr(layer, name, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)


def _answers(network: nn.Module, input_shape: tuple[int, int, int]) -> None:
    """Raises UsageError when the narrower network does not take images: some size in it was written out."""
    try:
        with inference(network) as device:
            network(torch.zeros((2, *input_shape), device=device))
    except Exception as error:  # the forward is somebody else's
        raise UsageError(
            f"{type(network).__name__} cannot be narrowed: its narrower copy fails on images of shape "
            f"{tuple(input_shape)}: {error}"
        ) from error
