"""Config -> teacher, logits, students, measurements: the only module that knows the whole way."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from noisyteacher.config import Config, Recipe, build_config, describe
from noisyteacher.data import Splits, load_data
from noisyteacher.errors import AskedWronglyError, ConfigError, MismatchError
from noisyteacher.extract import extract
from noisyteacher.measure import measure
from noisyteacher.models import build_model, weights_fingerprint
from noisyteacher.noise import Noise
from noisyteacher.objectives import Objective, distil, supervised
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
from noisyteacher.runs import Run, is_run, new_run
from noisyteacher.store import LogitStore

TITLES = {"labels": "student, labels alone", "clean": "student, logit regression", "noisy": "student, noisy teacher"}


@dataclass(frozen=True)
class Plan:
    """What `compress` was asked, with names resolved to things; the one argument of the steps below."""

    run: Run
    data: Splits
    teacher: str | nn.Module
    student: str | nn.Module
    noise: Noise | None
    taught: Mapping[str, Any]
    """Options of `distil`: loss, temperature, label_weight."""
    teacher_recipe: Mapping[str, Any]
    recipe: Mapping[str, Any]
    seeds: int
    baselines: bool
    device: str
    watch: Watch | None


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
    recipe, teacher_recipe = _recipe(training), _recipe(teacher_training or {})
    splits = load_data(data)
    taught = {"loss": loss, "temperature": temperature, "label_weight": label_weight}
    settings = {
        "data": {"name": splits.name, "train": splits.train.fingerprint},
        "teacher": {"name": _called(teacher), **teacher_recipe},
        "student": {"name": _called(student), **recipe, **taught},
        "noise": None if noise is None else noise.describe(),
        "run": {"seeds": seeds, "baselines": baselines, "device": device},
    }
    if seeds < 1:
        raise ConfigError(f"seeds={seeds}: expected a whole number >= 1")
    folder = _folder(run, output_dir, _called(student), settings, None)
    return _compress(
        Plan(folder, splits, teacher, student, noise, taught, teacher_recipe, recipe, seeds, baselines, device, watch)
    )


def compress_config(
    config: Config, *, command: str | None = None, run: Run | None = None, watch: Watch | None = None
) -> Result:
    """The same as `compress`, asked by a Config; `run` is an interrupted one to go on with."""
    noise = Noise(**asdict(config.noise))
    data = load_config_data(config)
    settings = describe(config)
    folder = run or _folder(None, config.run.output_dir, config.student.name, settings, command)
    taught = {name: getattr(config.student, name) for name in ("loss", "temperature", "label_weight")}
    return _compress(
        Plan(
            folder,
            data,
            config.teacher.name,
            config.student.name,
            noise,
            taught,
            recipe_of(config.teacher),
            recipe_of(config.student),
            config.run.seeds,
            config.run.baselines,
            config.run.device,
            watch,
        )
    )


def resume_compress(run: Run, watch: Watch | None = None) -> Result:
    """Go on with an interrupted compression from its own config.json; one that is done is only read."""
    if run.info["kind"] != "compress":
        raise AskedWronglyError(f"{run.path}: a {run.info['kind']} run, not a compression: nothing to resume here")
    done = run.result()
    if done is not None:
        return Result.read(run.path, done)
    return compress_config(build_config(run.config), run=run, watch=watch)


def _compress(plan: Plan) -> Result:
    with errors_kept(plan.run):
        result = _steps(plan)
        plan.run.write_result(result.describe())
    return result


def _steps(plan: Plan) -> Result:
    students = {"noisy" if plan.noise is not None else "clean": plan.noise}
    if plan.baselines:
        students = {"labels": None, "clean": None, **students}
    total = 2 + len(students) * plan.seeds
    build_model(plan.student, plan.data)  # a wrong name is told before the teacher is trained
    teacher = _teacher(plan, f"[1/{total}] teacher {_called(plan.teacher)}")
    started = time.monotonic()
    store = _store(plan, teacher.model, f"[2/{total}] teacher's logits")
    extraction_s = time.monotonic() - started
    trained: dict[str, list[Trained]] = {name: [] for name in students}
    number = 2
    for seed in range(plan.seeds):
        for name, noise in students.items():
            number += 1
            title = f"[{number}/{total}] {TITLES[name]}, seed {seed}"
            trained[name].append(_student(plan, name, noise, seed, teacher, store, title))
    role = "val" if plan.data.test is None else "test"
    costs = {
        name: asdict(measure(model, plan.data.input_shape, device=plan.device))
        for name, model in (("teacher", teacher.model), ("student", next(iter(trained.values()))[0].model))
    }
    rows = [_row("teacher", f"teacher {_called(plan.teacher)}", [teacher], costs["teacher"], role, plan.run)]
    rows += [_row(name, TITLES[name], found, costs["student"], role, plan.run) for name, found in trained.items()]
    n = len(plan.data.val if plan.data.test is None else plan.data.test)
    noise_record = None if plan.noise is None else plan.noise.describe()
    place = os.path.relpath(store.path, plan.run.path)
    return Result(plan.run.path, plan.data.name, role, n, tuple(rows), noise_record, extraction_s, place)


def _teacher(plan: Plan, title: str) -> Trained:
    """The teacher: as given, from its file, or trained in the child run `teacher`."""
    given, data = plan.teacher, plan.data
    if isinstance(given, str) and not names_a_file(given):
        settings = {"data": _data_record(data), "model": given, "recipe": _plain(plan.teacher_recipe), "seed": 0}
        run = plan.run.child("teacher", "train", settings, seed=0)
        return train_run(
            run,
            build_model(given, data, seed=0),
            data,
            supervised(),
            recipe=plan.teacher_recipe,
            seed=0,
            device=plan.device,
            title=title,
            watch=plan.watch,
        )
    found: Run | None = None
    if isinstance(given, str):
        model, found = load_teacher(given, data)
    else:
        model = build_model(given, data)
    settings = {"data": _data_record(data), "given": _called(given), "weights": weights_fingerprint(model)}
    run = plan.run.child("teacher", "given", settings, parents={"run": found.id} if found is not None else None)
    return given_run(run, model, data, device=plan.device, source=found)


def _store(plan: Plan, teacher: nn.Module, title: str) -> LogitStore:
    """The teacher's logits for every view the students train on, in the run's folder `logits`."""
    train = plan.data.train
    name = f"{_called(plan.teacher)}-{plan.data.name}-train-{weights_fingerprint(teacher)[:6]}"
    tell: Callable[[int, int], None] | None = None
    if plan.watch is not None:
        watch = plan.watch

        def tell(done: int, total: int) -> None:
            watch(title, done, total, "answers")

    views = plan.recipe.get("views", "clean")
    return extract(teacher, train, plan.run.path / "logits" / name, views=views, device=plan.device, progress=tell)


def _student(
    plan: Plan, name: str, noise: Noise | None, seed: int, teacher: Trained, store: LogitStore, title: str
) -> Trained:
    """One student under one condition with one seed, in a child run of its own."""
    objective: Objective = supervised() if name == "labels" else distil(store, noise=noise, **plan.taught)
    settings = {
        "data": _data_record(plan.data),
        "model": _called(plan.student),
        "recipe": _plain(plan.recipe),
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
        recipe=plan.recipe,
        seed=seed,
        device=plan.device,
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


def _folder(
    given: str | os.PathLike[str] | None,
    output_dir: str | os.PathLike[str],
    name: str,
    settings: dict[str, Any],
    command: str | None,
) -> Run:
    if given is None:
        return new_run(output_dir, "compress", name, settings, command=command)
    path = Path(given)
    if not is_run(path):
        raise AskedWronglyError(f"{path}: not a run folder: leave run= out to start a new one")
    run = Run.open(path)
    if run.config != _plain(settings):
        raise MismatchError(f"{path}: was started with other arguments: see its config.json, or start a new run")
    return run


def _recipe(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `fit` for a recipe. Raises ConfigError naming those that `compress` sets itself or does not know."""
    known = set(Recipe.__dataclass_fields__) - {"name"}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ConfigError(f"{', '.join(unknown)}: no option of a recipe; known are {', '.join(sorted(known))}")
    return {**recipe_of(Recipe()), **options}


def _data_record(data: Splits) -> dict[str, Any]:
    return {role: split.fingerprint for role, split in data.parts.items()} | {"name": data.name}


def _called(model: str | nn.Module) -> str:
    return type(model).__name__ if isinstance(model, nn.Module) else model.rstrip("/").split("/")[-1]


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON gives them back."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value
