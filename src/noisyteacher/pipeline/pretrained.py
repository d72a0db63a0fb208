"""Networks as settings name them: built untrained, or trained already and loaded from a run, a file or a library."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

import torch
from torch import nn

from noisyteacher import models
from noisyteacher.config import Config, Recipe, Teacher, TrainSettings, Values
from noisyteacher.data import Splits
from noisyteacher.errors import DataError, FileFormatError, MismatchError, NoChecksumError, UsageError
from noisyteacher.export.hub import CONFIG, KIND, SCHEMA
from noisyteacher.io.files import Json, StrPath, read_json
from noisyteacher.models import ONNX, OWN, PREFIX, SHRINK, WHOLE, ZOO, Classifier, is_onnx_file, model_record
from noisyteacher.rng import seeded
from noisyteacher.runs import BEST, WEIGHTS, Run, by_name, folder_name, is_run
from noisyteacher.text import SPLIT_NAMES

SHARED = {("mnist", "mnist-5k"): ("val", "test"), ("mnist-5k", "mnist"): ("val",)}
"""(data trained on, data judged on): the splits of the latter that hold training images of the former: the embedded
mnist-5k is a part of MNIST's training set, and so are the validation images of mnist."""
TRAINING = frozenset({"preset", *TrainSettings.__dataclass_fields__})
"""Settings of a teacher's training."""


class TrainedOn(TypedDict):
    """A saved model's training data: the name of the data set and the fingerprint of its training split."""

    name: str | None
    train: str | None


def is_model_path(name: str) -> bool:
    """Whether a name stands for a trained model in a file: a path, something that looks like one, `pretrained:NAME`.

    Raises UsageError for a file that holds weights and no architecture.
    """
    if name.endswith(".pt2"):
        raise UsageError(f"{name}: a torch.export program cannot be a teacher: export the model to ONNX and give that")
    if name.lower().endswith(models.ENDINGS) or (not is_onnx_file(name) and models.begins_as_torch_file(name)):
        raise UsageError(
            f"{name}: this file has weights but does not say of which network: name it, for example --teacher "
            "timm:resnet18, and pass the file by --teacher-weights (teacher.weights)"
        )
    if name.partition(":")[0] in ZOO:
        return False
    path_like = name.endswith(".safetensors") or is_onnx_file(name) or os.sep in name
    if not path_like and name in models.MODELS:  # a folder of that name is meant where it holds a trained model
        return os.path.isdir(name) and (is_run(Path(name)) or weights_of(name).is_file())
    return name.startswith(PREFIX) or path_like or os.path.isdir(name)


def refuse_training_of(model: str, keys: Iterable[str]) -> None:
    """Raises UsageError for a teacher in a file, and a setting of its training among these dotted keys."""
    if is_model_path(model) and (unused := {f"teacher.{name}" for name in TRAINING}.intersection(keys)):
        raise _trained_already(f"{min(unused)}:", model)


def refuse_teacher_training(teacher: str | nn.Module, options: Iterable[str], config: Config, data: Splits) -> None:
    """Raises UsageError for one of TRAINING among these options where every teacher is trained already."""
    unused = next((name for name in options if name in TRAINING), None)
    if unused and all(
        isinstance(name, nn.Module) or is_pretrained(name, settings, data)
        for name, settings in teachers_of(teacher, config)
    ):
        raise _trained_already(f"teacher_training: {unused}", teacher)


def _trained_already(setting: str, teacher: str | nn.Module) -> UsageError:
    return UsageError(f"{setting} has no effect on {display_name(teacher)}, which is trained already: leave it out")


def is_pretrained(name: str, settings: Teacher, data: Splits | None = None) -> bool:
    """Whether a teacher's name, with its settings, means one that is trained already.

    That is a file, a network with a file of weights (with `data`: for as many classes; a training starts from one for
    other classes, and where `head` is set), `hf:NAME` without the option `pretrained`, and any other name with
    `pretrained = "whole"`.
    """
    if is_model_path(name):
        return True
    if settings.weights:
        if data is None or settings.head:
            return not settings.head
        file = weights_of(settings.weights)
        return models.load_foreign(_without_weights(name, data, settings), file, head="") is None
    default = WHOLE if name.startswith("hf:") else ""
    return name.partition(":")[0] in ZOO and settings.options.get("pretrained", default) == WHOLE


def display_name(model: str | nn.Module) -> str:
    """The name of a model in run folders, stores and messages."""
    if isinstance(model, nn.Module) and not isinstance(model, Classifier):
        return type(model).__name__
    name = model.rstrip("/") if isinstance(model, str) else str(model.architecture["name"])
    library, _, rest = name.partition(":")
    if name.startswith(SHRINK):
        return name
    if library in (*ZOO, ONNX) and rest:
        return rest.rstrip("/").split("/")[-1]
    return name.split("/")[-1].removeprefix(PREFIX) if isinstance(model, str) else re.split("[.:]", name)[-1]


def network_name(model: str | nn.Module) -> str:
    """The network's name, for naming a run folder; for a run or a file, that of the network in it."""
    if isinstance(model, nn.Module) or model.startswith(PREFIX) or not is_model_path(model):
        return display_name(model)
    path = Path(model)
    run = Run(path if path.is_dir() else path.parent)
    if not is_run(run.path):
        return path.stem
    return display_name(str(run.config.get("model") or run.config.get("given") or run.info["name"]))


def run_title(student: str, teacher: str | None, data: str) -> str:
    """What a run folder is called after its kind, as `mlp800-from-lenet-mnist-5k`; every part is cut by itself."""
    source = "" if teacher is None else f"from-{folder_name(teacher, 30)}-"
    return f"{folder_name(student, 30)}-{source}{folder_name(data, 24)}"


def build_network(
    recipe: Recipe,
    model: str | nn.Module,
    data: Splits,
    seed: int = 0,
    teacher: nn.Module | models.Architecture | None = None,
) -> Classifier:
    """The untrained network of a recipe: `build_model` with its options and preprocessing.

    `shrink:RATIO` makes a narrower copy of `teacher`, a model or the architecture of one. A file of weights is loaded,
    but for a head that is new. Raises UsageError for weights beside a module.
    """
    if recipe.weights:
        if isinstance(model, nn.Module):
            raise UsageError(f"weights: no effect on a {type(model).__name__} that is passed in: leave them out")
        network = _without_weights(model, data, recipe, seed)
        other_classes = models.load_foreign(network, weights_of(recipe.weights), head=recipe.head)
        name, *_ = models.head_parameters(dict(network.network.named_parameters()))
        layer = name.rpartition(".")[0]
        if recipe.head != "new" and other_classes is None:  # its outputs are logits, which a scale must not multiply
            network.inherited_head = layer
        elif isinstance(head := network.network.get_submodule(layer), (nn.Linear, nn.Conv2d)):
            with seeded(seed, "new head"):  # as torch does; some networks' own draws are far too large for few classes
                head.reset_parameters()
        return network
    narrowed = teacher if isinstance(model, str) and model.startswith(SHRINK) else None
    front, options = preprocessing_of(recipe, data), Values(recipe.options)
    return models.build_model(model, data, preprocess=front, seed=seed, teacher=narrowed, **options)


def preprocessing_of(recipe: Recipe, data: Splits) -> str | nn.Module | None:
    """The `preprocess` of `build_model` for a recipe: None for the default, a module where it gives statistics."""
    if not recipe.mean:
        return recipe.preprocess or None
    module = models.blank_preprocess(recipe.preprocess or "standardize", data.input_shape)
    inner = module.inner if isinstance(module, models.Resized) else module
    if not isinstance(inner, models.Standardize) or len(recipe.mean) != len(inner.mean):
        raise UsageError(
            f"preprocess {recipe.preprocess!r} with mean of {len(recipe.mean)} values: mean and std belong to "
            f"standardize, a value for each of the {data.input_shape[0]} channels of {data.name}"
        )
    with torch.no_grad():
        inner.mean.copy_(torch.tensor(recipe.mean))
        inner.std.copy_(torch.tensor(recipe.std))
    return module


def _without_weights(name: str, data: Splits, settings: Recipe, seed: int = 0) -> Classifier:
    """The network that a file of weights is for, untrained, behind what its library says of its images."""
    library, front, options = name.partition(":")[0], preprocessing_of(settings, data), Values(settings.options)
    if library in ZOO:
        if options.get("pretrained"):
            raise UsageError("options.pretrained: has no effect beside weights: leave one of them out")
        options["pretrained"] = False
        front = front or (OWN if library != "hf" else None)
    return models.build_model(name, data, preprocess=front, seed=seed, **options)


def load_teacher(
    where: StrPath, data: Splits | None = None, allow_import: bool = False, settings: Teacher | None = None
) -> tuple[Classifier, Run | None]:
    """The trained model of a run folder, a weights file, an ONNX file or `pretrained:NAME`, and its run if it has one.

    With data also a network by name that `is_pretrained`. `allow_import` as in `load_model`. Raises MismatchError when
    it does not fit the data, FileFormatError when the file is damaged, DataError when there is none.
    """
    name, settings = os.fspath(where), settings or Teacher()
    if settings.weights and is_model_path(name):
        raise UsageError(f"teacher.weights: has no effect on {name}, which has its own: leave one of them out")
    if not is_model_path(name) and data is not None and is_pretrained(name, settings):
        return in_order(_load_named(name, data, settings), settings), None
    path, file = models.weights_file(name), weights_of(name)
    if not file.exists():
        state, advice = "no such file", "give a finished run, or a .safetensors or .onnx file"
        if is_run(path):
            run_state = Run(path).state
            state = f"the run is {run_state}"
            if run_state == "unfinished":
                advice = f"finish it first by noisyteacher {Run(path).info['kind']} --resume {path}"
        raise DataError(f"{file}: no weights there ({state}): {advice}")
    try:
        model = (
            _load_onnx(file, data, settings)
            if is_onnx_file(file) and data is not None
            else models.load_model(file, allow_import=allow_import)
        )
    except NoChecksumError as error:
        hint = f"weights of another program need their network named too: --teacher NAME --teacher-weights {file}"
        raise FileFormatError(f"{error}; {hint}") from error
    if data is not None and (model.classes, model.input_shape) != (data.classes, data.input_shape):
        theirs = f"{model.classes} classes and input_shape {model.input_shape}"
        ours = f"{data.classes} and {data.input_shape}"
        raise MismatchError(f"{file}: the model has {theirs}, the data {data.name!r} have {ours}")
    run = run_of(name) if is_run(path) or BEST in (path.name, path.parent.name) else None
    owner = run_of(name) if path.name == WEIGHTS else run
    if owner is not None and not is_onnx_file(file):
        check_weights(owner, file, model)
    return in_order(model, settings), run


def check_weights(run: Run, file: Path, model: nn.Module | None = None) -> None:
    """Raises FileFormatError when the file's weights are not those that the run's result is about.

    model: the one with the file's weights, where it is loaded already; else the file is read.
    """
    expected = None
    with suppress(FileFormatError):  # a damaged result is reported where it is read
        expected = (run.result() or {}).get("weights")  # earlier versions did not write it
    if expected is None:
        return
    if expected != (models.file_fingerprint(file) if model is None else models.weights_fingerprint(model)):
        raise FileFormatError(f"{file}: not the weights that the run's result is about: put that run's own file back")


def _load_named(name: str, data: Splits, settings: Teacher) -> Classifier:
    """A network by name with the weights of a file, or with those that it comes with."""
    if not settings.weights:
        options = Values({"pretrained": WHOLE, **settings.options})
        return models.build_model(name, data, preprocess=preprocessing_of(settings, data), **options).eval()
    model, file, ours = _without_weights(name, data, settings), weights_of(settings.weights), False
    with suppress(FileFormatError):
        ours = not models.begins_as_torch_file(file) and bool(model_record(file))
    (models.load_weights if ours else models.load_foreign)(model, file)
    return model.eval()


def _load_onnx(path: Path, data: Splits, settings: Teacher) -> Classifier:
    front = preprocessing_of(settings, data)
    if front == OWN:
        raise UsageError(f"teacher.preprocess: {path} does not say what it was trained on: name another")
    if isinstance(front, str):
        front = models.build_preprocess(front, models.training_images(data), data.input_shape)
    return models.load_onnx(path, classes=data.classes, input_shape=data.input_shape, preprocess=front).eval()


def in_order(model: Classifier, settings: Teacher) -> Classifier:
    """The teacher with its outputs in the order of `teacher.class_order`; itself where that is empty."""
    return models.reordered(model, settings.class_order) if settings.class_order else model


def teachers_of(teacher: str | nn.Module, config: Config) -> Iterator[tuple[str | nn.Module, Teacher]]:
    """Every teacher with its settings: weights and class order are those of the first alone.

    What describes a network that is built, or its training, is left out for a further teacher that is trained already.
    """
    yield teacher, config.teacher
    for name in config.teacher.also:
        settings = replace(config.teacher, weights="", head="", class_order=[])
        if is_model_path(name):
            settings = replace(settings, options={})
            if not is_onnx_file(name):
                settings = replace(settings, preprocess="", mean=[], std=[])
        yield name, replace(settings, label_noise=0.0) if is_pretrained(name, settings) else settings


def weights_of(where: StrPath) -> Path:
    """The weights file behind a model's path or `pretrained:` name; for a compression, that of its best student."""
    path = models.weights_file(where)
    if not path.is_dir():
        return path
    best = path / BEST / models.HUB_WEIGHTS
    return best if not (path / WEIGHTS).exists() and best.is_file() else path / WEIGHTS


def _folder_run(where: StrPath) -> Run | None:
    path = models.weights_file(where)
    folder = path if path.is_dir() else path.parent
    folder = folder.parent if folder.name == BEST else folder
    return Run.open(folder) if is_run(folder) else None


def run_of(where: StrPath) -> Run | None:
    """The run that trained the model in this run folder (of a compression: its best student) or file; else None."""
    run = _folder_run(where)
    if run is None or run.info["kind"] != "compress":
        return run
    best = (run.result() or {}).get("best") or {}
    return next((child for child in run.children() if child.path.name == best.get("run")), None)


def class_names_of(where: StrPath | None, model: Classifier, order: Sequence[int] = ()) -> list[str] | None:
    """The class names in the order of the outputs of a trained model; None where nothing says them.

    By its run, the file or hub folder at `where` (None for a module that was passed in), or its architecture. order:
    `teacher.class_order`, by which the outputs were reordered when it was loaded.
    """
    names = None if where is None or not is_model_path(os.fspath(where)) else _recorded_class_names(where)
    if names is None:
        names, network = models.class_names_of(model.architecture), model.network
        order = range(model.classes or 0)
        while isinstance(network, (models.Reordered, models.Rescaled)):
            if isinstance(network, models.Reordered):
                order = [int(network.class_order[output]) for output in order]
            network = network.network
    if names is None or len(names) != model.classes:
        return None
    return [str(names[output]) for output in (order or range(len(names)))]


def _recorded_class_names(where: StrPath) -> Sequence[str] | None:
    """The class names that the run, the weights file or the hub folder of a saved model says."""
    run, file = run_of(where), weights_of(where)
    if run is not None:
        data = run.config.get("data")
        names = (run.result() or {}).get("classes") or (data.get("classes") if isinstance(data, dict) else None)
        if isinstance(names, (list, tuple)):
            return names
    if file.suffix != ".safetensors" or not file.exists():
        return None
    names = (model_record(file).get("data") or {}).get("classes")
    return list(labels.values()) if names is None and (labels := _hub_config(file).get("id2label")) else names


def _hub_config(file: Path) -> Json:
    """The config beside the weights in a folder for the hub; empty where there is none."""
    config = file.with_name(CONFIG)
    if file.name == models.HUB_WEIGHTS and config.exists():
        with suppress(FileFormatError):  # another library's
            return read_json(config, KIND, SCHEMA)
    return {}


def training_settings(where: StrPath) -> Json | None:
    """The settings of its training that a weights file records; None for another library's file, which has none."""
    file = weights_of(where)
    if file.suffix != ".safetensors" or not file.exists():
        return None
    record = model_record(file)
    return {**record.get("training", {}).get("settings", {}), "data": (record.get("data") or {}).get("name")}


def trained_on(where: StrPath) -> TrainedOn | None:
    """The data a saved model was trained on; None where its files do not say. Raises FileFormatError."""
    settings = training_settings(where)
    if settings is None:
        return None
    name, train, run, text = settings["data"], settings.get("train"), run_of(where), os.fspath(where)
    if text.startswith(PREFIX):
        name = models.pretrained()[text.removeprefix(PREFIX)]["data"]["name"]
    elif run is not None and run.info["kind"] == "given":
        earlier = (run.result() or {}).get("trained_on") or {}
        name, train = earlier.get("name") or name, earlier.get("train") or train
    elif run is not None and isinstance(data := by_name(run.config).get("data"), dict):
        name = data.get("name")
    return TrainedOn(name=name, train=train) if name or train else None


def seen_before(source: TrainedOn | None, data: Splits, who: str = "the teacher") -> str | None:
    """A sentence without its full stop where a model trained on `source` has seen images on which it is judged here."""
    if not source:
        return None
    judged = {role: split for role, split in data.parts.items() if role != "train"}
    roles = [role for role in SHARED.get((source["name"] or "", data.name), ()) if role in judged]
    roles = roles or [role for role, split in judged.items() if split.fingerprint == source["train"]]
    images = f"{' and '.join(SPLIT_NAMES[role] for role in roles)} images of {data.name}"
    words = (
        f"{who} was trained on {source['name'] or 'a training set'}, which contains {images}: it has seen them, so its "
        "errors on them say nothing of new images"
    )
    return words if roles else None


def data_settings_of(where: StrPath) -> Json | None:
    """The settings `data` of a trained model's run or the run around it; None for a call from Python, for instance."""
    innermost = _folder_run(where)
    for run in () if innermost is None else (innermost, *map(Run, reversed(innermost.ancestors))):
        config = run.config
        if "base" in config or "config" in config or run.info["kind"] == "compress":
            over_data = any(key.startswith("data.") for grid in config.get("grids", ()) for key in grid)
            data = None if over_data or config.get("call") == "python" else by_name(config).get("data")
            return dict(data) if isinstance(data, dict) else None
    return None


def fit_of(where: StrPath) -> str:
    """How images are brought to the size of the model at this path, `crop` or `squash`, by its run or file."""
    run, file = run_of(where), weights_of(where)
    record = None if run is None else {**(run.config.get("data") or {}), **(run.result() or {})}
    if run is None and file.suffix == ".safetensors":
        record = model_record(file).get("data") or _hub_config(file)
    return str((record or {}).get("fit", "squash"))


def other_data(where: StrPath, data: Splits, who: str = "") -> str | None:
    """A sentence when a model was trained on other data than these, or on images that these judge it by; else None.

    who: the model in words, by default its path.
    """
    settings, who = training_settings(where), who or str(where)
    if settings is None:
        return None
    role = "val" if settings.get("val") else "train"  # the first is the same where a training had fewer rows
    theirs, ours, source = settings.get(role), data.parts[role].fingerprint, trained_on(where)
    overlap = seen_before(source, data, who)
    if overlap is not None or theirs == ours:
        return overlap
    if theirs is None:
        name = None if source is None else source["name"]
        words = f"{who} was trained on {name}, and nothing says whether {data.name} has the same images"
        return words if name not in (None, data.name) else None
    fingerprints = f"its {role} split has the fingerprint {theirs[:12]}, {data.name}'s has {ours[:12]}"
    return f"{who} was not trained on these data: {fingerprints}"


def data_note(where: StrPath) -> str | None:
    """A sentence without its full stop on the data of a `pretrained:` model, where its card has one; else None."""
    text = os.fspath(where)
    note = models.pretrained()[text.removeprefix(PREFIX)]["data"].get("note") if text.startswith(PREFIX) else None
    return f"it was trained on {note}" if note else None
