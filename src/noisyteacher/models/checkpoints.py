"""Weights from the checkpoints of other training programs: files of torch.save and safetensors, put into a network.

torch reads its own files with `weights_only=True`, which refuses to run code in them.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import warnings
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy._core import multiarray
from torch import Tensor

from noisyteacher.errors import FileFormatError, MismatchError
from noisyteacher.io.files import read_bytes
from noisyteacher.models.classifier import Classifier
from noisyteacher.text import few, plural

WRAPPERS = (
    "state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params",
    "state_dict_ema", "ema_state_dict", "model_ema", "ema",
)  # fmt: skip
"""Keys under which training programs keep a model's state dict, in the order in which they are tried."""
ENDINGS = (".pt", ".pth", ".bin", ".ckpt", ".pth.tar", ".pt.tar", ".pkl", ".pickle")
"""Usual endings of torch.save's files, in any case; the first bytes decide whether a file is one."""
ZIP, PICKLE = b"PK\x03\x04", b"\x80"
"""First bytes of an archive of torch.save, and of a bare pickle."""
_NUMPY = ("numpy._core.multiarray", "numpy.core.multiarray")
HARMLESS: list[Any] = [
    argparse.Namespace,
    *((getattr(pathlib, name), f"{module}.{name}")
      for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "PurePosixPath")),
    *((getattr(multiarray, name), f"{module}.{name}") for module in _NUMPY for name in ("scalar", "_reconstruct")),
    np.dtype, np.ndarray, *(type(np.dtype(code)) for code in "?bBhHiIlLqQefdgSU"),
]  # fmt: skip
"""Classes that training programs save beside the weights (settings, paths, numpy scalars) and that run no code."""


def load_foreign(model: Classifier, path: str | os.PathLike[str], *, new_head: bool = False) -> int | None:
    """Replace the network's tensors by those of a checkpoint, all or none; returns the file's classes if they differ.

    With `new_head`, a file for other classes gives all tensors but the head, which stays as built, and its number of
    classes is returned; otherwise None. The state dict may be under one of WRAPPERS, and its names may have one prefix
    (`module.`, `model.`); entries with another prefix, an optimizer's state for instance, are ignored. Floating-point
    tensors are converted to the network's dtype. Raises FileFormatError naming the file when it is damaged, would run
    code or has values that are not finite; MismatchError with the tensors that are missing, unexpected or of another
    shape.
    """
    expected = model.network.state_dict()
    state = _strip_prefix(read_state_dict(path), expected, path)
    counters = {name for name in expected if name.endswith("num_batches_tracked")}  # older files lack them
    problems = {
        "missing": sorted(expected.keys() - state.keys() - counters),
        "unexpected": sorted(state.keys() - expected.keys()),
    }
    tensors = {} if any(problems.values()) else state
    head = _classes_of_other_head(expected, tensors, model.classes)
    if head is not None and not new_head:
        raise MismatchError(
            f"{path}: its head has {head} classes, {model.name!r} here {model.classes}: it fits once that is trained "
            "with a new head, as train and compress do with teacher.weights"
        )
    if head is not None:
        tensors = {name: tensor for name, tensor in tensors.items() if tensor.shape == expected[name].shape}
    problems["of another shape"] = [
        f"{name} {list(tensor.shape)} instead of {list(expected[name].shape)}"
        for name, tensor in sorted(tensors.items())
        if tensor.shape != expected[name].shape
    ]
    if any(problems.values()):
        differences = "; ".join(f"{problem}: {few(names, 4)}" for problem, names in problems.items() if names)
        raise MismatchError(
            f"{path}: its tensors are not those of {model.name!r} with {model.classes} classes ({differences}): name "
            "the network that they were saved from, with its options"
        )
    for name, tensor in tensors.items():
        if tensor.is_floating_point() != expected[name].is_floating_point():
            raise MismatchError(
                f"{path}: its tensor {name} is {tensor.dtype}, {model.name!r} has {expected[name].dtype}"
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise FileFormatError(f"{path}: its tensor {name} has values that are not finite")
    converted = {name: tensor.to(expected[name].dtype) for name, tensor in tensors.items()}
    model.network.load_state_dict({**expected, **converted})
    return head


def begins_as_torch_file(path: str | os.PathLike[str]) -> bool:
    """Whether the file exists and its first bytes are those of torch.save or a pickle rather than of safetensors.

    A safetensors file begins with the length of its header, which may look like a pickle, and the header's brace.
    """
    try:
        if not Path(path).is_file():
            return False
        with Path(path).open("rb") as file:
            first = file.read(9)
    except (OSError, ValueError):
        return False
    return first.startswith(ZIP) or (first.startswith(PICKLE) and first[5:9] != b"\x00\x00\x00{")


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors by name in a file of torch.save or safetensors. Raises FileFormatError naming the file."""
    if begins_as_torch_file(path):
        return _unwrap(_read_torch_file(path), path)
    try:
        return dict(safetensors.torch.load(read_bytes(path)))
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise FileFormatError(
            f"{path}: neither a file of torch.save nor one of safetensors ({error}): it is damaged, or of another kind"
        ) from error


def _read_torch_file(path: str | os.PathLike[str]) -> Any:
    """What torch.save wrote, its tensors mapped from the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise zipfile.BadZipFile("compressed, which torch.save never does")  # mapped, it would be misread
        with warnings.catch_warnings(), torch.serialization.safe_globals(HARMLESS):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged archive or pickle raises whatever it meets
        raise FileFormatError(
            f"{path}: not a file of tensors that torch reads without running code ({_reason(path, error)}); if you "
            "trust it, load it in torch yourself and save the tensors by torch.save(model.state_dict(), FILE)"
        ) from error


def _reason(path: str | os.PathLike[str], error: Exception) -> str:
    """The classes and functions that the file would call, or why it cannot be read."""
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(HARMLESS):
            warnings.simplefilter("ignore")
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # not an archive of torch.save
        names = []
    if names:
        whole = (
            ", a whole module instead of its state dict" if any(name.startswith("torch.nn") for name in names) else ""
        )
        return f"it needs {few(sorted(name[:80] for name in names), 4)}{whole}"
    return f"{type(error).__name__}: {error}".split("\n")[0][:200]


def _unwrap(record: Any, path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The state dict in what a training program saved."""
    for _ in range(4):
        if not isinstance(record, dict):
            break
        inner = [record[key] for key in WRAPPERS if isinstance(record.get(key), dict) and record[key]]
        if not inner:
            tensors = {
                name: value for name, value in record.items() if isinstance(name, str) and isinstance(value, Tensor)
            }
            if tensors:
                return tensors
            break
        record = inner[0]
    keys = f" with the keys {few([str(key)[:40] for key in record])}" if isinstance(record, dict) else ""
    raise FileFormatError(
        f"{path}: no state dict in it, but a {type(record).__name__}{keys}; expected names and tensors, by themselves "
        f"or under one of {', '.join(WRAPPERS)}"
    )


def _strip_prefix(
    state: Mapping[str, Tensor], expected: Collection[str], path: str | os.PathLike[str]
) -> dict[str, Tensor]:
    """The entries with the prefix under which most of the network's names are found, without it."""
    state = {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items()}
    prefixes = {""}
    for last in [name for name in expected if not name.endswith("num_batches_tracked")][-3:]:
        prefixes |= {name.removesuffix(last) for name in state if name.endswith(f".{last}")}
    matches = {prefix: sum(f"{prefix}{name}" in state for name in expected) for prefix in prefixes}
    most = max(matches.values())
    best = sorted(prefix for prefix, number in matches.items() if number == most)
    if most and len(best) > 1:
        raise MismatchError(
            f"{path}: holds {plural(len(best), 'set')} of weights that fit, under {', '.join(map(repr, best))}: save "
            "one of them in a file of its own"
        )
    prefix = best[0] if most else ""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _classes_of_other_head(
    expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], classes: int | None
) -> int | None:
    """The file's number of classes where nothing but layers of one output per class has other shapes, else None."""
    differing = [
        (expected[name].shape, tensor.shape) for name, tensor in tensors.items() if expected[name].shape != tensor.shape
    ]
    outputs = {shape[0] if shape else 0 for _, shape in differing}
    is_head = all(ours[:1] == (classes,) and ours[1:] == theirs[1:] for ours, theirs in differing)
    has_weight = any(len(shape) > 1 for _, shape in differing)
    return outputs.pop() if is_head and has_weight and len(outputs) == 1 and len(differing) < len(tensors) else None
