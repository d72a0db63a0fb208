"""A model lent for answering questions: on a device, in eval mode, without gradients; afterwards just as it was."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def inference(model: nn.Module, device: torch.device | None = None) -> Iterator[torch.device]:
    """Yields the device; inside, the model is on it, every submodule is in eval mode, and gradients are off.

    Without a device the model stays where it is. Afterwards it is back on the device of its first parameter, and every
    submodule has its own training flag again: a frozen batch norm inside a model in training stays frozen. Gradients
    are off by `no_grad`, not by `inference_mode`: what a model caches in here must still work in a later training.
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
        with torch.no_grad():
            yield there
    finally:
        if there != home:
            model.to(home)
        if model.training != flags[0][1]:
            model.train(flags[0][1])
        for module, flag in flags:
            module.training = flag


TRIED_ON = 32
"""Images on which a memory order is tried: for up to 16, torch's convolutions may choose another than for more."""


@contextlib.contextmanager
def channels_last(model: nn.Module, images: Tensor) -> Iterator[None]:
    """Inside, on a CPU, the weights of convolutions lie channels-last; afterwards they are the tensors they were.

    Many images are answered faster so, in bf16 up to three times, and equally up to rounding. A model that does not
    answer the first of these images then (one that flattens by `.view`, say) is left alone. To be entered before
    autocast, which keeps the weights it once cast.
    """
    moved = [one for one in model.parameters() if one.device.type == "cpu" and _is_plain(one)]
    if not moved or not _answers(model, images[:TRIED_ON], moved):
        yield
        return
    with _lying_channels_last(moved):
        yield


NARROW = 16
"""Floats in the widest register of a CPU: convolutions of fewer input channels may write out of bounds."""


def corrupts_memory(layer: nn.Module) -> bool:
    """Whether the backward pass of this layer may write out of bounds on a CPU when memory is channels-last.

    torch 2.13 (oneDNN 3.12) does so for an ungrouped 1x1 convolution with a stride and fewer input channels than a
    register holds floats (8 with AVX2), for some image sizes: the process aborts, crashes or hangs.
    What has such a weight and does not state its stride counts as one that may. Answering is not concerned.
    """
    weights = [one for one in layer.parameters(recurse=False) if one.dim() == 4]
    narrow = any(one.shape[1] < NARROW and one.shape[2:] == (1, 1) for one in weights)
    strided = getattr(layer, "stride", None) not in (1, (1, 1))
    return narrow and strided and getattr(layer, "groups", 1) == 1


def layout_of(model: nn.Module, images: Tensor) -> torch.memory_format:
    """The memory order to train in: channels-last where there are convolutions and the model learns so.

    Plain order on a CPU where a layer `corrupts_memory` else. A copy of any other is tried on these images, forward and
    backward, in training mode: some flatten by `.view` only there.
    """
    weights = [one for one in model.parameters() if one.dim() == 4]
    if not weights:
        return torch.contiguous_format
    if weights[0].device.type == "cpu" and any(map(corrupts_memory, model.modules())):
        return torch.contiguous_format
    try:
        copied = copy.deepcopy(model).train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        place = next(copied.parameters()).device
        with torch.enable_grad():
            copied(images.to(place).contiguous(memory_format=torch.channels_last)).sum().backward()
    except Exception:  # what else may be wrong shows when it is asked in earnest
        return torch.contiguous_format
    return torch.channels_last


Pair = tuple[nn.Sequential, str, str]
"""A stack of layers, and the names of a ReLU in it and of the max pooling right behind."""


def pools_behind_relus(network: nn.Module) -> list[Pair]:
    """Every ReLU with a max pooling right behind it, where nothing but the next layer can see what comes out of one.

    That is so in a network that is a Sequential, and in Sequentials that are layers of it; a module with a forward of
    its own may look in between.
    """
    if type(network) is not nn.Sequential:
        return []
    layers = network._modules
    found = [pair for one in layers.values() if one is not None for pair in pools_behind_relus(one)]
    for (first, one), (second, other) in pairwise(layers.items()):
        if type(one) is nn.ReLU and type(other) is nn.MaxPool2d and not other.return_indices:
            found.append((network, first, second))
    return found


@contextlib.contextmanager
def pooling_first(pairs: Sequence[Pair]) -> Iterator[None]:
    """Inside, these poolings come before their ReLUs; afterwards the stacks are as they were.

    The largest of a window is the same before a ReLU and behind it, and so are the gradients, bit for bit, while the
    ReLU has a fraction of the numbers to go through. Layers that something watches (a hook) keep their places.
    """
    if not pairs or torch.nn.modules.module._has_any_global_hook():  # type: ignore[no-untyped-call]
        yield
        return
    before = [(stack._modules, dict(stack._modules)) for stack, _, _ in pairs]
    try:
        for stack, first, second in pairs:
            layers = stack._modules
            if not any(_is_watched(layers[name]) for name in (first, second)):
                layers[first], layers[second] = layers[second], layers[first]
        yield
    finally:
        for layers, names in before:
            layers.update(names)


def is_plain(network: nn.Module) -> bool:
    """Whether it is made of torch's and this package's layers alone, none of them watched or changed.

    What such a network does depends on shapes, weights and images, never on what Python counts or throws dice for. A
    batch norm without a momentum counts in Python.
    """
    ours = ("torch.nn.modules.", "noisyteacher.models.")
    if torch.nn.modules.module._has_any_global_hook() or torch.is_anomaly_enabled():  # type: ignore[no-untyped-call]
        return False
    if any(one._backward_hooks or one._post_accumulate_grad_hooks for one in network.parameters()):
        return False
    return all(
        type(one).__module__.startswith(ours)
        and not _is_watched(one)
        and not (isinstance(one, nn.modules.batchnorm._NormBase) and one.momentum is None)
        for one in network.modules()
    )


def _is_watched(layer: nn.Module | None) -> bool:
    kept = vars(layer)
    return "forward" in kept or any(value for name, value in kept.items() if name.endswith("_hooks"))


def _is_plain(parameter: nn.Parameter) -> bool:
    return parameter.dim() == 4 and not parameter.is_contiguous(memory_format=torch.channels_last)


def _answers(model: nn.Module, images: Tensor, moved: Sequence[nn.Parameter]) -> bool:
    """Whether it does with these parameters channels-last; what else may be wrong shows when it is asked in earnest."""
    with _lying_channels_last(moved):
        try:
            model(images)
        except Exception:
            return False
    return True


@contextlib.contextmanager
def _lying_channels_last(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    before = [(one, one.data) for one in parameters]
    try:
        for parameter, data in before:
            parameter.data = data.contiguous(memory_format=torch.channels_last)
        versions = [one._version for one in parameters]
        yield
        for (parameter, data), version in zip(before, versions, strict=True):
            if parameter._version != version:  # written to meanwhile
                data.copy_(parameter.data)
    finally:
        for parameter, data in before:
            parameter.data = data
