"""One step of the way: a teacher found in a run folder or file, and what settings say of a training."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from noisyteacher.config import Config, Recipe, Teacher
from noisyteacher.data import Splits, load_data
from noisyteacher.device import check_threads
from noisyteacher.errors import DataError, FileFormatError, MismatchError, UsageError
from noisyteacher.io.locks import exclusive_lock, shared_lock
from noisyteacher.measure import measure
from noisyteacher.models import (
    HUB_WEIGHTS,
    Classifier,
    is_onnx_file,
    load_model,
    reordered,
    save_model,
    weights_file,
)
from noisyteacher.pipeline.given import class_names_taught, is_given, load_named, load_onnx_for, names_a_file
from noisyteacher.pipeline.training import Trained, errors_kept, judged_on
from noisyteacher.progress import Watch, stage
from noisyteacher.runs import BEST, Run, is_run
from noisyteacher.train import WEIGHTS
from noisyteacher.train.optim import preferred_optimizer


def given_run(
    run: Run,
    model: Classifier,
    data: Splits,
    *,
    device: str = "auto",
    source: Run | None = None,
    watch: Watch | None = None,
    order: Sequence[int] = (),
    trained_on: Mapping[str, Any] | None = None,
) -> Trained:
    """A model that was trained before, evaluated and kept in this run's folder, so that the folder tells all.

    `source` is the run it comes from; its training time is taken over. `order` is what `teacher.class_order` says, in
    which the model's outputs stand already. `classes` in the result are the names of the model's own classes, null
    where nothing states them; `trained_on` is kept as it is.
    """
    with shared_lock(*run.around), exclusive_lock(run.path), errors_kept(run):
        before = (source.result() or {}).get("training") if source is not None else None
        save_model(model, run.path / WEIGHTS, within=run.path)
        names = class_names_taught(model, source, order)
        result = {
            **judged_on(model, data, {}, device, watch),
            "classes": None if names is None else list(names),
            "training": before,
            "trained_on": None if trained_on is None else dict(trained_on),
        }
        run.write_result(result)
    return Trained(model, run, result)


def lost(scores: Mapping[str, Any]) -> float:
    """The error (%) in a split's scores, or, where it has no labels, the share (%) that disagrees with the teacher.

    Without scores, as the teacher has none where nothing is labelled, 0: it agrees with itself.
    """
    if not scores:
        return 0.0
    if "error" in scores:
        return float(scores["error"]["value"])
    return 100 - float(scores["agreement"]["value"])


def load_teacher(
    where: str | os.PathLike[str],
    data: Splits | None = None,
    allow_import: bool = False,
    settings: Teacher | None = None,
) -> tuple[Classifier, Run | None]:
    """The trained model of a run folder, a weights file or `pretrained:NAME`, and its run where there is one.

    Also that of an ONNX model or a torch.export program, and with data a network by name whose weights `settings` name
    or that comes with its own (`is_given`). `allow_import` as in `load_model`. Raises MismatchError when it does not
    fit the data, FileFormatError when the file is damaged, DataError when the path leads nowhere.
    """
    if settings is not None and settings.weights and names_a_file(os.fspath(where)):
        raise UsageError(f"teacher.weights: has no effect on {where}, which has its own: leave one of them out")
    if not names_a_file(os.fspath(where)) and is_given(os.fspath(where), settings) and data is not None:
        named = load_named(os.fspath(where), data, settings or Teacher(name=os.fspath(where)))
        return in_order(named, settings), None
    path = weights_file(where)
    run = run_of(path) if is_run(path) or BEST in (path.name, path.parent.name) else None
    file = weights_of(path)
    if not os.path.exists(file):
        state = f"the run is {Run(path).state}" if is_run(path) else "no such file"
        raise DataError(
            f"{file}: no weights there ({state}): give a finished run's folder, or a .safetensors or .onnx file"
        )
    model = load_onnx_for(os.fspath(file), data, settings) if is_onnx_file(file) else _load_ours(file, allow_import)
    if data is not None:
        for what, own, theirs in (
            ("classes", model.classes, data.classes),
            ("input_shape", model.input_shape, data.input_shape),
        ):
            if own != theirs:
                raise MismatchError(f"{file}: the model has {what} {own}, the data {data.name!r} have {theirs}")
    return in_order(model, settings), run


def in_order(model: Classifier, settings: Teacher | None) -> Classifier:
    """The teacher with its outputs in the order that settings say; itself where they say none."""
    if settings is None or not settings.class_order:
        return model
    try:
        return reordered(model, settings.class_order)
    except MismatchError as error:
        raise MismatchError(f"teacher.class_order: {error}") from error


def _load_ours(file: Path, allow_import: bool) -> Classifier:
    try:
        return load_model(file, allow_import=allow_import)
    except FileFormatError as error:
        if "not written by noisyteacher" not in str(error):
            raise
        raise FileFormatError(
            f"{error}; weights of another program need their network named too: --teacher NAME --teacher-weights {file}"
        ) from error


def weights_of(where: str | os.PathLike[str]) -> Path:
    """The weights file that a trained model's path or `pretrained:` name means: itself, or the one in the folder.

    In the folder of a compression that is the file of the student that it hands over.
    """
    path = weights_file(where)
    if not os.path.isdir(path):
        return path
    handed_over = path / BEST / HUB_WEIGHTS
    return handed_over if not (path / WEIGHTS).exists() and handed_over.is_file() else path / WEIGHTS


def run_of(where: str | os.PathLike[str]) -> Run | None:
    """The run that trained the model at this path, a run folder or a weights file in one; None where there is none.

    A compression, and its folder `best`, mean the student that it hands over. Raises FileFormatError for a damaged run.
    """
    path = weights_file(where)
    folder = path if os.path.isdir(path) else path.parent
    folder = folder.parent if folder.name == BEST else folder
    if not is_run(folder):
        return None
    run = Run.open(folder)
    if run.info["kind"] != "compress":
        return run
    best = (run.result() or {}).get("best") or {}
    return next((child for child in run.children() if child.path.name == best.get("run")), None)


def recipe_of(settings: Recipe, model: nn.Module, data: Splits) -> dict[str, Any]:
    """The options of `fit` in a Recipe (or Teacher, Student), without network, preset and what belongs to `distil`.

    `model` is the network they are for, by which `optimizer = "auto"` is decided.
    """
    left = ("name", "options", "preset", "preprocess", "mean", "std")
    own = {name: getattr(settings, name) for name in Recipe.__dataclass_fields__ if name not in left}
    for name, default in (("augment", "none"), ("batch_norm", "running")):
        if own[name] == default:  # as in runs that were started before there was a choice
            del own[name]
    if own["optimizer"] == "auto":
        macs = measure(model, data.input_shape, latency=False).macs
        own["optimizer"] = preferred_optimizer(model, macs, settings.batch_size)
    return {**own, "views": tuple(own["views"])}


def keeping_of(config: Config) -> dict[str, Any]:
    """The options of `fit` that say what is kept of a training, and how often."""
    names = ("tensorboard", "profile", "checkpoint_every_s")
    return {name: getattr(config.run, name) for name in names}


def front_of(settings: Recipe) -> dict[str, Any]:
    """What settings say of the preprocessing, for the config of a child run; empty where they leave it to the data."""
    names = ("preprocess", "mean", "std")
    return {name: getattr(settings, name) for name in names if getattr(settings, name)}


def options_of(settings: Recipe) -> dict[str, Any]:
    """The arguments of the network in a Recipe."""
    return dict(settings.options)


def load_config_data(config: Config, watch: Watch | None = None) -> Splits:
    """The data set a Config names, its images hashed where somebody watches; also sets torch's threads where the Config
    says so.
    """
    if config.run.threads is not None:
        torch.set_num_threads(check_threads(config.run.threads))
    data = config.data
    with stage(watch, f"reading the data {data.name}"):
        splits = load_data(
            data.name,
            root=data.root,
            verify=data.verify,
            size=data.size,
            grey=data.grey,
            classes=data.classes,
            extra=data.extra,
            limit=data.limit,
            train_limit=data.train_limit,
        )
    if watch is not None:
        hash_images(splits, watch)
    return splits


def hash_images(splits: Splits, watch: Watch | None) -> None:
    """Take the fingerprints of all splits, which keep them, as a stage of its own."""
    with stage(watch, "hashing the images"):
        for split in splits.parts.values():
            _ = split.fingerprint
