"""Weights that another program saved, put into a network of ours: their wrappers and prefixes found and taken off."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from noisyteacher.errors import FileFormatError, MismatchError
from noisyteacher.files import read_bytes
from noisyteacher.models.classifier import Classifier
from noisyteacher.models.torchfile import Inert, Stored, is_torch_file, read_torch_file
from noisyteacher.text import few, plural

WRAPPERS = (
    "state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params",
    "state_dict_ema", "ema_state_dict", "model_ema", "ema",
)  # fmt: skip
"""Keys under which training programs keep a model's state dict, in the order in which they are looked for."""
ENDINGS = (".pt", ".pth", ".bin", ".ckpt", ".pth.tar", ".pt.tar", ".pkl", ".pickle")
"""How files of torch.save are mostly called, in any case; whether one is is decided by its first bytes."""


def load_foreign(model: Classifier, path: str | os.PathLike[str], *, new_head: bool = False) -> int | None:
    """The number of classes in the file where its head was left out, else None; the network's tensors are the file's.

    All are replaced or none. With `new_head`, a file for other classes gives all but its head, which stays as built.

    A file of safetensors or of torch.save, whatever it is called; nothing in it is run. The state dict may lie
    in one of WRAPPERS, and its names may have one prefix before them (`module.`, `model.`); what has another prefix,
    an optimiser's state for instance, is passed over. Floating-point tensors are converted to the network's dtype.
    Raises FileFormatError naming the file when it is damaged, holds more than tensors or values that are not finite;
    MismatchError with the tensors that are missing, unexpected or of another shape.
    """
    own = model.network.state_dict()
    state = _unprefixed(_state_of(path), own, path)
    counters = {name for name in own if name.endswith("num_batches_tracked")}  # older files lack them
    problems = {
        "missing": sorted(own.keys() - state.keys() - counters),
        "unexpected": sorted(state.keys() - own.keys()),
    }
    filled = {name: _tensor(state[name]) for name in own.keys() & state.keys()} if not any(problems.values()) else {}
    head = _head_of_other_classes(own, filled, model.classes)
    if new_head and head is not None:
        filled = {name: tensor for name, tensor in filled.items() if tensor.shape == own[name].shape}
    problems["of another shape"] = [
        f"{name} {list(tensor.shape)} instead of {list(own[name].shape)}"
        for name, tensor in sorted(filled.items())
        if tensor.shape != own[name].shape
    ]
    if head is not None and not new_head:
        raise MismatchError(
            f"{path}: its head has {head} classes, {model.name!r} here {model.classes}: it fits once that is trained "
            "with a new head, as train and compress do with teacher.weights"
        )
    if any(problems.values()):
        told = "; ".join(f"{what}: {few(names, 4)}" for what, names in problems.items() if names)
        raise MismatchError(
            f"{path}: its tensors are not those of {model.name!r} with {model.classes} classes ({told}): name the "
            "network that they were saved from, with its options"
        )
    for name, tensor in filled.items():
        if tensor.is_floating_point() != own[name].is_floating_point():
            raise MismatchError(f"{path}: its tensor {name} is {tensor.dtype}, {model.name!r} has {own[name].dtype}")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise FileFormatError(f"{path}: its tensor {name} has values that are not finite")
    model.network.load_state_dict({**own, **{name: one.to(own[name].dtype) for name, one in filled.items()}})
    return head


def _head_of_other_classes(own: Mapping[str, Tensor], filled: Mapping[str, Tensor], classes: int | None) -> int | None:
    """The classes of the file where nothing but layers of one output per class has other shapes, else None."""
    differ = [(own[name].shape, tensor.shape) for name, tensor in filled.items() if own[name].shape != tensor.shape]
    outputs = {theirs[0] if theirs else 0 for _, theirs in differ}
    heads = all(ours[:1] == (classes,) and ours[1:] == theirs[1:] for ours, theirs in differ)
    heads = heads and any(len(theirs) > 1 for _, theirs in differ)
    return outputs.pop() if heads and len(outputs) == 1 and len(differ) < len(filled) else None


def _state_of(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The state dict in the file: names to tensors, or to what `_tensor` makes a tensor of."""
    data = read_bytes(path)
    if is_torch_file(data):
        return _unwrapped(read_torch_file(path, data), path)
    try:
        return dict(safetensors.torch.load(data))
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise FileFormatError(
            f"{path}: neither a file of torch.save nor one of safetensors ({error}): it is damaged, or of another kind"
        ) from error


def _tensor(value: Any) -> Tensor:
    read: Tensor = value.read() if isinstance(value, Stored) else value
    return read


def _unwrapped(record: Any, path: str | os.PathLike[str]) -> dict[str, Any]:
    for _ in range(4):
        if not isinstance(record, dict):
            break
        tensors = {name: one for name, one in record.items() if isinstance(name, str) and isinstance(one, Stored)}
        inner = [key for key in WRAPPERS if isinstance(record.get(key), dict) and record[key]]
        if inner:
            record = record[inner[0]]
        elif tensors:
            return tensors
        else:
            break
    keys = f" with the keys {few([str(key)[:40] for key in record])}" if isinstance(record, dict) else ""
    held = record.name if isinstance(record, Inert) else type(record).__name__.strip("_").lower()
    modules = [one for one in (record, *(record.values() if isinstance(record, dict) else ())) if _is_module(one)]
    whole = " (a whole module was saved, not its state dict)" if modules else ""
    raise FileFormatError(
        f"{path}: no state dict found in it: it holds a {held}{keys}{whole}; expected "
        f"names and tensors, by themselves or under one of {', '.join(WRAPPERS)}"
    )


def _is_module(value: Any) -> bool:
    return isinstance(value, Inert) and value.name.startswith("torch.nn.modules")


def _unprefixed(state: Mapping[str, Any], own: Collection[str], path: str | os.PathLike[str]) -> dict[str, Any]:
    """The entries that have the one prefix under which most of the network's own names are found, without it."""
    plain = {name.replace("_orig_mod.", ""): one for name, one in state.items()}
    prefixes = {""}
    for last in [name for name in own if not name.endswith("num_batches_tracked")][-3:]:
        prefixes |= {name.removesuffix(last) for name in plain if name.endswith(f".{last}")}
    matches = {prefix: sum(f"{prefix}{name}" in plain for name in own) for prefix in prefixes}
    most = max(matches.values())
    best = sorted(prefix for prefix, number in matches.items() if number == most)
    if most and len(best) > 1:
        raise MismatchError(
            f"{path}: holds {plural(len(best), 'set')} of weights that fit, under {', '.join(map(repr, best))}: save "
            "the one that is meant by itself"
        )
    prefix = best[0] if most else ""
    return {name.removeprefix(prefix): one for name, one in plain.items() if name.startswith(prefix)}
