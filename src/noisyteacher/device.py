"""Where the arithmetic runs, and in what precision."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext

import torch

from noisyteacher.errors import AskedWronglyError
from noisyteacher.text import unknown_name

PRECISIONS = ("fp32", "bf16")
MOST_THREADS = 1024


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """The torch device of a name; `auto` is the first GPU where there is one, else the CPU.

    Raises AskedWronglyError when the device is not here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # `meta` makes tensors, but no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise AskedWronglyError(f"device {str(name)!r} cannot be used here ({reason}); give cpu or auto") from error
    return device


def check_threads(threads: int) -> int:
    """The number of CPU threads. Raises AskedWronglyError for one that no machine can start."""
    if not 1 <= threads <= MOST_THREADS:
        raise AskedWronglyError(f"threads {threads}: expected 1 to {MOST_THREADS}, best as many as there are cores")
    return threads


def matmul_peak(device: torch.device, precision: str) -> float:
    """Floating-point operations a second of the fastest of five products of two square matrices, measured now."""
    size = 8192 if device.type == "cuda" else 2048
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = torch.ones(size, size, dtype=kind, device=device), torch.ones(size, size, dtype=kind, device=device)
    found = []
    for _ in range(6):
        started = time.perf_counter()
        float((left @ right)[0, 0])  # waits for a GPU
        found.append(time.perf_counter() - started)
    return 2 * size**3 / min(found[1:])


def precision_context(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context a forward pass runs in: nothing for `fp32`, autocast for `bf16` (weights and logits stay fp32)."""
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
