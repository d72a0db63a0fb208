"""Config -> teacher, logits, students, measurements: the only module that knows the whole way."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from torch import nn

from noisyteacher.config import Config, build_config, describe
from noisyteacher.data import load_data
from noisyteacher.errors import AskedWronglyError
from noisyteacher.extract import extract
from noisyteacher.measure import measure
from noisyteacher.models import build_model, weights_fingerprint
from noisyteacher.noise import Noise
from noisyteacher.objectives import Objective, distil, supervised
from noisyteacher.pipeline.plan import Plan, called, data_record, folder_for, plain, refuse_early
from noisyteacher.pipeline.result import Result, Row
from noisyteacher.pipeline.steps import (
    Trained,
    Watch,
    errors_kept,
    given_run,
    load_config_data,
    load_teacher,
    names_a_file,
    recipe_of,
    train_run,
)
from noisyteacher.runs import Run
from noisyteacher.store import LogitStore

TITLES = {"labels": "student, labels alone", "clean": "student, logit regression", "noisy": "student, noisy teacher"}


def compress(
    teacher: str | nn.Module,
    student: str | nn.Module,
    data: Any,
    *,
    noise: Noise | None = None,
    seeds: int = 1,
    baselines: bool = True,
    loss: str = "logit_regression",
    temperature: float | None = None,
    label_weight: float = 0.0,
    teacher_training: Mapping[str, Any] | None = None,
    output_dir: str | os.PathLike[str] = "runs",
    run: str | os.PathLike[str] | None = None,
    device: str = "auto",
    tensorboard: bool = False,
    watch: Watch | None = None,
    **training: Any,
) -> Result:
    """The whole way in one call: teacher, stored logits, students over `seeds`, costs, a table, a run folder.

    teacher: a trained nn.Module, a run folder or weights file, or the name of a network, which is trained first (with
    the options `teacher_training` of `fit`). student: a name, `pkg.module:factory`, or an nn.Module (every seed then
    starts from its weights). data: anything `load_data` takes. noise: the noise on the logits; None compresses by clean
    logit regression. baselines: also train the same students on labels and by clean logit regression, with the same
    seeds, so that the verdict can be paired. training: options of `fit` for the students.
    run: the folder of an interrupted call with the same arguments, to go on with it.
    Raises NoisyTeacherError; what was done before stays in the run folder.
    """
    config = build_config(
        {
            "teacher": {"name": called(teacher), **_listed(teacher_training or {})},
            "student": {
                "name": called(student), "loss": loss, "temperature": temperature, "label_weight": label_weight,
                **_listed(training),
            },
            "run": {
                "seeds": seeds, "baselines": baselines, "output_dir": os.fspath(output_dir), "device": device,
                "tensorboard": tensorboard,
            },
        }
    )  # fmt: skip
    splits = load_data(data)
    settings = describe(config) | {
        "call": "python",
        "data": data_record(splits),
        "noise": None if noise is None else noise.describe(),
    }
    refuse_early(teacher, student, splits, config)
    folder = folder_for(run, config.run.output_dir, called(student), settings, None)
    return _compress(Plan(config, splits, teacher, student, noise, settings, folder, watch))


def compress_config(
    config: Config,
    *,
    command: str | None = None,
    run: Run | None = None,
    begun: Callable[[Run], None] | None = None,
    watch: Watch | None = None,
) -> Result:
    """The same as `compress`, asked by a Config. `run` is an interrupted one to go on with; `begun` is told the run."""
    noise, settings, data = Noise(**asdict(config.noise)), describe(config), load_config_data(config)
    teacher, student = config.teacher.name, config.student.name
    refuse_early(teacher, student, data, config)
    folder = folder_for(run, config.run.output_dir, student, settings, command)
    if begun is not None:
        begun(folder)
    return _compress(Plan(config, data, teacher, student, noise, settings, folder, watch))


def resume_compress(run: Run, begun: Callable[[Run], None] | None = None, watch: Watch | None = None) -> Result:
    """Go on with an interrupted compression from its own config.json; one that is done is only read."""
    if run.info["kind"] != "compress":
        raise AskedWronglyError(f"{run.path}: a {run.info['kind']} run, not a compression: nothing to resume here")
    if run.config.get("call") == "python":
        raise AskedWronglyError(
            f"{run.path}: was started in Python: call compress(..., run={str(run.path)!r}) there again"
        )
    done = run.result()
    if done is not None:
        return Result.read(run.path, done)
    return compress_config(build_config(run.config), run=run, begun=begun, watch=watch)


def _compress(plan: Plan) -> Result:
    with errors_kept(plan.run):
        result = _steps(plan)
        plan.run.write_result(result.describe())
    return result


def _steps(plan: Plan) -> Result:
    students = {"noisy" if plan.noise is not None else "clean": plan.noise}
    if plan.config.run.baselines:
        students = {"labels": None, "clean": None, **students}
    total = 2 + len(students) * plan.config.run.seeds
    teacher = _teacher(plan, f"[1/{total}] teacher {called(plan.teacher)}")
    started = time.monotonic()
    store = _store(plan, teacher.model, f"[2/{total}] teacher's logits")
    extraction_s = time.monotonic() - started
    trained: dict[str, list[Trained]] = {name: [] for name in students}
    number = 2
    for seed in range(plan.config.run.seeds):
        for name, noise in students.items():
            number += 1
            title = f"[{number}/{total}] {TITLES[name]}, seed {seed}"
            trained[name].append(_student(plan, name, noise, seed, teacher, store, title))
    role = "val" if plan.data.test is None else "test"
    costs = {
        name: asdict(measure(model, plan.data.input_shape, device=plan.config.run.device))
        for name, model in (("teacher", teacher.model), ("student", next(iter(trained.values()))[0].model))
    }
    rows = [_row("teacher", f"teacher {called(plan.teacher)}", [teacher], costs["teacher"], role, plan.run)]
    rows += [_row(name, TITLES[name], found, costs["student"], role, plan.run) for name, found in trained.items()]
    n = len(plan.data.val if plan.data.test is None else plan.data.test)
    noise_record = None if plan.noise is None else plan.noise.describe()
    place = os.path.relpath(store.path, plan.run.path)
    return Result(plan.run.path, plan.data.name, role, n, tuple(rows), noise_record, extraction_s, place)


def _teacher(plan: Plan, title: str) -> Trained:
    """The teacher: as given, from its file, or trained in the child run `teacher`."""
    given, data = plan.teacher, plan.data
    if isinstance(given, str) and not names_a_file(given):
        settings = {
            "data": data_record(data),
            "model": given,
            "recipe": plain(recipe_of(plan.config.teacher)),
            "seed": 0,
        }
        run = plan.run.child("teacher", "train", settings, seed=0)
        return train_run(
            run,
            build_model(given, data, seed=0),
            data,
            supervised(),
            recipe=recipe_of(plan.config.teacher),
            seed=0,
            device=plan.config.run.device,
            tensorboard=plan.config.run.tensorboard,
            title=title,
            watch=plan.watch,
        )
    found: Run | None = None
    if isinstance(given, str):
        model, found = load_teacher(given, data)
    else:
        model = build_model(given, data)
    settings = {"data": data_record(data), "given": called(given), "weights": weights_fingerprint(model)}
    run = plan.run.child("teacher", "given", settings, parents={"run": found.id} if found is not None else None)
    return given_run(run, model, data, device=plan.config.run.device, source=found)


def _store(plan: Plan, teacher: nn.Module, title: str) -> LogitStore:
    """The teacher's logits for every view the students train on, in the run's folder `logits`."""
    train = plan.data.train
    name = f"{called(plan.teacher)}-{plan.data.name}-train-{weights_fingerprint(teacher)[:6]}"
    tell: Callable[[int, int], None] | None = None
    if plan.watch is not None:
        watch = plan.watch

        def tell(done: int, total: int) -> None:
            watch(title, done, total, "answers")

    views = tuple(plan.config.student.views)
    return extract(
        teacher, train, plan.run.path / "logits" / name, views=views, device=plan.config.run.device, progress=tell
    )


def _student(
    plan: Plan, name: str, noise: Noise | None, seed: int, teacher: Trained, store: LogitStore, title: str
) -> Trained:
    """One student under one condition with one seed, in a child run of its own."""
    objective: Objective = supervised() if name == "labels" else distil(store, noise=noise, **plan.taught)
    settings = {
        "data": data_record(plan.data),
        "model": called(plan.student),
        "recipe": plain(recipe_of(plan.config.student)),
        "objective": objective.record,
        "seed": seed,
    }
    parents = {"teacher": weights_fingerprint(teacher.model)}
    if name != "labels":
        parents["store"] = store.digest
    run = plan.run.child(
        f"{name}-seed{seed}", "train" if name == "labels" else "distil", settings, parents=parents, seed=seed
    )
    source = copy.deepcopy(plan.student) if isinstance(plan.student, nn.Module) else plan.student
    return train_run(
        run,
        build_model(source, plan.data, seed=seed),
        plan.data,
        objective,
        recipe=recipe_of(plan.config.student),
        seed=seed,
        device=plan.config.run.device,
        tensorboard=plan.config.run.tensorboard,
        teacher=teacher.model,
        title=title,
        watch=plan.watch,
    )


def _row(name: str, title: str, found: list[Trained], costs: Mapping[str, Any], role: str, run: Run) -> Row:
    scores = [one.result["scores"][role] for one in found]
    return Row(
        name,
        title,
        tuple(float(one["error"]["value"]) for one in scores),
        tuple(float(one["agreement"]["value"]) for one in scores if "agreement" in one),
        tuple(float(one.result["training"]["seconds"]) for one in found if one.result["training"]),
        costs,
        tuple(os.path.relpath(one.run.path, run.path) for one in found),
    )


def _listed(training: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `fit` as settings hold them: views as a list."""
    views = training.get("views", ["clean"])
    return {**training, "views": views.split(",") if isinstance(views, str) else list(views)}
