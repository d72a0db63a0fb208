"""Weights on disk in one sealed file with the architecture beside them, and the fingerprints that tell models apart.

A flipped bit, a missing tensor and one too many are all noticed; nothing is unpickled; a file names a factory but
cannot make `load_model` import it unless the caller says so.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path as Folder
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from noisyteacher.errors import FileFormatError, MismatchError, NoisyTeacherError, UsageError
from noisyteacher.files import BLANK, SEAL, sha256
from noisyteacher.models.build import MODELS, ZOO, architecture_of, build_model
from noisyteacher.models.classifier import Classifier, as_classifier, reordered
from noisyteacher.models.frozen import FROZEN, NEEDS_TRUST
from noisyteacher.models.preprocess import PREPROCESS, blank_preprocess, is_preprocess
from noisyteacher.models.pretrained import weights_file
from noisyteacher.models.shrink import SHRINK, origin_of
from noisyteacher.rng import seeded
from noisyteacher.tensorfile import KEY, read_tensors, tensor_bytes, write_tensors

KIND = "model"
SCHEMA = 1
Path = str | os.PathLike[str]


def save_model(
    model: nn.Module, path: Path, record: dict[str, Any] | None = None, *, within: Folder | None = None
) -> None:
    """Write the model's tensors, its architecture and a JSON-able `record` (epochs, scores, ...) as one sealed file.

    Parameters and buffers, those of the preprocessing included. The file's folder is made where it is missing, but not
    `within`, a folder that must be there still. Raises WriteError when the disk refuses, and UsageError when the
    record uses the name "architecture" or the model has state that is not a tensor.
    """
    whole = as_classifier(model)
    write_tensors(path, KIND, SCHEMA, _state(whole), _content(whole, record), within)


def saved_bytes(model: nn.Module, record: dict[str, Any] | None = None) -> int:
    """The length in bytes of the file that `save_model(model, path, record)` writes."""
    whole = as_classifier(model)
    header = {"checksum": (SEAL + BLANK).decode(), "kind": KIND, "schema": SCHEMA, **_content(whole, record)}
    # The header depends on names, dtypes and shapes only; the data is the sum of the tensors.
    state = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in sorted(_state(whole).items())}
    return len(safetensors.torch.save(state, {KEY: json.dumps(header, allow_nan=False)}))


def load_model(path: Path, *, allow_import: bool = False) -> Classifier:
    """The Classifier a file holds, on the CPU and in eval mode: its architecture rebuilt, its weights filled in.

    `path` is a weights file, or `pretrained:NAME` for one that comes with the package (`pretrained()` lists them).
    A model that came from `"pkg.module:factory"` is rebuilt by importing and calling that, and one that is a
    torch.export program by torch's reader: only with `allow_import=True`. Networks of timm, torchvision and
    transformers are rebuilt by those, and nothing is fetched for it. Raises FileFormatError naming the file when it is
    damaged or does not fit its architecture, and UsageError when the model cannot be rebuilt from a name; then
    build it and call `load_weights`.
    """
    path = weights_file(path)
    tensors, record = read_tensors(path, KIND, SCHEMA)
    tensors, order = _without_order(tensors)
    model = _rebuilt(path, tensors, record, allow_import)
    if order is None:
        return model
    try:
        return reordered(model, order)
    except MismatchError as error:
        raise FileFormatError(f"{path}: {error}") from error


def _without_order(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[int] | None]:
    """The tensors of a `Reordered` network as those of the network in it, and the order; None for any other."""
    inner = "network.network."
    order = tensors.get("network.class_order")
    if (
        order is None
        or order.dtype != torch.int64
        or order.dim() != 1
        or not any(key.startswith(inner) for key in tensors)
    ):
        return tensors, None
    kept = {key: tensor for key, tensor in tensors.items() if key != "network.class_order"}
    return {
        key.replace(inner, "network.", 1) if key.startswith(inner) else key: kept[key] for key in kept
    }, order.tolist()


def _rebuilt(path: Path, tensors: dict[str, Tensor], record: dict[str, Any], allow_import: bool) -> Classifier:
    """The Classifier that a file's architecture names, filled with its tensors."""
    architecture = _checked(record.get("architecture"), path)
    name, front, shape = architecture["name"], architecture["preprocess"], tuple(architecture["input_shape"] or ())
    try:
        origin = origin_of(architecture)
    except UsageError as error:
        raise FileFormatError(f"{path}: {error}") from error
    if origin.startswith("module:") or not is_preprocess(front) or len(shape) != 3:
        raise UsageError(
            f"{path}: holds {name!r} with preprocessing {front!r}{'' if origin == name else f' of {origin!r}'}, which "
            "cannot be rebuilt from its name: build the module yourself and call load_weights(model, path)"
        )
    options, library = architecture["options"], origin.partition(":")[0]
    if name.partition(":")[0] in (*ZOO, *FROZEN):
        build = _from_library if library in ZOO else _from_file
        if name.startswith("pt2:") and not allow_import:
            raise UsageError(f"{path}: {NEEDS_TRUST}")
        model = build(architecture, tensors, path)
        _fill(model, tensors, path)
        return model.eval()
    asked: dict[str, Any] = {"teacher": options["of"]} if name.startswith(SHRINK) else options
    if ":" in origin and library not in ZOO:
        if not allow_import:
            raise UsageError(
                f"{path}: rebuilding this model means importing and calling {origin!r}: if you trust the file, pass "
                "--allow-import (in Python allow_import=True)"
            )
        model = build_model(
            name, classes=architecture["classes"], input_shape=shape, preprocess=blank_preprocess(front, shape), **asked
        )
        _fill(model, tensors, path)
        return model.eval()
    if library in ZOO:  # narrowed: all its tensors are those of layers, so all are in the file
        _refuse_lookups(library, _origin_options(options), path)
    elif origin not in MODELS:
        raise FileFormatError(f"{path}: holds a model {origin!r}, which this version does not know")
    try:
        # On the meta device nothing is allocated before names and shapes are known to fit the file.
        with torch.device("meta"):
            front_module = blank_preprocess(front, shape)
            if name.startswith(SHRINK):
                model = build_model(
                    name, classes=architecture["classes"], input_shape=shape, preprocess=front_module, **asked
                )
            else:
                network = MODELS[name](architecture["classes"], shape, **options)
                record = architecture_of(name, architecture["classes"], shape, options, front)
                model = Classifier(front_module, network, record)
    except (NoisyTeacherError, TypeError, RuntimeError) as error:
        raise FileFormatError(f"{path}: the architecture in it cannot be built: {error}") from error
    _fill(model, tensors, path, assign=True)
    return model.eval()


def _from_library(architecture: dict[str, Any], tensors: dict[str, Tensor], path: Path) -> Classifier:
    """A network of timm, torchvision or transformers as a file describes it, untrained; nothing is fetched for it."""
    prefix, _, rest = architecture["name"].partition(":")
    options, shape = architecture["options"], tuple(architecture["input_shape"])
    _refuse_lookups(prefix, options, path)
    for device in ("meta", "cpu"):  # nothing is allocated before names and shapes are known to fit the file
        try:
            with torch.device(device), seeded(0, "init", rest):
                network = ZOO[prefix](rest, architecture["classes"], shape, options).network
                model = Classifier(blank_preprocess(architecture["preprocess"], shape), network, architecture)
        except (NoisyTeacherError, TypeError, RuntimeError) as error:
            raise FileFormatError(f"{path}: the architecture in it cannot be built: {error}") from error
        _check_fit(model, tensors, path)
    return model


def _origin_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options of the network that was narrowed first; `origin_of` has checked the record."""
    of = options["of"]
    while of["name"].startswith(SHRINK):
        of = of["options"]["of"]
    found: dict[str, Any] = of["options"]
    return found


def _refuse_lookups(library: str, options: dict[str, Any], path: Path) -> None:
    """Raises FileFormatError for options with which a library would look something up to build its network."""
    if "pretrained" in options or (library == "hf" and set(options) != {"config"}):
        raise FileFormatError(
            f"{path}: the options {sorted(options)} in it do not describe a network of {library} alone"
        )


def _from_file(architecture: dict[str, Any], tensors: dict[str, Tensor], path: Path) -> Classifier:
    """A network that is a file itself, whose bytes are among the tensors."""
    file, shape = tensors.get("network.file"), tuple(architecture["input_shape"])
    if file is None or file.dtype != torch.uint8:
        raise FileFormatError(f"{path}: holds no file of the network {architecture['name']!r}")
    try:
        network = FROZEN[architecture["name"].partition(":")[0]](file)
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}") from error
    return Classifier(blank_preprocess(architecture["preprocess"], shape), network, architecture)


def load_weights(model: nn.Module, path: Path) -> None:
    """Nothing comes back: the model's tensors are replaced by those of the file, all or none.

    Raises FileFormatError naming the file, and separately the missing, the unexpected and the misshapen tensors.
    """
    tensors, _ = read_tensors(path, KIND, SCHEMA)
    _fill(as_classifier(model), tensors, path)


def model_record(path: Path) -> dict[str, Any]:
    """The record beside the weights: "architecture" and what was given to `save_model`. Raises FileFormatError."""
    _, record = read_tensors(path, KIND, SCHEMA)
    return record


def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 (hex) over the network's tensors in order of name: name, dtype, shape and bytes of each.

    The preprocessing's buffers are not in it: they have a fingerprint of their own, so that an error can tell them
    apart.
    """
    return _fingerprint(as_classifier(model).network.state_dict())


def preprocess_fingerprint(model: nn.Module) -> str:
    """SHA-256 (hex) over the preprocessing: its printed form (kind and settings) and its buffers."""
    front = as_classifier(model).preprocess
    return sha256([_printed(front).encode(), _fingerprint(front.state_dict()).encode()])


def code_fingerprint(model: nn.Module) -> str:
    """SHA-256 (hex) over the printed module tree, the architecture and the names of all known preprocessings.

    It changes with a layer, an order or an option, not with a weight. What a module computes beyond what it prints is
    not seen.
    """
    whole = as_classifier(model)
    words = json.dumps([whole.architecture, sorted(PREPROCESS)], sort_keys=True)
    return sha256([_printed(whole).encode(), words.encode()])


def _printed(module: nn.Module) -> str:
    """The module tree as text without memory addresses, which differ between processes."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", str(module))


def _fingerprint(state: dict[str, Any]) -> str:
    parts: list[bytes] = []
    for name, tensor in sorted(state.items()):
        if isinstance(tensor, Tensor):
            parts += [f"{name}\x1f{tensor.dtype}\x1f{tuple(tensor.shape)}\x1f".encode(), tensor_bytes(tensor)]
        else:
            parts.append(f"{name}\x1f{tensor!r}\x1f".encode())
    return sha256(parts)


def _state(model: Classifier) -> dict[str, Tensor]:
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UsageError(f"the model's state {name!r} is a {type(value).__name__}: only tensors are saved")
    return dict(state)


def _content(model: Classifier, record: dict[str, Any] | None) -> dict[str, Any]:
    extra = dict(record or {})
    taken = sorted({"architecture", "checksum", "kind", "schema"} & extra.keys())
    if taken:
        raise UsageError(f"the record may not use the names {taken}: the file needs them itself")
    return {"architecture": model.architecture, **extra}


def _checked(architecture: Any, path: Path) -> dict[str, Any]:
    """The architecture, once its five fields are there and of the right types."""
    kinds = {
        "name": str,
        "classes": (int, type(None)),
        "input_shape": (list, type(None)),
        "options": dict,
        "preprocess": str,
    }
    for key, kind in kinds.items():
        there = isinstance(architecture, dict) and key in architecture
        if not there or not isinstance(architecture[key], kind):  # type: ignore[arg-type]
            raise FileFormatError(
                f"{path}: the record's architecture lacks a valid {key!r}: not a model of noisyteacher"
            )
    checked: dict[str, Any] = architecture
    return checked


def _fill(model: Classifier, tensors: dict[str, Tensor], path: Path, assign: bool = False) -> None:
    _check_fit(model, tensors, path)
    # Clones: tensors of a file share one buffer that must not be written through.
    model.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=assign)


def _check_fit(model: Classifier, tensors: dict[str, Tensor], path: Path) -> None:
    own = model.state_dict()
    shared = own.keys() & tensors.keys()
    shapes = [
        f"{name} {_kind(tensors[name])} instead of {_kind(own[name])}"
        for name in sorted(shared)
        if _kind(tensors[name]) != _kind(own[name])
    ]
    problems = {
        "missing": sorted(own.keys() - shared),
        "unexpected": sorted(tensors.keys() - shared),
        "of another shape or dtype": shapes,
    }
    if any(problems.values()):
        told = "; ".join(f"{what}: {', '.join(names)}" for what, names in problems.items() if names)
        raise FileFormatError(
            f"{path}: its tensors do not fit the model {model.name!r} ({told}): load it into the model it was saved "
            "from"
        )


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"
