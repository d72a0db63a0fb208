"""The memory format that a network trains in."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

NARROW = 16
"""Floats in the widest register of a CPU: convolutions of fewer input channels may write out of bounds."""


def corrupts_memory(layer: nn.Module) -> bool:
    """Whether the backward pass of this layer may write out of bounds on a CPU when memory is channels-last.

    torch 2.13 (oneDNN 3.12) does so for an ungrouped 1x1 convolution with a stride and fewer input channels than a
    register holds floats (8 with AVX2), for some image sizes: the process aborts, crashes or hangs. A layer with such
    a weight that does not state its stride counts as one that may. Forward passes are not affected.
    """
    weights = [parameter for parameter in layer.parameters(recurse=False) if parameter.dim() == 4]
    narrow = any(weight.shape[1] < NARROW and weight.shape[2:] == (1, 1) for weight in weights)
    strided = getattr(layer, "stride", None) not in (1, (1, 1))
    return narrow and strided and getattr(layer, "groups", 1) == 1


def choose_memory_format(model: nn.Module, images: Tensor) -> torch.memory_format:
    """The memory format to train in: channels-last where there are convolutions and the model trains in it.

    Contiguous on a CPU where a layer `corrupts_memory` otherwise. A copy of any other model is tried on these images,
    forward and backward, in training mode: some models flatten by `.view` only there.
    """
    weights = [parameter for parameter in model.parameters() if parameter.dim() == 4]
    if not weights:
        return torch.contiguous_format
    if weights[0].device.type == "cpu" and any(map(corrupts_memory, model.modules())):
        return torch.contiguous_format
    try:
        trial = copy.deepcopy(model).train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        device = next(trial.parameters()).device
        with torch.enable_grad():
            trial(images.to(device).contiguous(memory_format=torch.channels_last)).sum().backward()
    except Exception:  # any other fault of the model shows in the real training step
        return torch.contiguous_format
    return torch.channels_last
