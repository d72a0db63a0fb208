"""A model lent for answering questions: on a device, in eval mode, without gradients; afterwards just as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import chain

import torch
from torch import nn


@contextlib.contextmanager
def inference(
    model: nn.Module, device: torch.device | None = None, *, channels_last: bool = False
) -> Iterator[torch.device]:
    """Yields the device; inside, the model is on it, every submodule is in eval mode, and gradients are off.

    Without a device the model stays where it is. Afterwards it is back on the device of its first parameter, and every
    submodule has its own training flag again: a frozen batch norm inside a model in training stays frozen. Gradients
    are off by `no_grad`, not by `inference_mode`: what a model caches in here must still work in a later training.
    With `channels_last` the weights of convolutions lie in that order meanwhile: on a CPU answers to many images come
    faster, in bf16 up to three times, and are equal up to rounding.
    """
    home = next((tensor.device for tensor in chain(model.parameters(), model.buffers())), torch.device("cpu"))
    there = home if device is None else device
    flags = [(module, module.training) for module in model.modules()]
    try:
        # A model may do work in its own train() (merge branches, thaw a part): call it where the mode really changes.
        if any(flag for _, flag in flags):
            model.eval()
            for module, _ in flags:
                module.training = False
        if there != home:
            model.to(there)
        with torch.no_grad(), _channels_last(model) if channels_last else contextlib.nullcontext():
            yield there
    finally:
        if there != home:
            model.to(home)
        if model.training != flags[0][1]:
            model.train(flags[0][1])
        for module, flag in flags:
            module.training = flag


@contextlib.contextmanager
def _channels_last(model: nn.Module) -> Iterator[None]:
    """Inside, the weights of convolutions lie channels-last; afterwards they are the tensors they were."""
    last = torch.channels_last
    before = [
        (one, one.data) for one in model.parameters() if one.dim() == 4 and not one.is_contiguous(memory_format=last)
    ]
    try:
        for parameter, data in before:
            parameter.data = data.contiguous(memory_format=last)
        yield
    finally:
        for parameter, data in before:
            parameter.data = data
