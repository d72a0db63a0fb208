"""A model in eval mode, without gradients, on a device and in the memory format that is fast; restored afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

PROBE_BATCH = 32
"""Images on which a memory format is tried: for up to 16, torch may choose other convolutions than for more."""


@contextlib.contextmanager
def inference(model: nn.Module, device: torch.device | None = None) -> Iterator[torch.device]:
    """Yields the device; inside, the model is on it, every submodule is in eval mode, and gradients are off.

    Without a device the model stays where it is. Afterwards it is back on the device of its first parameter, and every
    submodule has its own training flag again: a frozen batch norm inside a model in training stays frozen. Gradients
    are off by `no_grad`, not by `inference_mode`: what a model caches in here must still work in a later training.
    """
    home = next((tensor.device for tensor in chain(model.parameters(), model.buffers())), torch.device("cpu"))
    target = home if device is None else device
    flags = [(module, module.training) for module in model.modules()]
    try:
        # A model may do work in its own train() (merge branches, unfreeze a part): call it where the mode changes.
        if any(training for _, training in flags):
            model.eval()
            for module, _ in flags:
                module.training = False
        if target != home:
            model.to(target)
        with torch.no_grad():
            yield target
    finally:
        if target != home:
            model.to(home)
        if model.training != flags[0][1]:
            model.train(flags[0][1])
        for module, training in flags:
            module.training = training


@contextlib.contextmanager
def channels_last(model: nn.Module, images: Tensor) -> Iterator[None]:
    """Inside, on a CPU, the weights of convolutions are in channels-last format; afterwards in the one they were in.

    Forward passes of many images are faster so, in bf16 up to three times, and equal up to rounding. A model that fails
    on the first of these images in that format (one that flattens by `.view`, say) is left alone. Enter it before
    autocast, which caches the weights it casts.
    """
    weights = [
        parameter
        for parameter in model.parameters()
        if parameter.device.type == "cpu"
        and parameter.dim() == 4
        and not parameter.is_contiguous(memory_format=torch.channels_last)
    ]
    if not weights or not _runs_channels_last(model, images[:PROBE_BATCH], weights):
        yield
        return
    with _in_channels_last(weights):
        yield


def _runs_channels_last(model: nn.Module, images: Tensor, weights: Sequence[nn.Parameter]) -> bool:
    with _in_channels_last(weights):
        try:
            model(images)
        except Exception:  # any other fault of the model shows in the real forward pass
            return False
    return True


@contextlib.contextmanager
def _in_channels_last(weights: Sequence[nn.Parameter]) -> Iterator[None]:
    before = [(weight, weight.data) for weight in weights]
    try:
        for weight, data in before:
            weight.data = data.contiguous(memory_format=torch.channels_last)
        versions = [weight._version for weight in weights]
        yield
        for (weight, data), version in zip(before, versions, strict=True):
            if weight._version != version:  # changed in the meantime
                data.copy_(weight.data)
    finally:
        for weight, data in before:
            weight.data = data
