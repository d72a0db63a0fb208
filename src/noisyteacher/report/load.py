"""Run folders of any kind, read for a report: the result, and the epochs and answers of its trainings."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from noisyteacher.config import NoiseSettings, type_adapter
from noisyteacher.errors import FileFormatError, NoisyTeacherError, UsageError
from noisyteacher.io.files import Json
from noisyteacher.measure import Costs
from noisyteacher.paper.run import PaperResult
from noisyteacher.pipeline import Result
from noisyteacher.pipeline.compression_result import HANDED_OVER
from noisyteacher.pipeline.pretrained import check_weights
from noisyteacher.pipeline.results import KINDS, Condition, Estimate, RunResult, Verdict, condition_of, condition_of_run
from noisyteacher.report.study import Curve, Details, Study
from noisyteacher.runs import WEIGHTS, Run, RunInfo, is_run, list_runs
from noisyteacher.sweep import SweepResult, partial_result
from noisyteacher.text import SPLIT_NAMES, sentence

READERS: dict[str, type[RunResult]] = {"compress": Result, "sweep": SweepResult, "paper": PaperResult}
"""Kind of a run of several trainings -> the class of its result."""
SINGLE = {"train": "trained on labels", "distil": "distilled", "given": "trained before"}
"""Kind of a run that is a training on its own -> how its model came about."""
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, RecursionError)
"""What a file of another shape than docs/formats.md says raises where it is used."""
RunLike = str | os.PathLike[str] | Run


@dataclass(frozen=True)
class Training:
    """The files of one training."""

    info: RunInfo
    config: Json
    result: Json
    """{} while the training is not done."""
    epochs: list[Json]

    @property
    def settings(self) -> Json:
        """The settings of the training, wherever its config keeps them."""
        return _table(self.config, "config") or self.config

    @property
    def recipe(self) -> Json:
        """How the model was trained."""
        part = "student" if self.info["kind"] == "distil" else "teacher"
        return _table(self.settings, part) or _table(self.settings, "recipe")

    @property
    def noise(self) -> Json:
        """The settings of the noise; {} for a training on labels."""
        if self.info["kind"] != "distil":
            return {}
        noise = _table(self.settings, "noise") or _table(_table(self.config, "objective"), "noise")
        return noise | _table(_table(self.result, "choice"), "chosen")

    def curve(self) -> Curve:
        """Every metric over the epochs."""
        curve: Curve = {}
        for line in self.epochs:
            numbers = {key: float(value) for key, value in line.items() if type(value) in (int, float)}
            for key, value in numbers.items() if "epoch" in numbers else ():
                curve.setdefault(key, {})[numbers["epoch"]] = value
        return curve


def read_studies(runs: RunLike | Iterable[RunLike]) -> tuple[Study, ...]:
    """One Study per run folder, in the order of `runs`, each folder once.

    An unfinished or failed run is a study that says so. Raises UsageError when there are no runs or a path is no
    run folder, FileFormatError naming the file when one cannot be read.
    """
    all_runs = [runs] if isinstance(runs, (str, os.PathLike, Run)) else runs
    paths = [run.path if isinstance(run, Run) else Path(run) for run in all_runs]
    if not paths:
        raise UsageError("nothing to report: give one or more run folders, such as runs/20261122T1246Z-...")
    return tuple(read_study(path) for path in {path.resolve(): path for path in paths}.values())


def read_study(path: Path) -> Study:
    """The Study of one run folder. Raises as `read_studies` does."""
    if not is_run(path):
        inside = list_runs(path, 1) if path.is_dir() else []
        hint = f"it holds {len(inside)} runs, give those: {inside[0].path} ..." if inside else "it has no run.json"
        raise UsageError(f"{path}: not a run folder: {hint if path.exists() else 'there is no such folder'}")
    try:
        return _study(Run.open(path))
    except (FileFormatError, *MALFORMED) as error:
        problem = str(error) if isinstance(error, FileFormatError) else f"{path}: of another shape: {error!r:.200}"
        hint = "leave this run out of the report, or restore the file from a copy"
        raise FileFormatError(f"{problem}; {hint}") from error


def _study(run: Run) -> Study:
    kind, state, children = run.info["kind"], run.state, run.children()
    notes: list[str] = []
    trainings: dict[str, Training] = {}
    if kind in SINGLE:
        trainings[run.id] = Training(run.info, run.config, run.result() or {}, run.metrics())
    for child in children if kind not in SINGLE else ():
        try:
            trainings[child.path.name] = Training(child.info, child.config, child.result() or {}, child.metrics())
        except FileFormatError as error:
            notes.append(f"{error}: left out.")
    for part in (run, *children):
        try:
            if (file := part.path / WEIGHTS).exists():
                check_weights(part, file)
        except FileFormatError as error:
            notes.append(f"Warning: {error}.")
    result = _result(run, trainings)
    rows, verdicts, handed_over = result.rows, result.verdicts, None
    if isinstance(result, Result) and result.best is not None:
        handed_over = _only_seed(*result.handed_over)
        rows = (*rows, handed_over)
        verdicts = (Verdict(HANDED_OVER, result.compression_verdict(), handed_over.name), *verdicts)
    if state != "done":
        verdicts = (_state_verdict(run, state, children),)
    curves, details = {}, {}
    for row in rows:
        notes += [f"{name}: this part of {run.id} is not there any more." for name in row.runs if name not in trainings]
        members = [trainings[name] for name in row.runs if name in trainings]
        curves[row.name] = tuple(training.curve() for training in members if training.epochs)
        details[row.name] = _details(members) if len(members) == len(row.runs) else {}
    parts = []
    for name in result.sweeps or (sorted(trainings) if kind == "paper" else ()):
        try:
            parts.append(read_study(next(child.path for child in children if child.path.name == name)))
        except (FileFormatError, StopIteration) as error:
            notes.append(f"{error or f'{name}: this part of {run.id} is not there any more'}: left out.")
    names = [_table(config, "data").get("name") for config in (run.config, *(t.config for t in trainings.values()))]
    warnings = (sentence(f"warning: {warning}") for warning in result.warnings)
    return Study(
        run=run,
        state=state,
        result=result if result.data else replace(result, data=next((str(name) for name in names if name), "")),
        verdicts=verdicts,
        notes=(*result.remarks, *warnings, *dict.fromkeys(notes)),
        curves=curves,
        details=details,
        handed_over=handed_over,
        parts=tuple(parts),
    )


def _result(run: Run, trainings: Mapping[str, Training]) -> RunResult:
    """What came of a run; of an unfinished one, what its trainings that are done show."""
    record, kind = run.result(), run.info["kind"]
    result = RunResult(path=run.path, kind=kind)
    if kind in SINGLE:
        row = _condition(trainings, [run.id])
        result = replace(result, data=row.data, n=row.n, role=row.role, choice=(record or {}).get("choice"))
        return replace(result, conditions=(row,), verdicts=_measured(row))
    if record is not None:
        return READERS.get(kind, RunResult).read(run.path, record)
    if kind == "sweep":
        try:
            return replace(partial_result(run), verdicts=())
        except FileFormatError:
            raise
        except NoisyTeacherError:  # no training is done, or its settings cannot be read here
            return result
    rows = []
    for group in (*KINDS, "clean-chosen", "noisy-chosen"):  # as a compression names its conditions
        names = [name for name, each in trainings.items() if condition_of_run(name) == group and each.result]
        rows += [_condition(trainings, names, group)] if names else []
    if not rows:
        return result
    students = tuple(row for row in rows if row.kind != "teacher")
    teachers = tuple(row for row in rows if row.kind == "teacher")
    return replace(result, data=rows[0].data, n=rows[0].n, role=rows[0].role, teachers=teachers, conditions=students)


def _condition(trainings: Mapping[str, Training], names: Sequence[str], kind: str = "") -> Condition:
    """The condition of these trainings; without a kind, that of a training on its own."""
    members = [trainings[name] for name in names]
    first = members[0]
    info, settings, noise = first.info, first.settings, first.noise
    model = settings.get("model") or settings.get("given") or first.recipe.get("name") or info["name"]
    name, title, chosen = kind, kind, "auto" not in noise.values()
    if not kind:
        name, title = names[0], f"{model}, {SINGLE[info['kind']]}"
        kind = "model"
        if chosen and info["kind"] == "distil":
            kind = "clean" if type_adapter(NoiseSettings).validate_python(noise).off else "noisy"
    costs = first.result.get("costs")
    results = {training.info["seed"] or 0: training.result for training in members if training.result}
    condition = condition_of(name, title, kind.removesuffix("-chosen"), results, names, model=str(model))
    return replace(
        condition,
        settings={f"noise.{key}": value for key, value in noise.items()} if chosen else {},
        data=str(_table(settings, "data").get("name") or ""),
        costs=None if costs is None else type_adapter(Costs).validate_python(costs),
    )


def _state_verdict(run: Run, state: str, children: Sequence[Run]) -> Verdict:
    """Of a run that is not done: that it is not, and what is there."""
    done = sum(child.state == "done" for child in children)
    parts = f"; {done} of the {len(children)} parts begun so far are done" if children else ""
    if state == "failed":
        why = " ".join((run.error() or "").split())
        return Verdict(state, f"this run failed: {why or 'error.txt is empty'}{parts}")
    started = run.started[:16].replace("T", " ")
    return Verdict(state, f"this run is not finished (started {started} UTC{parts}) and claims nothing yet")


def _only_seed(row: Condition, number: int) -> Condition:
    """A condition with one of its seeds alone, named in its title where there are several."""
    seed, run, seconds = row.seeds[number], row.runs[number], row.seconds[number : number + 1]
    title = f"{row.title}, seed {seed}" if len(row.seeds) > 1 else row.title
    scores = {
        role: {key: Estimate.of([score.per_seed[number]], score.unit) or score for key, score in estimates.items()}
        for role, estimates in row.scores.items()
    }
    row = replace(row, name=run, title=title, seeds=(seed,), runs=(run,), seconds=seconds)
    return replace(row, scores=scores, against_clean={})


def _measured(condition: Condition) -> tuple[Verdict, ...]:
    """The error of a single model; nothing is claimed of noise."""
    role = condition.role
    if (error := condition.score(role)) is None:
        return ()
    words = f"{condition.title}: {SPLIT_NAMES[role]} error {error.mean:.2f} %"
    basis = f"95 % interval {condition.interval_text(role)}, n = {condition.n.get(role, 0):,} images"
    return (Verdict("", f"{words}, {basis}", condition.name),)


def _details(trainings: Sequence[Training]) -> dict[str, Details]:
    """Confusion and reliability by role, counts summed over the seeds; {} unless all trainings have them."""
    tables = [_table(training.result, "details") for training in trainings]
    if not tables or not all(tables):
        return {}
    classes = [_table(each.settings, "data").get("classes") or each.result.get("classes") for each in trainings]
    names = tuple(map(str, next(filter(None, classes), ())))
    roles = sorted(set.intersection(*map(set, tables)))
    return {role: _summed([table[role] for table in tables], names) for role in roles}


def _summed(tables: Sequence[Json], classes: tuple[str, ...]) -> Details:
    """The counts of several runs on one split, added up; bins are averaged by their rows. Raises one of MALFORMED."""
    matrices = [table.get("confusion") for table in tables]
    confusion = None if None in matrices else np.array(matrices, dtype=np.int64).sum(0)
    if confusion is not None:
        if confusion.ndim != 2 or len(set(confusion.shape)) > 1:
            raise ValueError("confusions are not square or differ in size")
        classes = classes if len(classes) == len(confusion) else tuple(map(str, range(len(confusion))))
    curves = [table.get("reliability") or {"count": [], "confidence_%": [], "accuracy_%": []} for table in tables]
    keys = ("count", "confidence_%", "accuracy_%")
    counts, *values = (np.nan_to_num(np.array([curve[key] for curve in curves], dtype=np.float64)) for key in keys)
    rows = counts.sum(0)
    bins = np.stack([rows, *((counts * value).sum(0) / np.maximum(1, rows) for value in values)], axis=1)
    return Details(confusion, bins[rows > 0], len(tables), classes)


def _table(record: Json, key: str) -> Json:
    value = record.get(key)
    return value if isinstance(value, dict) else {}
