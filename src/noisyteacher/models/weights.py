"""Weights on disk in one sealed file with the architecture beside them, the package's trained models, and fingerprints.

A flipped bit and a missing or additional tensor are noticed; nothing is unpickled; a file that names a factory cannot
make `load_model` import it unless the caller allows it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from noisyteacher.errors import FileFormatError, MismatchError, NoisyTeacherError, UsageError
from noisyteacher.io.files import BLANK, SEAL, sha256
from noisyteacher.io.tensors import KEY, read_tensors, tensor_bytes, write_tensors
from noisyteacher.models.build import MODELS, PREFIX, ZOO, build_model
from noisyteacher.models.classifier import Classifier, as_classifier, reordered
from noisyteacher.models.narrow import SHRINK, original_architecture
from noisyteacher.models.onnx_teacher import ONNX, OnnxNetwork
from noisyteacher.models.preprocess import PREPROCESS, blank_preprocess, is_preprocess
from noisyteacher.rng import seeded
from noisyteacher.text import unknown_name

KIND = "model"
SCHEMA = 1
SHIPPED = Path(__file__).with_name("shipped")
HUB_WEIGHTS = "model.safetensors"
"""The weights in a folder that was made for the Hugging Face hub."""
AnyPath = str | os.PathLike[str]


def save_model(
    model: nn.Module, path: AnyPath, record: dict[str, Any] | None = None, *, within: Path | None = None
) -> None:
    """Write the model's tensors, its architecture and a JSON-able `record` (epochs, scores, ...) as one sealed file.

    Parameters and buffers, those of the preprocessing included. Missing folders are created, but not `within`, which
    must exist. Raises WriteError when the disk refuses, and UsageError when the record uses the name "architecture" or
    the model has state that is not a tensor.
    """
    classifier = as_classifier(model)
    write_tensors(path, KIND, SCHEMA, _state(classifier), _content(classifier, record), within)


def saved_bytes(model: nn.Module, record: dict[str, Any] | None = None) -> int:
    """The length in bytes of the file that `save_model(model, path, record)` writes."""
    classifier = as_classifier(model)
    header = {"checksum": (SEAL + BLANK).decode(), "kind": KIND, "schema": SCHEMA, **_content(classifier, record)}
    # The header depends on names, dtypes and shapes only; the data is the sum of the tensors.
    state = {
        name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in sorted(_state(classifier).items())
    }
    return len(safetensors.torch.save(state, {KEY: json.dumps(header, allow_nan=False)}))


def load_model(path: AnyPath, *, allow_import: bool = False) -> Classifier:
    """The Classifier in a file, on the CPU and in eval mode: its architecture rebuilt, its weights filled in.

    `path` is a weights file, or `pretrained:NAME` for a model that comes with the package (`pretrained()` lists them).
    A model from `"pkg.module:factory"` is rebuilt by importing and calling that, only with `allow_import=True`.
    Networks of timm, torchvision and transformers are rebuilt by those libraries without downloads. Raises
    FileFormatError naming the file when it is damaged or does not fit its architecture, and UsageError when the model
    cannot be rebuilt from a name; then build it and call `load_weights`.
    """
    path = weights_file(path)
    tensors, record = read_tensors(path, KIND, SCHEMA)
    order = tensors.pop("network.class_order", None)
    if order is not None:  # of a Reordered network: the network in it is rebuilt, then reordered
        tensors = {
            f"network.{name.removeprefix('network.network.')}" if name.startswith("network.network.") else name: tensor
            for name, tensor in tensors.items()
        }
    model = _rebuild(path, tensors, record, allow_import).eval()
    if order is None:
        return model
    try:
        return reordered(model, order.tolist())
    except (MismatchError, TypeError) as error:
        raise FileFormatError(f"{path}: {error}") from error


def load_weights(model: nn.Module, path: AnyPath) -> None:
    """Replace the model's tensors by those of the file, all or none.

    Raises FileFormatError with the missing, the unexpected and the misshapen tensors.
    """
    tensors, _ = read_tensors(path, KIND, SCHEMA)
    _fill(as_classifier(model), tensors, path)


def model_record(path: AnyPath) -> dict[str, Any]:
    """The record beside the weights: "architecture" and what `save_model` was given. Raises FileFormatError."""
    _, record = read_tensors(path, KIND, SCHEMA)
    return record


def pretrained() -> dict[str, dict[str, Any]]:
    """The cards of the package's trained models: model, data, recipe, seed, scores with n, versions, SHA-256, licence.

    `pretrained()["lenet-mnist"]["scores"]["test"]["error"]`.
    """
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(SHIPPED.glob("*.json"))}


def weights_file(path: AnyPath) -> Path:
    """The file of `pretrained:NAME`, the weights in a folder that was made for the hub, or the path itself.

    Raises UnknownNameError for a name that the package does not have.
    """
    text = os.fspath(path)
    if not text.startswith(PREFIX):
        inside = os.path.join(text, HUB_WEIGHTS)
        return Path(inside if os.path.isfile(inside) else text)
    name = text.removeprefix(PREFIX)
    names = [file.stem for file in SHIPPED.glob("*.json")]
    if name not in names:
        raise unknown_name("pretrained model", name, names)
    return SHIPPED / f"{name}.safetensors"


# -------------------------------------------------------------------------------------------------- rebuilding


def _rebuild(path: Path, tensors: dict[str, Tensor], record: dict[str, Any], allow_import: bool) -> Classifier:
    """The Classifier that a file's architecture describes, filled with its tensors."""
    architecture = _check_architecture(record.get("architecture"), path)
    name, preprocess, options = architecture["name"], architecture["preprocess"], architecture["options"]
    classes, shape = architecture["classes"], tuple(architecture["input_shape"] or ())
    try:
        origin = original_architecture(architecture)
    except UsageError as error:
        raise FileFormatError(f"{path}: {error}") from error
    if origin["name"].startswith("module:") or not is_preprocess(preprocess) or len(shape) != 3:
        narrowed = "" if origin is architecture else f" of {origin['name']!r}"
        raise UsageError(
            f"{path}: the model {name!r}{narrowed} with preprocessing {preprocess!r} cannot be rebuilt from its name: "
            "build the module yourself and call load_weights(model, path)"
        )
    kind, _, rest = name.partition(":")
    arguments = {"teacher": options["of"]} if name.startswith(SHRINK) else options
    if _is_imported(path, origin, origin is not architecture, allow_import):
        front = blank_preprocess(preprocess, shape)
        model = build_model(name, classes=classes, input_shape=shape, preprocess=front, **arguments)
        return _fill(model, tensors, path)

    def build() -> Classifier:
        front = blank_preprocess(preprocess, shape)
        if kind == ONNX:
            file = tensors.get("network.file")
            if file is None or file.dtype != torch.uint8:
                raise FileFormatError(f"the file of the network {name!r} is missing")
            return Classifier(front, OnnxNetwork(file), architecture)
        if kind in ZOO:
            with seeded(0, "init", rest):
                return Classifier(front, ZOO[kind](rest, classes, shape, options).network, architecture)
        return build_model(name, classes=classes, input_shape=shape, preprocess=front, **arguments)

    try:
        # On the meta device nothing is allocated before names and shapes are known to fit the file.
        with torch.device("cpu" if kind == ONNX else "meta"):
            model = build()
        if kind in ZOO:  # has tensors that are not in its state dict, so it is built again on the CPU
            _check_fit(model, tensors, path)
            model = build()
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}".replace(f"{path}: {path}", str(path))) from error
    except (NoisyTeacherError, TypeError, RuntimeError) as error:
        raise FileFormatError(f"{path}: the architecture in it cannot be built: {error}") from error
    return _fill(model, tensors, path, assign=kind not in (*ZOO, ONNX))


def _is_imported(path: Path, origin: Mapping[str, Any], narrowed: bool, allow_import: bool) -> bool:
    """Whether the architecture is that of a factory, which may be imported; checks that any other is known."""
    name, library = origin["name"], origin["name"].partition(":")[0]
    if library in ZOO:
        if "pretrained" in origin["options"] or (library == "hf" and set(origin["options"]) != {"config"}):
            raise FileFormatError(
                f"{path}: the options {sorted(origin['options'])} do not describe a network of {library} alone"
            )
    elif library == "pt2":
        raise UsageError(f"{path}: holds a torch.export program, which cannot be loaded: export the model to ONNX")
    elif library == ONNX:
        if narrowed:  # never written, and by its name onnx would be imported as if it were a user's module
            raise FileFormatError(f"{path}: an ONNX model cannot be narrowed")
    elif ":" in name:
        if not allow_import:
            raise UsageError(
                f"{path}: rebuilding this model means importing and calling {name!r}: if you trust the file, pass "
                "--allow-import (in Python allow_import=True)"
            )
        return True
    elif name not in MODELS:
        raise FileFormatError(f"{path}: this version does not know the model {name!r}")
    return False


def _check_architecture(architecture: Any, path: Path) -> dict[str, Any]:
    """The architecture, once its five fields are there and of the right types."""
    types = {
        "name": str,
        "classes": (int, type(None)),
        "input_shape": (list, type(None)),
        "options": dict,
        "preprocess": str,
    }
    for key, expected in types.items():
        present = isinstance(architecture, dict) and key in architecture
        if not present or not isinstance(architecture[key], expected):  # type: ignore[arg-type]
            raise FileFormatError(
                f"{path}: the record's architecture lacks a valid {key!r}: not a model of noisyteacher"
            )
    checked: dict[str, Any] = architecture
    return checked


def _fill(model: Classifier, tensors: dict[str, Tensor], path: AnyPath, assign: bool = False) -> Classifier:
    _check_fit(model, tensors, path)
    # Clones: tensors of a file share one buffer that must not be written through.
    model.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=assign)
    return model


def _check_fit(model: Classifier, tensors: dict[str, Tensor], path: AnyPath) -> None:
    def describe(tensor: Tensor) -> str:
        return f"{tensor.dtype} {tuple(tensor.shape)}"

    expected = model.state_dict()
    shared = expected.keys() & tensors.keys()
    problems = {
        "missing": sorted(expected.keys() - shared),
        "unexpected": sorted(tensors.keys() - shared),
        "of another shape or dtype": [
            f"{name} {describe(tensors[name])} instead of {describe(expected[name])}"
            for name in sorted(shared)
            if describe(tensors[name]) != describe(expected[name])
        ],
    }
    if any(problems.values()):
        differences = "; ".join(f"{problem}: {', '.join(names)}" for problem, names in problems.items() if names)
        raise FileFormatError(
            f"{path}: its tensors do not fit the model {model.name!r} ({differences}): load it into the model it was "
            "saved from"
        )


def _state(model: Classifier) -> dict[str, Tensor]:
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UsageError(f"the model's state {name!r} is a {type(value).__name__}: only tensors are saved")
    return dict(state)


def _content(model: Classifier, record: dict[str, Any] | None) -> dict[str, Any]:
    extra = dict(record or {})
    reserved = sorted({"architecture", "checksum", "kind", "schema"} & extra.keys())
    if reserved:
        raise UsageError(f"the record may not use the names {reserved}: the file needs them itself")
    return {"architecture": model.architecture, **extra}


# ------------------------------------------------------------------------------------------------ fingerprints


def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 (hex) over the network's tensors in order of name: name, dtype, shape and bytes of each.

    The preprocessing's buffers have a fingerprint of their own, so that an error can say which of the two differs.
    """
    return _fingerprint(as_classifier(model).network.state_dict())


def preprocess_fingerprint(model: nn.Module) -> str:
    """SHA-256 (hex) over the preprocessing: its printed form (kind and settings) and its buffers."""
    preprocess = as_classifier(model).preprocess
    return sha256([_printed(preprocess).encode(), _fingerprint(preprocess.state_dict()).encode()])


def code_fingerprint(model: nn.Module) -> str:
    """SHA-256 (hex) over the printed module tree, the architecture and the names in PREPROCESS.

    It changes with a layer, an order or an option, not with a weight. What a module computes beyond what it prints is
    not covered.
    """
    classifier = as_classifier(model)
    record = json.dumps([classifier.architecture, sorted(PREPROCESS)], sort_keys=True)
    return sha256([_printed(classifier).encode(), record.encode()])


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
