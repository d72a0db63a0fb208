"""Where the arithmetic runs, and in what precision."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from noisyteacher.errors import UsageError
from noisyteacher.text import unknown_name

PRECISIONS = ("fp32", "bf16")
AUTO = "auto"
"""Instead of a precision: the faster one of this machine's device."""
WORTH = 1.5
"""bf16 is taken where its matrix products run so many times as fast: below that, rounding is not paid for."""
MOST_THREADS = 1024


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """The torch device of a name; `auto` is the first GPU where there is one, else the CPU.

    Raises UsageError when the device is not here.
    """
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
    """The tensor on the device; one that goes from the CPU to a GPU is under way there, and nothing waits for it."""
    return tensor.to(device, non_blocking=(tensor.device.type, device.type) == ("cpu", "cuda"))


def check_threads(threads: int) -> int:
    """The number of CPU threads. Raises UsageError for one that no machine can start."""
    if not 1 <= threads <= MOST_THREADS:
        raise UsageError(f"threads {threads}: expected 1 to {MOST_THREADS}, best as many as there are cores")
    return threads


def resolve_precision(name: str, device: torch.device) -> str:
    """The precision of a name; `auto` is bf16 where that is worth it on this device, measured once a process, or fp32.

    Any other name comes back as it is.
    """
    return _faster_precision(device) if name == AUTO else name


@functools.cache
def _faster_precision(device: torch.device) -> str:
    size = 4096 if device.type == "cuda" else 512  # a CPU without units for bf16 takes 20 ms for one such product
    try:
        gain = matmul_peak(device, "bf16", size) / matmul_peak(device, "fp32", size)
    except (RuntimeError, TypeError):  # a device that knows no bf16
        return "fp32"
    return "bf16" if gain >= WORTH else "fp32"


def matmul_peak(device: torch.device, precision: str, size: int | None = None) -> float:
    """Floating-point operations a second of the fastest of five products of two square matrices, measured now."""
    size = size or (8192 if device.type == "cuda" else 2048)
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = torch.ones(size, size, dtype=kind, device=device), torch.ones(size, size, dtype=kind, device=device)
    found = []
    for _ in range(6):
        started = time.perf_counter()
        float((left @ right)[0, 0])  # waits for a GPU
        found.append(time.perf_counter() - started)
    return 2 * size**3 / min(found[1:])


@contextmanager
def precise(precision: str, device: torch.device) -> Iterator[None]:
    """Inside, `fp32` on a GPU means fp32: by default torch rounds what its convolutions take to TF32, 10 bits of it."""
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
    if in_autocast(device):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def precision_context(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context a forward pass runs in: `precise` for `fp32`, autocast for `bf16` (weights and logits stay fp32)."""
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    if precision == "fp32":
        return precise(precision, device)
    return torch.autocast(device.type, dtype=torch.bfloat16)
