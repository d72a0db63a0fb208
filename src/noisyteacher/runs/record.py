"""What goes into a run's JSON files: plain values, who made the run, and how two records differ."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from noisyteacher.errors import UsageError
from noisyteacher.text import flat

ABSENT = "(absent)"
"""Stands for a value in a difference where one side has no such key."""


def plain(value: Any, where: str, null_for_nan: bool = False) -> Any:
    """The value as JSON can hold it: tuples as lists, paths as text, scalars of numpy and torch as numbers.

    Raises UsageError naming the key of what cannot be held; a number that is not finite is that too, or null.
    """
    if value is None or isinstance(value, bool | str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, float):
        if null_for_nan:
            return None
        raise UsageError(f"{where} is {value}: JSON has no such number")
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value), where, null_for_nan)
    if isinstance(value, dict):
        bad = [key for key in value if not isinstance(key, str)]
        if bad:
            raise UsageError(f"{where} has the key {bad[0]!r}: keys must be text")
        return {key: plain(item, f"{where}.{key}", null_for_nan) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{place}]", null_for_nan) for place, item in enumerate(value)]
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return plain(value.item(), where, null_for_nan)
    raise UsageError(f"{where} is a {type(value).__name__}: only text, numbers, lists and tables can be recorded")


def compare(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """The (dotted key, value in a, value in b) that differ, in order of key; ABSENT for a key that is not there.

    `compare({"noise": {"sigma": 0.6}}, {"noise": {"sigma": 0.9}}) == [("noise.sigma", 0.6, 0.9)]`.
    """
    left, right = flat(a), flat(b)
    pairs = ((key, left.get(key, ABSENT), right.get(key, ABSENT)) for key in sorted({**left, **right}))
    return [(key, old, new) for key, old, new in pairs if old != new or type(old) is not type(new)]


def by_name(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings by the names that people give them: a training has them under `config`, a sweep under `base`."""
    for place in ("config", "base"):
        if isinstance(config.get(place), dict):
            return {**config[place], **{key: value for key, value in config.items() if key != place}}
    return dict(config)


def versions() -> dict[str, str]:
    """The versions that can change a number: noisyteacher, torch, numpy, python."""
    found = {"python": platform.python_version()}
    for name in ("noisyteacher", "torch", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


def host() -> dict[str, Any]:
    """The machine, without its name: cpu, cores this process may use, torch's threads, gpu (None without), platform."""
    import torch  # only a run that is made needs it; listing runs must start fast

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "platform": platform.platform(),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
