"""What every way to students is made of: the teacher, its answers to every split, one student under one condition."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from noisyteacher.config import Student
from noisyteacher.data import Split, expand_views
from noisyteacher.distributed import on_rank_zero
from noisyteacher.extract import extract
from noisyteacher.io.files import make_folder, sha256
from noisyteacher.io.locks import shared_lock
from noisyteacher.models import build_model, weights_fingerprint
from noisyteacher.noise import Noise
from noisyteacher.objectives import Objective, distil, supervised
from noisyteacher.pipeline.given import is_given, names_a_file, network_of
from noisyteacher.pipeline.overlap import trained_on
from noisyteacher.pipeline.plan import Answers, Plan, called, data_record, module_record, plain
from noisyteacher.pipeline.steps import front_of, given_run, in_order, keeping_of, load_teacher, options_of, recipe_of
from noisyteacher.pipeline.training import Trained, Training, train_run
from noisyteacher.progress import counted, stage
from noisyteacher.runs import Run
from noisyteacher.store import LogitStore


def titles_of(student: Student) -> dict[str, str]:
    """What each condition is called in words: the one without noise by the paper's loss, where it is that alone."""
    papers = student.loss == "logit_regression" and student.label_weight == 0
    return {
        "labels": "student, labels alone",
        "clean": "student, logit regression" if papers else "student, distilled",
        "noisy": "student, noisy teacher",
    }


def controls(plan: Plan) -> list[str]:
    """The conditions that others are held against: labels alone, where there are labels, and clean logit regression."""
    if not plan.config.run.baselines:
        return []
    return ["clean"] if plan.data.train.labels is None else ["labels", "clean"]


def conditions_of(plan: Plan) -> set[str]:
    """All conditions of a compression; where the noise is yet to be chosen, as if one were."""
    taught = "clean" if plan.noise is None and not plan.candidates else "noisy"
    return {*controls(plan), taught}


def the_teacher(plan: Plan, title: str, name: str = "teacher") -> Trained:
    """The teacher: as given, from its file, or trained; kept in the child run `name`."""
    given, data = plan.teacher, plan.data
    if isinstance(given, str) and not is_given(given, plan.config.teacher, data):
        model = network_of(plan.config.teacher, given, data)
        recipe = recipe_of(plan.config.teacher, model, data)
        options = options_of(plan.config.teacher)
        weights = plan.config.teacher.weights
        settings = {
            "data": data_record(data), "model": given, "options": options, "recipe": plain(recipe), "seed": 0,
            **front_of(plan.config.teacher),
        }  # fmt: skip
        if weights:
            settings["weights"] = weights_fingerprint(model)
            title = f"{title}: {os.path.basename(weights)} with a new head of {data.classes} classes"
        return train_run(
            Training(
                run=plan.run.child(name, "train", settings, seed=0),
                model=model,
                data=data,
                objective=supervised(),
                recipe=recipe,
                seed=0,
                device=plan.config.run.device,
                keeping=keeping_of(plan.config),
                title=title,
                watch=plan.watch,
            )
        )
    found: Run | None = None
    if isinstance(given, str):
        model, found = load_teacher(given, data, plan.allow_import, plan.config.teacher)
    else:
        model = in_order(build_model(given, data), plan.config.teacher)
    settings = {"data": data_record(data), "given": called(given), "weights": weights_fingerprint(model)}
    run = plan.run.child(name, "given", settings, parents={"run": found.id} if found is not None else None)
    order = plan.config.teacher.class_order
    known = trained_on(given) if isinstance(given, str) and names_a_file(given) else None
    with stage(plan.watch, title):
        return given_run(
            run, model, data, device=plan.config.run.device, source=found, watch=plan.watch, order=order,
            trained_on=known,
        )  # fmt: skip


def its_answers(plan: Plan, teacher: nn.Module, title: str) -> dict[str, LogitStore | nn.Module]:
    """The teacher's stored logits by role, in the run's folder `logits`.

    For the views the students train on, and of clean images for the splits on which they are compared with it. Where
    students see augmented images no store can serve: `live` is then the teacher itself, in the place of `train`.
    """
    views = {"train": expand_views(plan.config.student.views)}
    tell: Callable[[int, int], None] | None = None
    if plan.watch is not None:
        sizes = {role: len(split) * len(views.get(role, ("",))) for role, split in plan.data.parts.items()}
        if plan.live:
            del sizes["train"]
        begun, total = dict.fromkeys(sizes, 0), sum(sizes.values())
        report = counted(plan.watch, title, "answers")

        def tell(done: int, _: int) -> None:
            begun[role] = done
            if sum(begun.values()) < total:
                report(sum(begun.values()), total)

        report(0, total)
    found: dict[str, LogitStore | nn.Module] = {"live": teacher} if plan.live else {}
    folder = plan.run.path
    with shared_lock(*plan.run.around, folder):
        make_folder(folder / "logits", folder)
        for role, split in plan.data.parts.items():
            if role == "train" and plan.live:
                continue
            precision = plan.config.teacher.logits_precision
            path = folder / "logits" / store_name(called(plan.teacher), split, teacher, precision)
            found[role] = extract(
                teacher, split, path, views=views.get(role, ("clean",)), device=plan.config.run.device,
                precision=precision, progress=tell or False,
            )  # fmt: skip
    if plan.watch is not None:
        report(total, total)
    return found


def further_answers(plan: Plan, title: str) -> dict[str, LogitStore | nn.Module]:
    """The answers of `teacher.also` to the training split, called train-2, train-3, ...; empty with one teacher.

    Live ones are called live-2, live-3, ...
    """
    found: dict[str, LogitStore | nn.Module] = {}
    for number, name in enumerate(plan.config.teacher.also, 2):
        only_first = replace(plan.config.teacher, weights="", class_order=[])
        other = replace(plan, teacher=name, config=replace(plan.config, teacher=only_first))
        trained = the_teacher(other, f"{title} {number}", f"teacher-{number}")
        if plan.live:
            found[f"live-{number}"] = trained.model
            continue
        only = replace(other, data=replace(plan.data, test=None))
        found[f"train-{number}"] = its_answers(only, trained.model, f"{title} {number}'s logits")["train"]
    return found


def taught_by(plan: Plan, answers: Answers) -> tuple[Any, dict[str, str]]:
    """What `distil` is given of the answers, and what a student's run names as its parents."""
    name = "live" if plan.live else "train"
    several = [found for role, found in answers.items() if role.partition("-")[0] == name]
    first = answers[name]
    if isinstance(first, LogitStore):
        parents = {"teacher": first.fingerprints["teacher"], "store": first.digest}
    else:
        parents = {"teacher": weights_fingerprint(first)}
    return several if len(several) > 1 else first, parents


def store_name(teacher: str, split: Split, model: nn.Module, precision: str = "fp32") -> str:
    """What a store's folder is called: `lenet-mnist-5k-train-2b7e11`, by the weights and the images; `-bf16` behind it
    where the answers were asked for in that.
    """
    whose = sha256((weights_fingerprint(model).encode(), split.fingerprint.encode()))
    return f"{teacher}-{split.name}-{split.role}-{whose[:6]}" + ("" if precision == "fp32" else f"-{precision}")


def a_student(
    plan: Plan, run: str, condition: str, noise: Noise | None, seed: int, answers: Answers, title: str
) -> Trained:
    """One student, trained as `its_training` says."""
    return train_run(its_training(plan, run, condition, noise, seed, answers, title))


def its_training(
    plan: Plan, run: str, condition: str, noise: Noise | None, seed: int, answers: Answers, title: str
) -> Training:
    """How one student is trained with one seed in the child run `run`: on labels alone where the condition is `labels`,
    else distilled from the teacher's answers under the noise.
    """
    source, parents = taught_by(plan, answers)
    objective: Objective = supervised() if condition == "labels" else distil(source, noise=noise, **plan.taught)
    student = copy.deepcopy(plan.student) if isinstance(plan.student, nn.Module) else plan.student
    first = answers["live" if plan.live else "train"]
    teacher = first.meta.get("teacher", {}) if isinstance(first, LogitStore) else first
    teacher = plan.teacher if isinstance(plan.teacher, nn.Module) else teacher
    model = network_of(plan.config.student, student, plan.data, seed, teacher)
    recipe = recipe_of(plan.config.student, model, plan.data)
    settings = {
        "data": data_record(plan.data),
        "model": called(plan.student),
        "options": plan.options,
        "recipe": plain(recipe),
        "objective": objective.describe(),
        "seed": seed,
        **front_of(plan.config.student),
    }
    if isinstance(plan.student, nn.Module):
        settings["module"] = module_record(plan.student)
    if condition == "labels":
        parents.pop("store", None)
    kind = "train" if condition == "labels" else "distil"
    folder = on_rank_zero(lambda: plan.run.child(run, kind, settings, parents=parents, seed=seed))
    return Training(
        run=folder,
        model=model,
        data=plan.data,
        objective=objective,
        recipe=recipe,
        seed=seed,
        device=plan.config.run.device,
        keeping=keeping_of(plan.config),
        answers={role: found for role, found in answers.items() if role in plan.data.parts and role != "train"},
        title=title,
        watch=plan.watch,
    )
