"""The steps of the way one by one, each asked by a Config and each leaving one run folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from noisyteacher.config import Config, Recipe, build_config, describe
from noisyteacher.data import Splits, expand_views
from noisyteacher.device import resolve_device
from noisyteacher.distributed import on_rank_zero, restarts
from noisyteacher.errors import FileFormatError, UsageError
from noisyteacher.extract import extract
from noisyteacher.io.locks import shared_lock
from noisyteacher.models import SHRINK, ZOO, Classifier, origin_of
from noisyteacher.objectives import Objective, distil, supervised
from noisyteacher.pipeline.checking import CHECKING_STUDENT, checked_lesson, refuse_other_order, store_order
from noisyteacher.pipeline.choosing import choose_noise, planned
from noisyteacher.pipeline.conditions import store_name
from noisyteacher.pipeline.given import is_given, names_a_file, network_of
from noisyteacher.pipeline.plan import (
    AUTO,
    Plan,
    called,
    noise_of,
    refuse_auto,
    run_title,
    settled,
    taught_of,
    with_papers_student,
)
from noisyteacher.pipeline.steps import keeping_of, load_config_data, load_teacher, recipe_of
from noisyteacher.pipeline.training import Trained, Training, errors_kept, train_run
from noisyteacher.progress import Watch, counted, stage
from noisyteacher.runs import Run, list_runs, new_run, plain
from noisyteacher.store import LogitStore


def train_config(
    config: Config,
    *,
    seed: int = 0,
    run: Run | None = None,
    command: str | None = None,
    begun: Callable[[Run], None] | None = None,
    watch: Watch | None = None,
) -> Trained:
    """The Config's teacher trained on labels, in a run folder of kind `train`."""
    data = load_config_data(config, watch)
    config = settled(config, data)
    if not names_a_file(config.teacher.name) and is_given(config.teacher.name, config.teacher, data):
        if config.teacher.weights:
            raise UsageError(
                f"teacher.weights: {config.teacher.weights} holds a network trained for these classes: use it in "
                "compress or extract, or leave it out to train a new one"
            )
        raise UsageError(
            f"{config.teacher.name}: is trained already (or comes with its weights): to train it further say "
            "teacher.options.pretrained=true"
        )
    if config.teacher.class_order:
        raise UsageError("teacher.class_order: is for a teacher that is trained already: leave it out")
    model = network_of(config.teacher, config.teacher.name, data, seed)
    objective = supervised()
    _refuse(objective, model, data, config, config.teacher)
    settings = {"config": describe(config), "seed": seed}
    title = run_title(config.teacher.name, None, data.name)
    folder = run or _folder(config, "train", config.teacher.name, title, settings, {}, seed, command)
    if begun is not None:
        begun(folder)
    return train_run(
        Training(
            run=folder,
            model=model,
            data=data,
            objective=objective,
            recipe=recipe_of(config.teacher, model, data),
            seed=seed,
            device=config.run.device,
            keeping=keeping_of(config),
            priced=True,
            title=f"{config.teacher.name}, seed {seed}",
            watch=watch,
        )
    )


def extract_config(
    config: Config,
    path: str | None = None,
    watch: Watch | None = None,
    *,
    data: Splits | None = None,
    allow_import: bool = False,
    overwrite: bool = False,
) -> LogitStore:
    """The logits of the Config's teacher (a run or weights file) for the views its student trains on.

    Kept in `path`, by default `OUTPUT_DIR/logits/TEACHER-DATA-train-FINGERPRINT`. `data` are the Config's where they
    are loaded already; `allow_import` as in `load_model`, `overwrite` as in `extract`.
    """
    data = data or load_config_data(config, watch)
    config = settled(config, data)
    model, _ = load_teacher(config.teacher.name, data, allow_import, config.teacher)
    if config.run.checks:
        refuse_other_order(model, data.val, config.teacher, config.run.device)
    name = store_name(called(model), data.train, model, config.teacher.logits_precision)
    return extract(
        model,
        data.train,
        path or Path(config.run.output_dir) / "logits" / name,
        views=tuple(config.student.views),
        device=config.run.device,
        precision=config.teacher.logits_precision,
        progress=False if watch is None else counted(watch, "teacher's logits", "answers"),
        overwrite=overwrite,
    )


def distil_config(
    config: Config,
    store: str | os.PathLike[str],
    *,
    seed: int = 0,
    run: Run | None = None,
    command: str | None = None,
    begun: Callable[[Run], None] | None = None,
    watch: Watch | None = None,
) -> Trained:
    """The Config's student trained from a logit store under the Config's noise, in a run folder of kind `distil`."""
    config = with_papers_student(config)
    refuse_auto(config)
    data, opened = load_config_data(config, watch), LogitStore.open(store)
    if config.student.views == [AUTO]:  # those that there are answers for
        config = replace(config, student=replace(config.student, views=list(opened.views)))
    config = settled(config, data)
    student = config.student
    noise, candidates = noise_of(config.noise, config.choice)
    if candidates and data.val.labels is None:
        raise UsageError(
            f"the noise cannot be chosen: the validation split of {data.name!r} has no labels, and a store of the "
            "training split says nothing of it; give noise.sigma and noise.alpha (--sigma, --alpha), or use compress"
        )
    teacher = _teacher_of(opened, student.name)
    model = network_of(student, student.name, data, seed, teacher)
    _refuse(distil(opened, noise=noise, **taught_of(config)), model, data, config, student)
    checks = store_order(opened, data, config.run.checks)
    with stage(watch, CHECKING_STUDENT):
        checks += checked_lesson(config, data, student.name, candidates[-1] if candidates else noise, opened, teacher)
    settings = {"config": describe(config), "seed": seed, "store": os.fspath(store)}
    parents = {"store": opened.digest, "teacher": opened.fingerprints["teacher"]}
    named = run_title(student.name, called(str(teacher["name"])) if "name" in teacher else None, data.name)
    folder = run or _folder(config, "distil", student.name, named, settings, parents, seed, command)
    if begun is not None:
        begun(folder)
    plan = Plan(config, data, opened.fingerprints["teacher"], student.name, noise, candidates, settings, folder, watch)
    title, choice = f"{student.name}, seed {seed}", None
    if candidates and folder.state != "done":
        with shared_lock(folder.path), errors_kept(folder):
            noise, choice = choose_noise(plan, {"train": opened}, (0, planned(plan)))
    return train_run(
        Training(
            run=folder,
            model=model,
            data=data,
            objective=distil(opened, noise=noise, **plan.taught),
            recipe=recipe_of(student, model, data),
            seed=seed,
            device=config.run.device,
            keeping=keeping_of(config),
            priced=True,
            extra={"checks": checks} | ({} if choice is None else {"choice": choice}),
            title=title,
            watch=watch,
        )
    )


def _folder(
    config: Config,
    kind: str,
    name: str,
    title: str,
    settings: dict[str, Any],
    parents: dict[str, Any],
    seed: int,
    command: str | None,
) -> Run:
    """A new run's folder, made by the leading process of a group and told to the others.

    When torchrun starts the same command again because a process had died, it is the one that was begun.
    """

    def made() -> Run:
        asked = {"kind": kind, "parents": plain(parents, "parents"), "seed": seed}
        begun = list_runs(config.run.output_dir, depth=1) if restarts() else []
        found = next((one for one in begun if _is_this(one, asked, plain(settings, "config"))), None)
        return found or new_run(
            config.run.output_dir,
            kind,
            name,
            settings,
            parents=parents,
            seed=seed,
            command=command,
            title=title,
        )

    return on_rank_zero(made)


def _is_this(run: Run, asked: dict[str, Any], settings: dict[str, Any]) -> bool:
    """Whether a run folder was made for this very question; a damaged one was not."""
    try:
        return {key: run.info.get(key) for key in asked} == asked and run.config == settings
    except FileFormatError:
        return False


def _teacher_of(store: LogitStore, student: str) -> dict[str, Any]:
    """The architecture of the teacher whose answers are stored.

    Raises UsageError where a student narrowed from it would have something imported because a file says so.
    """
    found: dict[str, Any] = store.meta.get("teacher", {})
    origin = origin_of(found) if student.startswith(SHRINK) else ""
    if ":" in origin and origin.partition(":")[0] not in ZOO:
        raise UsageError(
            f"{store.path}: for {student} the teacher {origin!r} that this store names would be imported and "
            "called: use compress, where the teacher is named by you, or pass the module in Python"
        )
    return found


def _refuse(objective: Objective, model: Classifier, data: Splits, config: Config, recipe: Recipe) -> None:
    """Raises what `fit` would raise of a wrong question, before a folder is made for it."""
    resolve_device(config.run.device)
    augment = {} if recipe.augment == "none" else {"augment": recipe.augment}
    objective.check(data.train, expand_views(recipe.views), model.classes or data.classes, **augment)
    if data.val.labels is None and recipe.patience is not None:
        raise UsageError(
            f"patience={recipe.patience} has no effect: the validation split of {data.name!r} has no labels, and no "
            "teacher is at hand to agree with; leave it out, or use compress"
        )


def resume_single(
    run: Run, asked: str, begun: Callable[[Run], None] | None = None, watch: Watch | None = None
) -> Trained:
    """Go on with an interrupted run of the kind asked for, `train` or `distil`, from its own config.json."""
    kind, settings = run.info["kind"], run.config
    if "config" not in settings or kind not in ("train", "distil"):
        raise UsageError(f"{run.path}: a {kind} run that cannot be resumed alone: resume the run it belongs to")
    if kind != asked:
        raise UsageError(f"{run.path}: a {kind} run, not one of kind {asked}: go on with it by {kind} --resume")
    config = build_config(settings["config"], unused_noise=True)
    if kind == "train":
        return train_config(config, seed=settings["seed"], run=run, begun=begun, watch=watch)
    return distil_config(config, settings["store"], seed=settings["seed"], run=run, begun=begun, watch=watch)
