"""Weights on disk: sealed files with their architecture, checkpoints of other training programs, and fingerprints.

A flipped bit and a missing or additional tensor are noticed. No code in a file is run, and a file that names a factory
cannot make `load_model` import it unless the caller allows it.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import pathlib
import re
import threading
import warnings
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy._core import multiarray
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from noisyteacher.errors import DataWarning, FileFormatError, MismatchError, NoisyTeacherError, UsageError
from noisyteacher.io.files import Json, StrPath, read_bytes, sha256
from noisyteacher.io.pickles import Unpickler
from noisyteacher.io.tensors import read_tensors, sealed_tensors, tensor_bytes, write_tensors
from noisyteacher.models.build import MODELS, PREFIX, build_model
from noisyteacher.models.classifier import (
    Classifier,
    Options,
    Rescaled,
    as_classifier,
    count_classes,
    head_parameters,
    reordered,
    rescale,
)
from noisyteacher.models.external import ZOO
from noisyteacher.models.narrow import SHRINK, first_origin, reshape_network
from noisyteacher.models.onnx_teacher import ONNX, OnnxNetwork, is_onnx_file, load_onnx
from noisyteacher.models.preprocess import PREPROCESS, blank_preprocess, is_preprocess
from noisyteacher.rng import seeded
from noisyteacher.text import few, unknown_name

KIND = "model"
SCHEMA = 1
SHIPPED = Path(__file__).with_name("shipped")
HUB_WEIGHTS = "model.safetensors"
"""The weights in a folder that was written for the Hugging Face hub."""
FIELDS: dict[str, Any] = {
    "name": str, "classes": int | None, "input_shape": list | None, "options": dict, "preprocess": str,
}  # fmt: skip
"""The types in an Architecture."""
WRAPPERS = (
    "state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params",
    "state_dict_ema", "ema_state_dict", "model_ema", "ema",
)  # fmt: skip
"""Keys under which training programs keep a model's state dict, in the order in which they are tried."""
ENDINGS = (".pt", ".pth", ".bin", ".ckpt", ".pth.tar", ".pt.tar", ".pkl", ".pickle")
"""Usual endings of torch.save's files, in any case; the first bytes decide whether a file is one."""
PICKLES = (b"\x02", b"\x03", b"\x04", b"\x05")
"""The second byte of a pickle, its protocol."""
MAX_OPTION = 2**19
"""The largest number in a file's options for a network of another library: words of a text model are counted there."""
_HARMLESS: list[Any] = [
    argparse.Namespace,
    *((getattr(pathlib, name), f"{module}.{name}")
      for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "PurePosixPath")),
    *((getattr(multiarray, name), f"{module}.{name}")
      for module in ("numpy._core.multiarray", "numpy.core.multiarray") for name in ("scalar", "_reconstruct")),
    np.dtype, np.ndarray, *(type(np.dtype(code)) for code in "?bBhHiIlLqQefdgSU"),
]  # fmt: skip
"""Classes that training programs save beside the weights (settings, paths, numpy scalars) and that run no code."""


def save_model(model: nn.Module, path: StrPath, record: Json | None = None, *, within: Path | None = None) -> None:
    """Write the model's tensors, its architecture and a JSON-able `record` (epochs, scores, ...) as one sealed file.

    Missing folders are created, but not `within`, which must exist. Raises WriteError when the disk refuses, and
    UsageError when the record uses the name "architecture" or the model has state that is not a tensor.
    """
    state, content = _state_and_content(model, record)
    write_tensors(path, KIND, SCHEMA, state, content, within)


def saved_bytes(model: nn.Module) -> int:
    """The length in bytes of the file that `save_model(model, path)` writes."""
    return len(sealed_tensors(KIND, SCHEMA, *_state_and_content(model, None)))


def _state_and_content(model: nn.Module, record: Json | None) -> tuple[dict[str, Tensor], Json]:
    classifier = as_classifier(model)
    state = dict(classifier.state_dict())
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.is_meta:
            kind = "tensor without values" if isinstance(value, Tensor) else type(value).__name__
            raise UsageError(f"the model's state {name!r} is a {kind}: only tensors with values are saved")
    if reserved := sorted({"architecture", "checksum", "kind", "schema"} & (record or {}).keys()):
        raise UsageError(f"the record may not use the names {reserved}: the file needs them itself")
    return state, {"architecture": classifier.architecture, **(record or {})}


def load_model(path: StrPath, *, allow_import: bool = False) -> Classifier:
    """The Classifier in a file, on the CPU and in eval mode: its architecture rebuilt, its weights filled in.

    `path` is a weights file, a folder that was exported for the hub, an ONNX model (one that takes floats gets pixels
    divided by 255), or `pretrained:NAME` for a model that comes with the package (`pretrained()` lists them). A model
    from `"pkg.module:factory"` is rebuilt by importing and calling that, only with `allow_import=True`. Nothing is
    downloaded. Raises FileFormatError naming the file when it is damaged or does not fit its architecture, and
    UsageError when the model cannot be rebuilt from a name; then build it and call `load_weights`.
    """
    path = weights_file(path)
    if path.is_dir() or not path.exists():
        missing = f"a folder without {HUB_WEIGHTS}" if path.is_dir() else "no such file"
        raise FileFormatError(f"{path}: cannot be read: {missing}; fetch a repository of the hub by hf download first")
    if is_onnx_file(str(path)):
        return load_onnx(path).eval()
    tensors, record = read_tensors(path, KIND, SCHEMA)
    wrappers: list[tuple[str, Tensor]] = []  # the outermost first
    while wrapped := next((name for name in ("class_order", "output_scale") if f"network.{name}" in tensors), None):
        wrappers.append((wrapped, tensors.pop(f"network.{wrapped}")))
        tensors = {re.sub(r"^network\.network\.", "network.", key): tensor for key, tensor in tensors.items()}
    model = _rebuild(path, tensors, record.get("architecture"), allow_import).eval()
    try:
        for name, value in reversed(wrappers):
            model = reordered(model, value.tolist()) if name == "class_order" else rescale(model, float(value))
        return model
    except (MismatchError, TypeError, ValueError, RuntimeError) as error:
        raise FileFormatError(f"{path}: {error}") from error


def load_weights(model: nn.Module, path: StrPath) -> None:
    """Replace the model's tensors by those of the file, all or none. Raises FileFormatError with what does not fit."""
    tensors, _ = read_tensors(path, KIND, SCHEMA)
    classifier = as_classifier(model)
    network = classifier.network
    if "network.output_scale" in tensors and classifier is model and not isinstance(network, Rescaled):
        rescale(classifier, 1.0)
    try:
        _fill(classifier, tensors, path)
    except FileFormatError:
        classifier.network = network
        raise


def model_record(path: StrPath) -> Json:
    """The record beside the weights: "architecture" and what `save_model` was passed. Raises FileFormatError."""
    _, record = read_tensors(path, KIND, SCHEMA)
    return record


def pretrained() -> dict[str, Json]:
    """The cards of the package's trained models: `pretrained()["lenet-mnist"]["scores"]["test"]["error"]`."""
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(SHIPPED.glob("*.json"))}


def weights_file(path: StrPath) -> Path:
    """The file of `pretrained:NAME` (or UnknownNameError), the weights in a folder for the hub, or the path itself."""
    text = os.fspath(path)
    if not text.startswith(PREFIX):
        inside = os.path.join(text, HUB_WEIGHTS)
        return Path(inside if os.path.isfile(inside) else text)
    name, names = text.removeprefix(PREFIX), [file.stem for file in SHIPPED.glob("*.json")]
    if name not in names:
        raise unknown_name("pretrained model", name, names)
    return SHIPPED / f"{name}.safetensors"


def _rebuild(path: Path, tensors: dict[str, Tensor], architecture: Any, allow_import: bool) -> Classifier:
    """The Classifier that a file's architecture describes, filled with its tensors."""
    for key, kind in FIELDS.items():
        if not isinstance(architecture, dict) or key not in architecture or not isinstance(architecture[key], kind):
            raise FileFormatError(
                f"{path}: the record's architecture lacks a valid {key!r}: not a model of noisyteacher"
            )
    name, options = architecture["name"], architecture["options"]
    classes, shape = architecture["classes"], tuple(architecture["input_shape"] or ())
    try:
        origin = first_origin(architecture)
    except UsageError as error:
        raise FileFormatError(f"{path}: {error}") from error
    if origin["name"].startswith("module:") or not is_preprocess(architecture["preprocess"]) or len(shape) != 3:
        described = f"{name!r} of {origin['name']!r} with preprocessing {architecture['preprocess']!r}"
        advice = "build it and use noisyteacher.models.load_weights(model, path)"
        raise UsageError(f"{path}: {described} cannot be rebuilt from its name: {advice}")
    narrower = name.startswith(SHRINK)
    imports = _check_origin(path, origin["name"], origin["options"], narrower, allow_import)
    library, _, rest = origin["name"].partition(":")

    def build() -> Classifier:
        front = blank_preprocess(architecture["preprocess"], shape)
        if library == ONNX:
            file = tensors.get("network.file", torch.empty(0))
            if file.dtype != torch.uint8:
                raise FileFormatError(f"the file of the network {name!r} is missing")
            return Classifier(front, OnnxNetwork(file), architecture)
        if library in ZOO:
            if _largest(origin["options"]) > MAX_OPTION:
                raise FileFormatError(f"an option of {origin['name']!r} is over {MAX_OPTION:,}, which no network needs")
            with seeded(0, "init", rest):
                model = Classifier(front, ZOO[library](rest, classes, shape, origin["options"]).network, architecture)
        else:
            model = build_model(
                origin["name"], classes=classes, input_shape=shape, preprocess=front, **origin["options"]
            )
        if narrower:  # its tensors have the shapes that the narrowed network has
            prefix = "network."
            shapes = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
            reshape_network(model.network, shapes, options.get("attributes", {}))
            model = Classifier(front, model.network, architecture)
        return model

    if imports:
        return _checked(_fill(build(), tensors, path), narrower, path)
    try:
        # On the meta device nothing is allocated before names and shapes are known to fit the file.
        with torch.device("cpu" if library == ONNX else "meta"), _bounded_layers(len(tensors)):
            model = build()
        differences = _differences(model.state_dict(), tensors)
        if library in ZOO and not differences:  # has tensors that are not in its state dict: build it on the CPU
            model = build()
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}") from error
    except (NoisyTeacherError, TypeError, RuntimeError) as error:
        raise FileFormatError(f"{path}: the architecture in it cannot be built: {error}") from error
    return _checked(_fill(model, tensors, path, assign=library not in (*ZOO, ONNX)), narrower, path)


def _largest(options: Any) -> int:
    """The largest whole number in nested options."""
    values = options.values() if isinstance(options, dict) else options if isinstance(options, list) else ()
    return max(map(_largest, values), default=0) if values else options if isinstance(options, int) else 0


@contextlib.contextmanager
def _bounded_layers(tensors: int) -> Iterator[None]:
    """Raise MismatchError when this thread builds far more parts of networks than a file with this many tensors has."""
    most, thread, counted = 10_000 + 20 * tensors, threading.get_ident(), itertools.count(1)

    def count_part(*part: Any) -> None:
        if threading.get_ident() == thread and next(counted) > most:
            raise MismatchError(f"it has more layers than a file with {tensors} tensors fills")

    hooks = [
        register(count_part)
        for register in (register_module_module_registration_hook, register_module_parameter_registration_hook)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _checked(model: Classifier, narrower: bool, path: Path) -> Classifier:
    """The model; a narrowed one runs once, since its file alone says how wide it is."""
    try:
        if narrower:
            model.check_logits(torch.empty(2, count_classes(model)), 2)
    except Exception as error:  # layers that do not fit each other raise anything
        raise FileFormatError(f"{path}: its tensors do not fit each other: {error}") from error
    return model


def _check_origin(path: Path, name: str, options: Options, narrowed: bool, allow_import: bool) -> bool:
    """Whether the network is a factory's, which may be imported. Raises for what is unknown or might be downloaded."""
    library = name.partition(":")[0]
    if library in ZOO:
        if "pretrained" in options or (library == "hf" and set(options) != {"config"}):
            raise FileFormatError(f"{path}: the options {sorted(options)} do not describe a network of {library} alone")
    elif library == "pt2":
        raise UsageError(f"{path}: holds a torch.export program, which cannot be loaded: export the model to ONNX")
    elif library == ONNX:
        if narrowed:  # by its name onnx would be imported as if it were a user's module
            raise FileFormatError(f"{path}: an ONNX model cannot be narrowed")
    elif ":" in name:
        if not allow_import:
            advice = "if you trust the file, pass --allow-import (in Python allow_import=True)"
            raise UsageError(f"{path}: rebuilding this model means importing and calling {name!r}: {advice}")
        return True
    elif name not in MODELS:
        raise FileFormatError(f"{path}: this version does not know the model {name!r}")
    return False


def _fill(model: Classifier, tensors: dict[str, Tensor], path: StrPath, assign: bool = False) -> Classifier:
    if differences := _differences(model.state_dict(), tensors):
        raise FileFormatError(f"{path}: its tensors do not fit the model {model.name!r} ({differences})")
    # Clones: tensors of a file share one buffer that must not be written through.
    model.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=assign)
    return model


def _differences(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    """The names that are missing, unexpected, and of another shape or dtype, in words; empty when all fit."""

    def describe(tensor: Tensor) -> str:
        return f"{tensor.dtype} {tuple(tensor.shape)}"

    problems = {
        "missing": sorted(expected.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - expected.keys()),
        "of another shape or dtype": [
            f"{name} {describe(tensors[name])} instead of {describe(expected[name])}"
            for name in sorted(expected.keys() & tensors.keys())
            if describe(tensors[name]) != describe(expected[name])
        ],
    }
    return "; ".join(f"{problem}: {few(names, 4)}" for problem, names in problems.items() if names)


def load_foreign(model: Classifier, path: StrPath, *, head: str = "keep") -> int | None:
    """Replace the network's tensors by those of a checkpoint, all or none; returns the file's classes if they differ.

    head: `keep` loads the last layer too, `new` leaves it as built, and an empty text leaves it where the file has
    other classes. The state dict may be under one of WRAPPERS, and its names may have one prefix (`module.`, `model.`);
    entries with another prefix, an optimizer's state for instance, and auxiliary heads (aux1.) that the network lacks
    are ignored. Floating-point tensors are converted to the network's dtype. Raises FileFormatError when the file is
    damaged, would run code or has values that are not finite; MismatchError with the tensors that do not fit.
    """
    expected = model.network.state_dict()
    counters = {name: tensor for name, tensor in expected.items() if name.endswith("num_batches_tracked")}
    content = read_state_dict(path)
    changed = [name for name in content if name.endswith((".class_order", ".output_scale"))]
    if changed and head != "new":
        raise MismatchError(
            f"{path}: {changed[0]} changes the outputs of its network, which would be lost here: take the file itself "
            "as the model, or start from it with a new head"
        )
    state = counters | _strip_prefix(content, expected, path)  # older files have no counters
    state = {name: value for name, value in state.items() if name in expected or not name.lower().startswith("aux")}
    classes = _classes_of_other_head(expected, state, model.classes) if state.keys() == expected.keys() else None
    if classes is not None and head == "keep":
        problem = f"its head has {classes} classes, {model.name!r} here {model.classes}"
        raise MismatchError(f"{path}: {problem}: train it with a new head, as train and compress do")
    new = head_parameters(dict(model.network.named_parameters()), model.classes) if head == "new" else set()
    for name in state.keys() & expected.keys():
        ours, theirs = expected[name], state[name]
        fits = theirs.shape == ours.shape and theirs.is_floating_point() == ours.is_floating_point()
        if fits and name not in new:
            state[name] = theirs.to(ours.dtype)
        elif fits or classes is not None:
            state[name] = ours
    if differences := _differences(expected, state):
        network, advice = f"{model.name!r} with {model.classes} classes", "name their network"
        if any("pos" in name and state[name].shape != expected[name].shape for name in state.keys() & expected.keys()):
            option = "img_size" if model.name.startswith("timm:") else "image_size"
            advice = f"they are for images of another size: name it, for example options.{option}=224"
        raise MismatchError(f"{path}: its tensors are not those of {network} ({differences}): {advice}")
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise FileFormatError(f"{path}: its tensor {name} has values that are not finite")
    model.network.load_state_dict(state)
    return classes


def begins_as_torch_file(path: StrPath) -> bool:
    """Whether it is a file of torch.save, an archive, whatever its name is."""
    return os.path.isfile(path) and zipfile.is_zipfile(path)


def read_state_dict(path: StrPath) -> dict[str, Tensor]:
    """The tensors by name in a file of torch.save or safetensors. Raises FileFormatError naming the file."""
    if begins_as_torch_file(path):
        return _unwrap(_read_torch_file(path), path)
    content = read_bytes(path)
    try:
        return dict(safetensors.torch.load(content))
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        if content[:1] == b"\x80" and content[1:2] in PICKLES:
            raise FileFormatError(
                f"{path}: a pickle, as torch.save wrote it before 1.6: if you trust it, load it with torch.load and "
                "save it again with torch.save"
            ) from error
        raise FileFormatError(
            f"{path}: neither an archive of torch.save nor a file of safetensors ({error})"
        ) from error


def _read_torch_file(path: StrPath) -> Any:
    """What torch.save wrote, its tensors mapped from the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise zipfile.BadZipFile("compressed, which torch.save never does")  # mapped, it would be misread
            for member in archive.infolist():
                if member.filename.endswith("/data.pkl"):
                    Unpickler(archive.read(member)).load()  # refuses what would never end
        # The context removes what it is given, also what the host had registered before.
        ours = list({*_HARMLESS}.difference(torch.serialization.get_safe_globals()))
        with warnings.catch_warnings(), torch.serialization.safe_globals(ours):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged archive or pickle raises whatever it meets
        refused = re.search(r"GLOBAL (\S+)", str(error))
        whole = ", a whole module instead of its state dict" if refused and refused[1].startswith("torch.nn") else ""
        reason = f"it needs {refused[1]:.80}{whole}" if refused else f"{type(error).__name__}: {error}".split("\n")[0]
        problem = f"{path}: not a file of tensors that torch reads without running code ({reason:.200})"
        raise FileFormatError(
            f"{problem}; if you trust it, save its tensors by torch.save(model.state_dict())"
        ) from error


def _unwrap(record: Any, path: StrPath) -> dict[str, Tensor]:
    """The state dict in what a training program saved."""
    inner = record
    for _ in range(4):
        if not isinstance(inner, dict):
            break
        record = inner
        sets = [key for key in WRAPPERS if isinstance(record.get(key), dict) and record[key]]
        if len(sets) > 1:
            further = ", ".join(map(repr, sets[1:]))
            warnings.warn(
                f"{path}: the weights under {sets[0]!r} are taken; it has {further} too: for these, save them alone by "
                f"torch.save(torch.load(file)[{sets[1]!r}], 'other.pth')",
                DataWarning,
                stacklevel=2,
            )
        inner = record[sets[0]] if sets else None
    entries = record.items() if isinstance(record, dict) else ()
    tensors = {name: value for name, value in entries if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors:
        keys = f" with the keys {few([str(key)[:40] for key, _ in entries])}" if entries else ""
        actual = f"a {type(record).__name__}{keys}"
        raise FileFormatError(f"{path}: no state dict in it, but {actual}; expected one alone or under {WRAPPERS}")
    return tensors


def _strip_prefix(state: Mapping[str, Tensor], expected: Collection[str], path: StrPath) -> dict[str, Tensor]:
    """The entries with the prefix that fits most of the network's names, without it."""
    state = {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items()}
    prefixes = {""}
    for last in [name for name in expected if not name.endswith("num_batches_tracked")][-3:]:
        prefixes |= {name.removesuffix(last) for name in state if name.endswith(f".{last}")}
    matches = {prefix: sum(f"{prefix}{name}" in state for name in expected) for prefix in prefixes}
    most = max(matches.values())
    best = sorted(prefix for prefix, number in matches.items() if number == most) if most else [""]
    if len(best) > 1:
        raise MismatchError(f"{path}: holds several sets of weights that fit, under {best}: save a single one")
    return {name.removeprefix(best[0]): tensor for name, tensor in state.items() if name.startswith(best[0])}


def _classes_of_other_head(
    expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], classes: int | None
) -> int | None:
    """The file's number of classes where nothing but layers of one output per class has other shapes, else None."""
    pairs = [(expected[name].shape, tensor.shape) for name, tensor in tensors.items()]
    differing = [(ours, theirs) for ours, theirs in pairs if ours != theirs]
    outputs = {shape[:1] for _, shape in differing}
    is_head = all(ours[:1] == (classes,) and ours[1:] == theirs[1:] for ours, theirs in differing)
    has_weight = any(len(shape) > 1 for _, shape in differing)
    return outputs.pop()[0] if is_head and has_weight and len(outputs) == 1 and len(differing) < len(pairs) else None


def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 (hex) over the network's tensors in order of name: name, dtype, shape and bytes of each."""
    return _fingerprint(as_classifier(model).network.state_dict())


def file_fingerprint(path: StrPath) -> str:
    """`weights_fingerprint` of the model in a file, which is not built. Raises FileFormatError."""
    tensors, _ = read_tensors(path, KIND, SCHEMA)
    prefix = "network."
    return _fingerprint({key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)})


def preprocess_fingerprint(model: nn.Module) -> str:
    """SHA-256 (hex) over the preprocessing: its printed form (kind and settings) and its buffers."""
    preprocess = as_classifier(model).preprocess
    return sha256([_printed(preprocess), _fingerprint(preprocess.state_dict()).encode()])


def code_fingerprint(model: nn.Module) -> str:
    """SHA-256 (hex) over the printed module tree, the architecture and the names in PREPROCESS, not over weights."""
    classifier = as_classifier(model)
    record = json.dumps([classifier.architecture, sorted(PREPROCESS)], sort_keys=True)
    return sha256([_printed(classifier), record.encode()])


def _printed(module: nn.Module) -> bytes:
    """The module tree as text without memory addresses, which differ between processes."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", str(module)).encode()


def _fingerprint(state: Mapping[str, Any]) -> str:
    parts: list[bytes] = []
    for name, value in sorted(state.items()):
        is_tensor = isinstance(value, Tensor)
        if is_tensor and value.is_meta:
            raise UsageError(f"{name} is on the meta device, without numbers: load the weights, or build on the CPU")
        described = f"{value.dtype}\x1f{tuple(value.shape)}" if is_tensor else f"{value!r}"
        parts += [f"{name}\x1f{described}\x1f".encode(), tensor_bytes(value) if is_tensor else b""]
    return sha256(parts)
