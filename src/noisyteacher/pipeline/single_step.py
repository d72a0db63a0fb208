"""One step of a compression alone, with a Config: train or distil a network in a run folder, or extract logits."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from noisyteacher.config import PRESETS, Config, Recipe, build_config, describe
from noisyteacher.data import Splits, expand_views
from noisyteacher.device import AUTO, cpu_threads, resolve_device
from noisyteacher.distributed import on_rank_zero, restarts
from noisyteacher.errors import FileFormatError, UsageError
from noisyteacher.extract import extract
from noisyteacher.io.files import Json
from noisyteacher.models import SHRINK, ZOO, Architecture, Classifier, first_origin
from noisyteacher.objectives import Objective, distil, supervised
from noisyteacher.pipeline import preflight, pretrained, resolve
from noisyteacher.pipeline.experiment import (
    Experiment,
    TrainedModel,
    TrainingSpec,
    errors_recorded,
    store_name,
    train_run,
)
from noisyteacher.pipeline.noise_choice import choose_noise, number_of_trials
from noisyteacher.pipeline.pretrained import build_network, display_name
from noisyteacher.pipeline.timing import StageTitles
from noisyteacher.progress import Watch, counted, stage
from noisyteacher.runs import Run, as_json, list_runs, new_run
from noisyteacher.store import LogitStore

RunCreated = Callable[[Run], None]


def train_config(
    config: Config,
    *,
    seed: int = 0,
    run: Run | None = None,
    command: str | None = None,
    on_run_created: RunCreated | None = None,
    on_progress: Watch | None = None,
) -> TrainedModel:
    """The Config's teacher trained on labels, in a run folder of kind `train`; `run`: an interrupted run to resume."""
    with cpu_threads(config.run.threads):
        data = resolve.load_config_data(config, on_progress)
        config = resolve.resolve_auto(config, data)
        teacher = config.teacher
        if not pretrained.is_model_path(teacher.name) and pretrained.is_pretrained(teacher.name, teacher, data):
            if teacher.weights:
                raise UsageError(
                    f"teacher.weights: {teacher.weights} holds a trained network for these classes: leave it out, or "
                    "train it further with its head (--head keep) or a new one (--head new)"
                )
            raise UsageError(
                f"{teacher.name}: is trained already: to train it further say teacher.options.pretrained=true"
            )
        if teacher.preset != "standard" and not PRESETS[teacher.preset]["teacher"]:
            raise UsageError(f"teacher.preset: {teacher.preset} is a recipe for students alone: leave it out")
        if teacher.class_order:
            raise UsageError("teacher.class_order: is for a teacher that is trained already: leave it out")
        model = build_network(teacher, teacher.name, data, seed)
        objective = supervised(label_noise=teacher.label_noise)
        _check_training(objective, model, data, config, teacher)
        if run is None:
            title = pretrained.run_title(teacher.name, None, data.name)
            run = _new_run(config, teacher, title, {"config": describe(config), "seed": seed}, {}, command)
        experiment = Experiment(
            config=config, data=data, teacher=teacher.name, student="", run=run, on_progress=on_progress
        )
        if on_run_created is not None:
            on_run_created(run)
        return _train_network(experiment, model, objective, teacher, seed, {})


def extract_config(
    config: Config,
    path: str | None = None,
    on_progress: Watch | None = None,
    *,
    data: Splits | None = None,
    allow_import: bool = False,
    overwrite: bool = False,
) -> LogitStore:
    """The logits of the Config's teacher (a run or weights file) for the views its student trains on.

    Kept in `path`, by default `OUTPUT_DIR/logits/TEACHER-DATA-train-FINGERPRINT`. `data` are the Config's where they
    are loaded already; `allow_import` as in `load_model`, `overwrite` as in `extract`.
    """
    with cpu_threads(config.run.threads):
        data = data or resolve.load_config_data(config, on_progress)
        config = resolve.resolve_auto(config, data)
        teacher, device = config.teacher, config.run.device
        model, _ = pretrained.load_teacher(teacher.name, data, allow_import, teacher)
        if config.run.checks:
            preflight.check_stated_order(teacher.name, model, data, teacher, "the teacher")
            preflight.check_output_order(model, data.val, teacher, device)
        name = store_name(display_name(model), data.train, model, teacher.logits_precision)
        return extract(
            model,
            data.train,
            path or Path(config.run.output_dir) / "logits" / name,
            views=tuple(config.student.views),
            device=device,
            precision=teacher.logits_precision,
            progress=False if on_progress is None else counted(on_progress, "teacher's logits", "answers"),
            overwrite=overwrite,
        )


def distil_config(
    config: Config,
    store: str | os.PathLike[str],
    *,
    seed: int = 0,
    run: Run | None = None,
    command: str | None = None,
    on_run_created: RunCreated | None = None,
    on_progress: Watch | None = None,
) -> TrainedModel:
    """The Config's student trained from a logit store under the Config's noise, in a run folder of kind `distil`;
    `run` is an interrupted run to resume.
    """
    config = resolve.with_papers_student(config)
    resolve.require_student(config)
    with cpu_threads(config.run.threads):
        data, logits = resolve.load_config_data(config, on_progress), LogitStore.open(store)
        if config.student.views == [AUTO]:  # the views whose logits are stored
            config = replace(config, student=replace(config.student, views=list(logits.views)))
        config = resolve.resolve_auto(config, data)
        class_names = logits.meta.get("class_names")
        logits = logits.renamed(data.class_names)  # names are compared here, where run.checks may allow any order
        student = config.student
        noise, candidates = resolve.resolve_noise(config.noise, config.choice)
        if candidates and data.val.labels is None:
            name = repr(data.name)
            raise UsageError(
                f"the noise cannot be chosen without validation labels in {name}: give --sigma and --alpha"
            )
        teacher = _stored_teacher(logits, student.name)
        teacher_name = display_name(str(teacher["name"])) if "name" in teacher else None
        model = build_network(student, student.name, data, seed, teacher)
        objective = distil(logits, noise=noise, **resolve.distill_options(config))
        _check_training(objective, model, data, config, student)
        checks = preflight.check_store_order(logits, class_names, data, config.run.checks)
        with stage(on_progress, preflight.CHECKING_STUDENT):
            checks += preflight.check_first_step(config, data, objective, model)
        if run is None:
            settings = {"config": describe(config), "seed": seed, "store": os.fspath(store)}
            parents = {"store": logits.digest, "teacher": logits.fingerprints["teacher"]}
            title = pretrained.run_title(student.name, teacher_name, data.name)
            run = _new_run(config, student, title, settings, parents, command)
        experiment = Experiment(
            config=config,
            data=data,
            teacher=teacher_name or "",
            student=student.name,
            run=run,
            on_progress=on_progress,
            noise=noise,
            noise_candidates=candidates,
        )
        if on_run_created is not None:
            on_run_created(run)
        extra: Json = {"checks": [check.describe() for check in checks]}
        if candidates and run.state != "done":
            with run.lock(shared=True), errors_recorded(run):
                titles = StageTitles(number_of_trials(experiment))
                experiment, extra["choice"] = choose_noise(experiment, {"train": logits}, titles)
            student = experiment.recipes["clean" if experiment.noise is None else "noisy"]
            objective = replace(objective, noise=experiment.noise)
        return _train_network(experiment, model, objective, student, seed, extra)


def resume_single(run: Run, kind: str, **options: Any) -> TrainedModel:
    """Resume an interrupted run of this kind, `train` or `distil`, with the settings of its own config.json.

    options: `on_run_created` and `on_progress` of `train_config` and `distil_config`.
    """
    actual, settings = run.info["kind"], run.config
    if "config" not in settings or actual not in ("train", "distil"):
        raise UsageError(f"{run.path}: a {actual} run that cannot be resumed alone: resume the run it belongs to")
    if actual != kind:
        raise UsageError(f"{run.path}: a {actual} run, not a {kind} run: resume it by {actual} --resume")
    config, seed = build_config(settings["config"], unused_noise=True), settings["seed"]
    if kind == "train":
        return train_config(config, seed=seed, run=run, **options)
    return distil_config(config, settings["store"], seed=seed, run=run, **options)


def _train_network(
    experiment: Experiment, model: Classifier, objective: Objective, recipe: Recipe, seed: int, extra: Json
) -> TrainedModel:
    """The network of a run with a single training, and its result with `extra` in it."""
    options, title = resolve.fit_options(recipe, model, experiment.data), f"{recipe.name}, seed {seed}"
    return train_run(
        TrainingSpec(experiment, experiment.run, model, objective, options, seed, title, extra=extra, with_costs=True)
    )


def _new_run(config: Config, recipe: Recipe, title: str, settings: Json, parents: Json, command: str | None) -> Run:
    """A new run's folder, made by the leading process of a group.

    When torchrun starts the same command again because a process had died, it is the folder of the first start.
    """
    folder, kind, seed = config.run.output_dir, "distil" if parents else "train", settings["seed"]

    def make() -> Run:
        expected = {"kind": kind, "parents": as_json(parents, "parents"), "seed": seed}
        for run in list_runs(folder, depth=1) if restarts() else []:
            try:
                if expected.items() <= run.info.items() and run.config == as_json(settings, "config"):
                    return run
            except FileFormatError:  # a damaged folder
                continue
        return new_run(folder, kind, recipe.name, settings, parents, seed=seed, command=command, title=title)

    return on_rank_zero(make)


def _stored_teacher(store: LogitStore, student: str) -> Architecture:
    """The architecture of the teacher whose logits are stored.

    Raises UsageError where a student narrowed from it would have something imported because a file says so.
    """
    architecture = cast("Architecture", store.meta.get("teacher", {}))
    origin = first_origin(architecture)["name"] if student.startswith(SHRINK) else ""
    if ":" in origin and origin.partition(":")[0] not in ZOO:
        raise UsageError(f"{store.path}: {student} would import and call {origin!r}, which a file names: use compress")
    return architecture


def _check_training(objective: Objective, model: Classifier, data: Splits, config: Config, recipe: Recipe) -> None:
    """Raises what `fit` would raise for wrong arguments, before a folder is made for it."""
    resolve_device(config.run.device)
    objective.check(data.train, expand_views(recipe.views), model.classes or data.classes, recipe.augment)
    if data.val.labels is None and recipe.patience is not None:
        raise UsageError(
            f"patience={recipe.patience} has no effect: {data.name!r} has no validation labels: leave it out"
        )
