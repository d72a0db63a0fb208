"""Where and how forward passes run: device, precision, threads, eval mode and memory format."""

from __future__ import annotations

import copy
import functools
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain

import torch
from torch import Tensor, nn

from noisyteacher.errors import UsageError
from noisyteacher.text import unknown_name

PRECISIONS = ("fp32", "bf16")
AUTO = "auto"
"""The value of a setting that is to be decided here: of a precision, the faster one of this machine's device."""
NARROW = 16
"""Floats in the widest register of a CPU: convolutions of fewer input channels may write out of bounds."""
WORTH = 1.5
"""bf16 is used where its matrix products are at least this many times as fast: less does not make up for rounding."""
MOST_THREADS = 1024
PROBE_BATCH = 32
"""Images on which a memory format is tried: for up to 16, torch may choose other convolutions than for more."""


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """The torch device of a name; `auto` is the first GPU or the CPU. Raises UsageError for a missing device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # `meta` makes tensors, but no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device {str(name)!r} cannot be used here ({reason}); give cpu or auto") from error
    return device


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; from the CPU to a GPU it is copied without waiting."""
    return tensor.to(device, non_blocking=(tensor.device.type, device.type) == ("cpu", "cuda"))


def check_threads(threads: int) -> int:
    """The number of CPU threads. Raises UsageError for one that no machine can start."""
    if not 1 <= threads <= MOST_THREADS:
        raise UsageError(f"threads {threads}: expected 1 to {MOST_THREADS}, best as many as there are cores")
    return threads


def check_count(name: str, number: object, least: int = 1) -> None:
    """Raises UsageError unless the number, an argument of this name, is a whole one and `least` or more."""
    if not (type(number) is int and number >= least):
        raise UsageError(f"{name}={number!r}: expected a whole number >= {least}")


@contextmanager
def cpu_threads(threads: int | None) -> Iterator[None]:
    """Inside, torch uses this many CPU threads; None leaves them as they are."""
    if threads is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(check_threads(threads))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def resolve_precision(name: str, device: torch.device) -> str:
    """The precision of a name; `auto` is bf16 where that is worth it on this device (measured once), else fp32."""
    return _faster_precision(device) if name == AUTO else name


@functools.cache
def _faster_precision(device: torch.device) -> str:
    size = 4096 if device.type == "cuda" else 512  # a CPU without units for bf16 takes 20 ms for one such product
    try:
        gain = statistics.median(
            matmul_peak(device, "bf16", size) / matmul_peak(device, "fp32", size) for _ in range(3)
        )
    except (RuntimeError, TypeError):  # a device that knows no bf16
        return "fp32"
    return "bf16" if gain >= WORTH else "fp32"


def matmul_peak(device: torch.device, precision: str, size: int | None = None) -> float:
    """Floating-point operations a second of the fastest of five products of two square matrices, measured now."""
    size = size or (8192 if device.type == "cuda" else 2048)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    first, second = torch.ones(2, size, size, dtype=dtype, device=device)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        float((first @ second)[0, 0])  # waits for a GPU
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds[1:])


@contextmanager
def precise(precision: str, device: torch.device) -> Iterator[None]:
    """Inside, `fp32` on a GPU means fp32: by default torch rounds the inputs of convolutions to TF32 (10 bits)."""
    if precision != "fp32" or device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def in_autocast(device: torch.device) -> bool:
    """Whether autocast is on for this device."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Inside autocast, a context without it; anywhere else nothing."""
    return torch.autocast(device.type, enabled=False) if in_autocast(device) else nullcontext()


def refuse_autocast(device: torch.device) -> None:
    """Raises UsageError inside autocast, which keeps the weights it has cast: after an update they would be old."""
    if in_autocast(device):
        raise UsageError(
            "called inside torch.autocast: leave that context, and say precision='bf16' where it is wanted"
        )


def refuse_no_gradients() -> None:
    """Raises UsageError where gradients are off, without which nothing can be trained."""
    if not torch.is_grad_enabled():
        raise UsageError("called where gradients are off (torch.no_grad, inference_mode): leave that context to train")


def precision_context(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context a forward pass runs in: `precise` for `fp32`, autocast for `bf16` (weights and logits stay fp32).

    Raises UsageError inside another autocast.
    """
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    refuse_autocast(device)
    if precision == "fp32":
        return precise(precision, device)
    return torch.autocast(device.type, dtype=torch.bfloat16)


@contextmanager
def inference(model: nn.Module, device: torch.device | None = None) -> Iterator[torch.device]:
    """Yields the device; inside, the model is on it, every submodule is in eval mode, and gradients are off.

    Without a device the model stays where it is. Device and all training flags are restored. Gradients are off by
    `no_grad`, not by `inference_mode`: what a model caches in here must still work in a later training.
    """
    home = next((tensor.device for tensor in chain(model.parameters(), model.buffers())), torch.device("cpu"))
    target = home if device is None else device
    if home.type == "meta":
        raise UsageError("the model is on the meta device, without weights: load them first, or build it on the CPU")
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


@contextmanager
def channels_last(model: nn.Module, images: Tensor) -> Iterator[None]:
    """Inside, on a CPU, the weights of convolutions are in channels-last format; afterwards in the one they were in.

    Forward passes of many images are faster so. A model that fails on the first of these images in that format (one
    that flattens by `.view`, say) is left alone. Enter it before autocast, which caches the weights it casts.
    """
    weights = [
        parameter
        for parameter in model.parameters()
        if parameter.device.type == "cpu"
        and parameter.dim() == 4
        and not parameter.is_contiguous(memory_format=torch.channels_last)
    ]
    if weights:
        try:
            with _in_channels_last(weights):
                model(images[:PROBE_BATCH])
        except Exception:  # any other fault of the model shows in the real forward pass
            weights = []
    with _in_channels_last(weights):
        yield


@contextmanager
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
