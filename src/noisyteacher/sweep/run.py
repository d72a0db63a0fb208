"""The sweep itself: one teacher and its answers for all, then every cell, wherever it is trained; judged at the end."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from noisyteacher.config import Config, completed
from noisyteacher.errors import MismatchError, UsageError
from noisyteacher.io.files import write_json
from noisyteacher.io.locks import shared_lock
from noisyteacher.measure import measure
from noisyteacher.models import load_model
from noisyteacher.pipeline import (
    CHECKING_TEACHER,
    Plan,
    Watch,
    checked_teacher,
    further_answers,
    its_answers,
    load_config_data,
    options_of,
    settled,
    the_teacher,
)
from noisyteacher.progress import reported, stage, whole_watch
from noisyteacher.runs import Run, is_run, new_run, plain
from noisyteacher.store import LogitStore
from noisyteacher.sweep.cells import Cell, cell_of, progress_of, teacher_record
from noisyteacher.sweep.executors import Make, cluster, local, share_of_threads, train_all
from noisyteacher.sweep.grid import Grid
from noisyteacher.sweep.judging import judge_sweep, preferences
from noisyteacher.sweep.question import Question, asked
from noisyteacher.sweep.result import SweepResult
from noisyteacher.text import plural

CONDITIONS, KIND, SCHEMA = "conditions.json", "sweep-conditions", 1


def sweep(
    base: Mapping[str, Any],
    grids: Sequence[Grid] | Grid,
    *,
    seeds: int | None = None,
    jobs: int = 1,
    stack: int = 1,
    scheduler: str | None = None,
    executor: Make | None = None,
    name: str | None = None,
    command: str | None = None,
    run: Run | str | os.PathLike[str] | None = None,
    parent: Run | None = None,
    allow_import: bool = False,
    begun: Callable[[Run], None] | None = None,
    progress: bool | Watch | None = True,
) -> SweepResult:
    """Train every condition of the grids with every seed, and judge them: a SweepResult and a run folder.

    base: nested settings as in a config file. grids: dotted keys of settings with the values to try, one grid or
    several: `{"noise.sigma": [0.1, 0.5], "noise.draw": ["batch", "row"]}`. A label-only and a clean student of every
    family are always among the conditions. seeds: 0 .. seeds-1 (default: base's run.seeds).
    jobs: processes on this machine. stack: students of one architecture that this process trains at once, in common
    steps (`fit_many`), for a GPU that one does not fill. scheduler: address of a dask scheduler instead. executor: or
    what makes any `concurrent.futures` executor, whose workers must see the run folder and the data (docs/scale.md).
    run: an interrupted sweep, or its folder, to go on with: cells that are done are not run again. parent, name: make
    it a child run.
    allow_import: a teacher's file may name a factory to import, as in `load_model`. progress: True shows on stderr what
    is being done, False shows nothing, a callable is told (stage, done, in all, note).
    A cell that fails is listed in `.failed`; the others go on. Raises NoisyTeacherError before anything is trained.
    """
    if jobs < 1 or stack < 1:
        raise UsageError(f"jobs={jobs}, stack={stack}: expected 1 or more processes, and students at once")
    if (jobs > 1) + (stack > 1) + (scheduler is not None) + (executor is not None) > 1:
        raise UsageError("jobs, stack, scheduler and executor each say who trains the cells: give one of them")
    with reported(progress, whole_watch, delay_s=0.0) as watch:
        question = asked(base, grids, seeds, allow_import)
        config = question.base
        if stack > 1 and config.run.profile:
            raise UsageError("run.profile measures the steps of one student: leave it or stack out")
        with stage(watch, "checking the conditions"):
            question.check()
        title, settings = name or config.student.name or "students", dict(question.settings)
        if run is not None and not isinstance(run, Run):
            run = Run.open(run)
        place: AbstractContextManager[Make | None] = nullcontext(None if jobs == 1 else local(jobs))
        if scheduler is not None:
            place = cluster(scheduler)
        elif executor is not None:
            place = nullcontext(executor)
        with place as make:  # nobody there? then no folder is made
            if run is None and parent is not None:
                run = parent.child(title, "sweep", _as_begun(parent.path / title, settings))
            elif run is None:
                run = new_run(
                    config.run.output_dir, "sweep", title, settings, command=command, title=name or question.title
                )
            elif run.config != _as_begun(run.path, settings):
                raise MismatchError(
                    f"{run.path}: was started with other settings: see its config.json, or start a new one"
                )
            if begun is not None:
                begun(run)
            done = run.result()
            if done is not None and not done["failed"]:
                return SweepResult(run.path, done)
            threads = config.run.threads
            if threads is None and jobs > 1:  # other machines' workers know their own cores
                threads = share_of_threads(jobs)
            with shared_lock(run.path):
                return _run(question, run, threads, make, stack, watch)


def _as_begun(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings as the folder has them where it was begun with the same ones by a version that knew fewer."""
    if not is_run(folder):
        return settings
    found = Run.open(folder).config
    if not isinstance(found.get("base"), dict):
        return settings
    base = completed(found["base"])
    if base["noise"]["sigma"] == "auto" and all("noise.sigma" in grid for grid in settings["grids"]):
        base["noise"]["sigma"] = settings["base"]["noise"]["sigma"]  # once the default; the grids decide it
    return found if {**found, "base": base} == settings else settings


def _run(
    question: Question, run: Run, threads: int | None, make: Make | None, stack: int, watch: Watch | None
) -> SweepResult:
    """Everything from the first teacher to the result, in a run folder that is there."""
    run.clear_error()
    cells, teachers = _prepare(question, run, threads, watch)
    failures = train_all([one for one in cells if Run(one.path).state != "done"], make, _teller(cells, watch), stack)
    results = {
        (one.condition, one.seed): found
        for one in cells
        if one.run not in failures and (found := Run(one.path).result()) is not None
    }
    judged, families = judge_sweep(question.conditions, question.families, results)
    failed = [
        {"condition": one.condition, "seed": one.seed, "run": one.run, "error": failures[one.run]}
        for one in cells
        if one.run in failures
    ]
    content = {"conditions": judged, "families": families, "failed": failed}
    write_json(run.path / CONDITIONS, KIND, SCHEMA, content, within=run.path)
    seconds = {key: one["training"]["seconds"] for key, one in results.items()}  # no second run has the same
    networks = _networks(question, teachers)
    timed = [
        {**one, "training_s": [seconds[one["name"], seed] for seed in one["seeds"]], "network": networks[one["name"]]}
        for one in judged
    ]
    with stage(watch, "measuring costs"):
        costs = _costs(question, run, teachers, timed)
    record = {
        "data": teachers[0]["data"],
        "n": teachers[0]["n"],
        "teacher": teachers[0],
        "teachers": teachers,
        "axes": list(question.axes),
        "conditions": timed,
        "families": families,
        "preferred": preferences(judged, teachers, question.axes),
        "failed": failed,
        "costs": costs,
    }
    run.write_result(record)
    return SweepResult(run.path, plain(record, "result"))


def resume_sweep(
    run: Run,
    *,
    jobs: int = 1,
    stack: int = 1,
    scheduler: str | None = None,
    allow_import: bool = False,
    begun: Callable[[Run], None] | None = None,
    progress: bool | Watch | None = True,
) -> SweepResult:
    """Go on with an interrupted sweep, or one with failed cells, from its own config.json; `progress` as in `sweep`."""
    if run.info["kind"] != "sweep":
        raise UsageError(f"{run.path}: a {run.info['kind']} run, not a sweep: nothing to resume here")
    settings = run.config
    return sweep(
        settings["base"], settings["grids"], seeds=settings["seeds"], jobs=jobs, stack=stack,
        scheduler=scheduler, run=run, allow_import=allow_import, begun=begun, progress=progress,
    )  # fmt: skip


def _prepare(
    question: Question, run: Run, threads: int | None, watch: Watch | None
) -> tuple[list[Cell], list[dict[str, Any]]]:
    """Train or load every teacher, store its answers; returns all cells, seed by seed, and a record per teacher."""
    cells: list[Cell] = []
    teachers: list[dict[str, Any]] = []
    taught = question.taught()
    for number, (name, members) in enumerate(taught.items()):
        data = load_config_data(members[0].config, watch)
        configs = [settled(member.config, data) for member in members]
        config = configs[0]
        views = list(dict.fromkeys(view for each in configs for view in each.student.views))
        shared: Config = replace(config, student=replace(config.student, views=views))
        names = config.teacher.name, config.student.name
        plan = Plan(shared, data, *names, None, (), {}, run, watch, question.allow_import)
        label = name if len(taught) == 1 else f"teacher {number + 1}/{len(taught)}"
        teacher = the_teacher(plan, label, name)
        answers = its_answers(plan, teacher.model, f"{label}'s logits") | further_answers(plan, label)
        with stage(watch, CHECKING_TEACHER):
            checks = checked_teacher(plan, teacher, answers)
        paths = {role: store.path for role, store in answers.items() if isinstance(store, LogitStore)}
        stores = {role: str(Path(path).relative_to(run.path)) for role, path in paths.items()}
        n = {role: len(split) for role, split in data.parts.items()}
        record = teacher_record(teacher.run, teacher.result, members, data.name, n)
        teachers.append({**record, "input_shape": list(data.input_shape), "checks": checks})
        cells += [cell_of(one, seed, run, stores, threads) for seed in range(question.seeds) for one in members]
    return sorted(cells, key=lambda one: one.seed), teachers


def _teller(cells: Sequence[Cell], watch: Watch | None) -> Callable[[Sequence[Cell], dict[str, str]], None]:
    """Relays how far the cells are, by looking at their metrics, to whoever watches."""

    def tell(waiting: Sequence[Cell], failures: dict[str, str]) -> None:
        if watch is None:
            return
        done = len(cells) - len(waiting)
        part = sum(progress_of(cell) for cell in waiting)
        note = f"{done} of {plural(len(cells), 'cell')} done" + (f", {len(failures)} failed" if failures else "")
        watch("sweep", round(100 * (done + part)), 100 * len(cells), note)

    return tell


def _networks(question: Question, teachers: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Of every condition its network in words, with the size of the images where that is not the same for all."""
    shapes = {name: "x".join(map(str, one["input_shape"])) for one in teachers for name in one["conditions"]}
    several = len(set(shapes.values())) > 1
    found = {}
    for one in question.conditions:
        words = [one.config.student.name]
        words += [f"{key} {value}" for key, value in options_of(one.config.student).items()]
        words += [f"images {shapes[one.name]}"] if several else []
        found[one.name] = ", ".join(words)
    return found


def _costs(
    question: Question, run: Run, teachers: Sequence[Mapping[str, Any]], judged: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What every teacher and one student of each kind cost, measured on the CPU."""
    students: dict[str, Any] = {}
    for one in judged:
        if one["network"] not in students and one["runs"]:
            model = load_model(run.path / one["runs"][0] / "weights.safetensors", allow_import=True)  # our own
            students[one["network"]] = asdict(measure(model, device="cpu"))
    found = {}
    for teacher in teachers:
        body = load_model(run.path / teacher["run"] / "weights.safetensors", allow_import=question.allow_import)
        found[str(teacher["run"])] = asdict(measure(body, device="cpu"))
    return {"teacher": found[str(teachers[0]["run"])], "teachers": found, "students": students}
