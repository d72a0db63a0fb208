"""One step of the way: a model trained in a run folder of its own, and a teacher found in one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from noisyteacher import metrics
from noisyteacher.allocator import keep_memory
from noisyteacher.config import Config, Recipe, Teacher
from noisyteacher.data import Split, Splits, load_data
from noisyteacher.device import check_threads, resolve_device
from noisyteacher.errors import AskedWronglyError, DataError, FileFormatError, MismatchError, NoisyTeacherError
from noisyteacher.evaluate import judge
from noisyteacher.history import Tick
from noisyteacher.locks import alone, at_work
from noisyteacher.models import Classifier, is_frozen_file, load_model, load_weights, save_model, weights_file
from noisyteacher.objectives import Objective
from noisyteacher.pipeline.given import class_names_taught, is_given, load_frozen_for, load_named, names_a_file
from noisyteacher.pipeline.profiling import profiled
from noisyteacher.ranks import led, place, told_when_lost
from noisyteacher.runs import Run, is_run
from noisyteacher.train import WEIGHTS, fit

Watch = Callable[[str, int, int, str], None]
"""Told of progress: what is being done, how much of it is done, how much there is, a note for people."""


@dataclass(frozen=True)
class Trained:
    """A trained model with the run it lies in and what its result.json says."""

    model: nn.Module
    run: Run
    result: dict[str, Any]


def train_run(
    run: Run,
    model: nn.Module,
    data: Splits,
    objective: Objective,
    *,
    recipe: Mapping[str, Any],
    seed: int,
    device: str = "auto",
    answers: Mapping[str, object] | None = None,
    extra: Mapping[str, Any] | None = None,
    keeping: Mapping[str, Any] | None = None,
    title: str = "training",
    watch: Watch | None = None,
) -> Trained:
    """The model trained in this run's folder, evaluated on validation and test, its result written last.

    A run that is done is not trained again; one that was interrupted goes on from its checkpoint; one that another
    process works on is waited for. In a group of processes all of them train it together, the leading one evaluates
    and writes, and the result is the same on all.
    `recipe` holds options of `fit`, and `keeping` those of what it writes beside the weights; `answers` holds by role
    (`val`, `test`) a teacher to agree with there, by which validation without labels is judged (not at all without
    it); `extra` goes into the result as it is.
    An error of this package is written to error.txt on its way out.
    """
    leads = place().leads
    with ExitStack() as held:
        if leads:
            held.enter_context(at_work(*run.around))
            held.enter_context(alone(run.path))
        whole = led(lambda: run.result() if run.state == "done" else None)
        if whole is not None:
            load_weights(model, run.path / WEIGHTS)
            return Trained(model, run, whole)
        with errors_kept(run), told_when_lost():
            history = fit(
                model,
                data.train,
                objective,
                **_judging(data.val, answers or {}, recipe),
                seed=seed,
                device=device,
                run=run.path,
                resume=True,
                **(keeping or {}),
                progress=None if watch is None or not leads else _relay(watch, title),
            )
            result = {
                **led(lambda: _judged(model, data, answers or {}, device)),
                "classes": list(data.class_names),
                "training": {
                    "seconds": history.seconds,
                    "epochs": len(history.epochs),
                    "best_epoch": history.best_epoch,
                    "kept": history.kept,
                    "stopped_early": history.stopped_early,
                    "device": str(resolve_device(device)),
                    "threads": torch.get_num_threads(),
                    "precision": recipe["precision"],
                    "memory": keep_memory(),
                    **({} if place().size == 1 else {"processes": place().size}),
                },
                **({} if history.profile is None else {"profile": profiled(model, history.profile, recipe)}),
                **(extra or {}),
            }
            if leads:
                run.write_result(result)
    return Trained(model, run, result)


def given_run(run: Run, model: Classifier, data: Splits, *, device: str = "auto", source: Run | None = None) -> Trained:
    """A model that was trained before, evaluated and kept in this run's folder, so that the folder tells all.

    `source` is the run it comes from; its training time is taken over. `classes` in the result are the names of the
    model's own classes, null where nothing states them.
    """
    with at_work(*run.around), alone(run.path), errors_kept(run):
        before = (source.result() or {}).get("training") if source is not None else None
        save_model(model, run.path / WEIGHTS, within=run.path)
        names = class_names_taught(model, source)
        result = {
            **_judged(model, data, {}, device),
            "classes": None if names is None else list(names),
            "training": before,
        }
        run.write_result(result)
    return Trained(model, run, result)


@contextmanager
def errors_kept(run: Run) -> Iterator[None]:
    """Inside, an error of this package is written to the run's error.txt on its way out; an old one is cleared."""
    if not place().leads:
        yield
        return
    run.clear_error()
    try:
        yield
    except NoisyTeacherError as error:
        with suppress(NoisyTeacherError):  # a full disk must not hide what went wrong
            run.write_error(f"{type(error).__name__}: {error}")
        raise


MANY_CLASSES = 100
"""Up to so many classes a result keeps the whole table of confusions."""


def _judged(model: nn.Module, data: Splits, answers: Mapping[str, object], device: str) -> dict[str, Any]:
    """The model's `scores` on validation and test by role, and the `details` behind them, JSON-able."""
    scores, details = {}, {}
    for split in (data.val, data.test):
        if split is not None:
            if split.labels is None and split.role not in answers:
                continue
            found, logits = judge(model, split, teacher=answers.get(split.role), device=device)
            scores[split.role] = found.describe()
            if split.labels is not None:
                details[split.role] = _details(logits, split.targets)
    return {"scores": scores, "details": details}


def _judging(val: Split, answers: Mapping[str, object], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `fit` in a recipe, with what judges its epochs."""
    if val.labels is not None:
        return {**recipe, "val": val}
    if val.role in answers:
        return {**recipe, "val": val, "val_teacher": answers[val.role]}
    return {**recipe, "val": None, "keep": "last"}


def lost(scores: Mapping[str, Any]) -> float:
    """The error (%) in a split's scores, or, where it has no labels, the share (%) that disagrees with the teacher.

    Without scores, as the teacher has none where nothing is labelled, 0: it agrees with itself.
    """
    if not scores:
        return 0.0
    if "error" in scores:
        return float(scores["error"]["value"])
    return 100 - float(scores["agreement"]["value"])


def _details(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    rows, confidence, hits = metrics.reliability(logits, labels)
    return {
        "confusion": metrics.confusion(logits, labels).tolist() if logits.shape[1] <= MANY_CLASSES else None,
        "reliability": {
            "count": rows.long().tolist(),
            "confidence_%": _shares(confidence, rows),
            "accuracy_%": _shares(hits, rows),
        },
    }


def _shares(part: Tensor, whole: Tensor) -> list[float | None]:
    """Percentages of the whole; None where there is nothing."""
    return [100 * a / b if b else None for a, b in zip(part.tolist(), whole.tolist(), strict=True)]


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
        raise AskedWronglyError(f"teacher.weights: has no effect on {where}, which has its own: leave one of them out")
    if not names_a_file(os.fspath(where)) and is_given(os.fspath(where), settings) and data is not None:
        return load_named(os.fspath(where), data, settings or Teacher(name=os.fspath(where))), None
    path = weights_file(where)
    run = Run.open(path) if is_run(path) else None
    file = weights_of(path)
    if not os.path.exists(file):
        state = f"the run is {run.state}" if run is not None else "no such file"
        raise DataError(
            f"{file}: no weights there ({state}): give a finished run's folder, or a .safetensors, .onnx or .pt2 file"
        )
    if is_frozen_file(file):
        model = load_frozen_for(os.fspath(file), data, settings, allow_import)
    else:
        model = _load_ours(file, allow_import)
    if data is not None:
        for what, own, theirs in (
            ("classes", model.classes, data.classes),
            ("input_shape", model.input_shape, data.input_shape),
        ):
            if own != theirs:
                raise MismatchError(f"{file}: the model has {what} {own}, the data {data.name!r} have {theirs}")
    return model, run


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
    """The weights file that a trained model's path or `pretrained:` name means: itself, or the one in the folder."""
    path = weights_file(where)
    return path / WEIGHTS if os.path.isdir(path) else path


def recipe_of(settings: Recipe) -> dict[str, Any]:
    """The options of `fit` in a Recipe (or Teacher, Student), without network, preset and what belongs to `distil`."""
    left = ("name", "options", "preset", "preprocess", "mean", "std")
    own = {name: getattr(settings, name) for name in Recipe.__dataclass_fields__ if name not in left}
    if own["augment"] == "none":  # as runs have it that were begun before there was a choice
        del own["augment"]
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


def load_config_data(config: Config) -> Splits:
    """The data set a Config names; also sets torch's threads where the Config says so."""
    if config.run.threads is not None:
        torch.set_num_threads(check_threads(config.run.threads))
    data = config.data
    return load_data(
        data.name,
        root=data.root,
        verify=data.verify,
        size=data.size,
        grey=data.grey,
        extra=data.extra,
        limit=data.limit,
        train_limit=data.train_limit,
    )


def _relay(watch: Watch, title: str) -> Callable[[Tick], None]:
    def tell(tick: Tick) -> None:
        judged = "" if tick.val_error is None else f" val error {tick.val_error:.2f} %"
        note = f"epoch {tick.epoch}/{tick.epochs}{judged} loss {tick.loss:.3g}"
        watch(title, tick.step, tick.total_steps, note)

    return tell
