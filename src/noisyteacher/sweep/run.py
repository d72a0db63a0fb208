"""A sweep: one teacher and its logits for all, then every cell, wherever it is trained, analysed at the end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from noisyteacher.config import Values
from noisyteacher.device import check_count, cpu_threads
from noisyteacher.errors import UsageError
from noisyteacher.io.files import write_json
from noisyteacher.measure import Costs, measure
from noisyteacher.models import SHRINK, load_model, model_record
from noisyteacher.pipeline.experiment import Experiment, extract_logits, extract_more_teachers, prepare_teacher
from noisyteacher.pipeline.preflight import CHECKING_TEACHER, check_teacher
from noisyteacher.pipeline.resolve import load_config_data, refuse_other_settings, resolve_auto
from noisyteacher.pipeline.results import Condition, condition_of, run_name
from noisyteacher.process import cores
from noisyteacher.progress import Watch, reported, stage
from noisyteacher.runs import WEIGHTS, Run, new_run
from noisyteacher.store import LogitStore
from noisyteacher.sweep.analysis import SweepResult, analyse, settings_words
from noisyteacher.sweep.spec import ConditionSpec, Grid, SweepSpec, build_spec, fingerprint
from noisyteacher.sweep.workers import TEACHER, Cell, MakeExecutor, cell_of, cluster, local, train_all
from noisyteacher.text import plural

CONDITIONS, KIND, SCHEMA = "conditions.json", "sweep-conditions", 2


@dataclass(frozen=True)
class PreparedTeacher:
    """A teacher of a sweep whose training is done, and the conditions that learn from it."""

    run: Run
    result: Values
    members: list[ConditionSpec]
    data: str
    n: dict[str, int] = field(default_factory=dict)
    """Images by role."""
    stores: Mapping[str, str] = field(default_factory=dict)
    """Folders of its logits by role, relative to the sweep's."""
    checks: Sequence[Values] = ()


def sweep(
    base: Mapping[str, Any],
    grids: Sequence[Grid] | Grid,
    *,
    seeds: int | None = None,
    jobs: int = 1,
    stack: int = 1,
    scheduler: str | None = None,
    executor: MakeExecutor | None = None,
    name: str | None = None,
    command: str | None = None,
    run: Run | str | os.PathLike[str] | None = None,
    parent: Run | None = None,
    allow_import: bool = False,
    begun: Callable[[Run], None] | None = None,
    progress: bool | Watch | None = True,
) -> SweepResult:
    """Train every condition of the grids with every seed, and analyse them: a SweepResult and a run folder.

    base: nested settings as in a config file. grids: dotted keys of settings with the values to try, one grid or
    several: `{"noise.sigma": [0.1, 0.5], "noise.draw": ["batch", "row"]}`. Every family also has a clean student and
    one on labels alone. seeds: 0 .. seeds-1 (default: base's run.seeds); base's run.control_seeds: of clean students.
    jobs: processes on this machine. stack: students of one architecture that this process trains at once, in common
    steps (`fit_many`), for a GPU that one does not fill. scheduler: address of a dask scheduler. executor: a function
    that makes a `concurrent.futures` executor, whose workers must see the run folder and the data (docs/scale.md).
    run: an interrupted sweep, or its folder, to resume: finished cells are not trained again. parent, name: make it a
    child run. allow_import: as in `load_model`. progress: True shows progress on stderr, False shows nothing, a
    function is called with (stage, done, total, note).
    A cell that fails is listed in `.failed`; the rest is trained. Raises NoisyTeacherError before any training.
    """
    check_workers(jobs, stack, scheduler, executor)
    with reported(progress, delay_s=0.0) as watch:
        spec = build_spec(base, grids, seeds, allow_import)
        settings = spec.base.run
        with stage(watch, "checking the conditions"):
            spec.check(stack)
        if run is not None and not isinstance(run, Run):
            run = Run.open(run)
        if executor is None and jobs > 1:
            executor = local(jobs)
        workers: AbstractContextManager[MakeExecutor | None] = nullcontext(executor)
        if scheduler is not None:
            workers = cluster(scheduler)
        with workers as make_executor:  # before the folder is made: there may be no scheduler
            run = _open_run(spec, run, parent, name, command)
            if begun is not None:
                begun(run)
            done = run.result()
            if done is not None and not done.get("failed"):
                return SweepResult.read(run.path, done)
            threads = settings.threads
            if threads is None and jobs > 1:  # workers on other machines know their own cores
                threads = max(1, cores() // jobs)
            with run.lock(shared=True), cpu_threads(settings.threads):
                return _run(spec, run, threads, make_executor, stack, watch)


def check_workers(jobs: int, stack: int, scheduler: str | None, executor: MakeExecutor | None = None) -> None:
    """Raises UsageError for numbers below 1, and for more than one way of training many students."""
    check_count("jobs", jobs)
    check_count("stack", stack)
    if (jobs > 1) + (stack > 1) + (scheduler is not None) + (executor is not None) > 1:
        raise UsageError("jobs, stack, scheduler, executor: use only one of them")


def resume_sweep(run: Run, **options: Any) -> SweepResult:
    """Resume an interrupted sweep, or one with failed cells, from its own config.json; options: as those of `sweep`."""
    return sweep(run=run, **_settings(run), **options)


def partial_result(run: Run) -> SweepResult:
    """The result of the finished cells of a sweep, without costs; nothing is trained or written.

    Conditions may have different seeds; differences are taken over the seeds that both sides have.
    Raises UsageError for another kind of run, or when no cell is done.
    """
    spec = build_spec(**_settings(run))
    children = {child.path.name: child for child in run.children()}
    results = {name: child.result() or {} for name, child in children.items() if child.state == "done"}
    names = {run_name(condition.name, seed) for condition in spec.conditions for seed in range(spec.control_seeds)}
    failed = {
        name: " ".join((child.error() or "").split())
        for name, child in children.items()
        if name in names and child.state == "failed"
    }
    teachers = [
        PreparedTeacher(children[name], results[name], members, children[name].config["data"]["name"])
        for name, members in spec.by_teacher().items()
        if name in results
    ]
    done = len(names & results.keys())
    if not done or not teachers:
        raise UsageError(f"{run.path}: no cell of this sweep is done yet")
    return replace(_analysed(spec, run, teachers, results, failed), cells=(done, spec.trainings))


def _settings(run: Run) -> Values:
    """base, grids and seeds of a sweep's run folder. Raises UsageError for another kind of run."""
    if run.info["kind"] != "sweep":
        raise UsageError(f"{run.path}: a {run.info['kind']} run, not a sweep: name the folder of a sweep")
    return run.config


def _open_run(spec: SweepSpec, run: Run | None, parent: Run | None, name: str | None, command: str | None) -> Run:
    """The run folder of a new sweep, or the one to resume. Raises MismatchError if that has other settings."""
    title = name or spec.base.student.name or "students"
    if run is not None:
        refuse_other_settings(run, spec.settings, "base")
        return run
    if parent is not None:
        return parent.child(title, "sweep", spec.settings)
    output_dir = spec.base.run.output_dir
    return new_run(output_dir, "sweep", title, spec.settings, command=command, title=name or spec.title)


def _run(
    spec: SweepSpec, run: Run, threads: int | None, make_executor: MakeExecutor | None, stack: int, watch: Watch | None
) -> SweepResult:
    """Everything from the first teacher to the result, in an existing run folder."""
    teachers = list(_prepare(spec, run, watch))
    results: dict[str, Values] = {}
    failed: dict[str, str] = {}

    def train(cells: Sequence[Cell]) -> SweepResult:
        def report(waiting: Sequence[Cell], share: float, failures: Mapping[str, str]) -> None:
            if watch is not None:
                done, failing = before + len(cells) - len(waiting), len(failed) + len(failures)
                note = f"{done} of {plural(spec.trainings, 'cell')} done" + (f", {failing} failed" if failing else "")
                total = 100 * spec.trainings
                most = total - 1 if waiting else total  # a sweep whose cells wait has not ended
                watch("sweep", min(round(100 * (done + share)), most), total, note)

        before = len(results) + len(failed)
        failures = train_all([cell for cell in cells if not cell.done], make_executor, report, stack)
        results.update({cell.name: cell.run.result() or {} for cell in cells if cell.name not in failures})
        failed.update({cell.name: failures[cell.name] for cell in cells if cell.name in failures})
        return _analysed(spec, run, teachers, results, failed)

    cells = [
        (condition, seed, cell_of(condition, seed, run, teacher.stores, threads))
        for seed in range(spec.control_seeds)
        for teacher in teachers
        for condition in teacher.members
    ]
    result = train([cell for condition, seed, cell in cells if seed in spec.seeds_of(condition)])
    chosen = {verdict.condition for verdict in result.verdicts}
    noisy = [(seed, cell) for condition, seed, cell in cells if condition.kind == "noisy" and condition.name in chosen]
    if fresh := [cell for seed, cell in noisy if seed in spec.fresh_seeds]:
        result = train(fresh)
    # Without times, which differ from run to run: an interrupted sweep writes the same bytes as an unbroken one, except
    # with `stack` on a GPU: a resumed sweep groups the cells that are left anew, which changes the rounding.
    timeless = replace(result, conditions=tuple(replace(condition, seconds=()) for condition in result.conditions))
    analysis = {key: timeless.describe()[key] for key in ("conditions", "families", "failed")}
    write_json(run.path / CONDITIONS, KIND, SCHEMA, analysis, within=run.path)
    with stage(watch, "measuring costs"):
        result = _with_costs(result, spec, teachers)
    run.write_result(result.describe())
    return result


def _prepare(spec: SweepSpec, run: Run, watch: Watch | None) -> Iterator[PreparedTeacher]:
    """Every teacher, trained or loaded, with its logits stored."""
    groups = spec.by_teacher()
    for number, (name, members) in enumerate(groups.items(), 1):
        data = load_config_data(members[0].config, watch)
        configs = [resolve_auto(member.config, data) for member in members]
        views = list(dict.fromkeys(view for config in configs for view in config.student.views))
        config = replace(configs[0], student=replace(configs[0].student, views=views))
        experiment = Experiment(
            config=config,
            data=data,
            teacher=config.teacher.name,
            student=config.student.name,
            run=run,
            on_progress=watch,
            allow_import=spec.allow_import,
        )
        label = name if len(groups) == 1 else f"teacher {number}/{len(groups)}"
        teacher = prepare_teacher(experiment, label, name)
        logits = extract_logits(experiment, teacher.model, f"{label}'s logits")
        more_logits, more_teachers = extract_more_teachers(experiment, label, name)
        logits |= more_logits
        with stage(watch, CHECKING_TEACHER):
            checks = [check.describe() for check in check_teacher(experiment, teacher, logits, more_teachers)]
        yield PreparedTeacher(
            teacher.run,
            teacher.result,
            members,
            data.name,
            n={role: len(split) for role, split in data.parts.items()},
            stores={
                role: str(Path(store.path).relative_to(run.path))
                for role, store in logits.items()
                if isinstance(store, LogitStore)
            }
            | {TEACHER: teacher.run.path.name},
            checks=checks,
        )


def _analysed(
    spec: SweepSpec,
    run: Run,
    teachers: Sequence[PreparedTeacher],
    results: Mapping[str, Values],
    failed: dict[str, str],
) -> SweepResult:
    """The result of a sweep, without costs, from the results of its cells by run."""
    conditions = []
    teacher_of = {member.name: teacher for teacher in teachers for member in teacher.members}
    for condition in spec.conditions:
        runs = {seed: run_name(condition.name, seed) for seed in range(spec.control_seeds)}
        runs = {seed: name for seed, name in runs.items() if name in results}
        teacher = teacher_of.get(condition.name)
        conditions.append(
            condition_of(
                condition.name,
                condition.title,
                condition.kind,
                {seed: results[name] for seed, name in runs.items()},
                list(runs.values()),
                model=condition.config.student.name,
                settings=condition.settings,
                family=condition.family,
                teacher=teacher.run.path.name if teacher and len(teachers) > 1 else "",
                data=teacher.data if teacher else "",
            )
        )
    judged, families, verdicts = analyse(conditions, spec.families, spec.axes, spec.seeds)
    rows = _teacher_conditions(teachers)
    return SweepResult(
        path=run.path,
        kind="sweep",
        data=rows[0].data,
        n=rows[0].n,
        role="test" if any(condition.score("test") for condition in (*judged, *rows)) else "val",
        teachers=rows,
        conditions=judged,
        families=families,
        verdicts=verdicts,
        failed=failed,
        checks=tuple(check for teacher in teachers for check in teacher.checks),
        axes=spec.axes,
    )


def _network(run: Run) -> str:
    """The name of a run's network; of one that was trained elsewhere, that of its weights file."""
    weights = run.path / WEIGHTS
    return str(run.config.get("model") or model_record(weights)["architecture"]["name"])


def _teacher_conditions(teachers: Sequence[PreparedTeacher]) -> tuple[Condition, ...]:
    """A condition per teacher; the titles of those of one network say what distinguishes them."""
    models = [_network(teacher.run) for teacher in teachers]
    rows = []
    for teacher, model in zip(teachers, models, strict=True):
        settings = {
            key: value
            for key, value in teacher.members[0].settings.items()
            if key.startswith(("teacher.", "data.")) and not key.endswith(".name")
        }
        words = settings_words({key.split(".")[-1]: value for key, value in settings.items()})
        title = f"teacher {model}" + (f" ({words or teacher.data})" if models.count(model) > 1 else "")
        name, result = teacher.run.path.name, {0: teacher.result}
        row = condition_of(name, title, "teacher", result, [name], model=model, settings=settings, data=teacher.data)
        rows.append(replace(row, n=teacher.n or row.n))
    return tuple(rows)


def _with_costs(result: SweepResult, spec: SweepSpec, teachers: Sequence[PreparedTeacher]) -> SweepResult:
    """The result with what every teacher and one student of each network cost, measured on the CPU."""

    def measured(run: str, allow_import: bool) -> Costs:
        return measure(load_model(result.path / run / WEIGHTS, allow_import=allow_import), device="cpu")

    networks = {}
    for teacher in teachers:
        for member in teacher.members:
            student, data = member.config.student, fingerprint(asdict(member.config.data))
            narrowed_from = teacher.run.path.name if student.name.startswith(SHRINK) else ""
            networks[member.name] = narrowed_from, data, student.name, str(student.options), student.preprocess
    costs: dict[tuple[str, ...], Costs] = {}
    for condition in result.conditions:
        network = networks[condition.name]
        if condition.runs and network not in costs:
            costs[network] = measured(condition.runs[0], True)  # trained by this sweep
    return replace(
        result,
        teachers=tuple(replace(row, costs=measured(row.name, spec.allow_import)) for row in result.teachers),
        conditions=tuple(replace(row, costs=costs.get(networks[row.name])) for row in result.conditions),
    )
