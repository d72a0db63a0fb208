"""Run folders of any kind, read for a report: the result, and the epochs and answers of its trainings."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from noisyteacher.config import type_adapter
from noisyteacher.errors import FileFormatError, NoisyTeacherError, UsageError
from noisyteacher.io.files import Json
from noisyteacher.measure import Costs
from noisyteacher.pipeline import HANDED_OVER, Condition, Estimate, Result, RunResult, Verdict, condition_of
from noisyteacher.runs import Run, RunInfo, is_run, list_runs
from noisyteacher.sweep import SweepResult, partial_result
from noisyteacher.text import SPLIT_NAMES, plural, sentence

SINGLE = {"train": "trained on labels", "distil": "distilled", "given": "trained before"}
"""Kind of a run that is a training on its own -> how its model came about."""
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, RecursionError)
"""What a file of another shape than docs/formats.md says raises where it is used."""
MAX_CURVES = 6
"""Conditions in one figure of epochs or calibration: more cannot be distinguished."""
RunLike = str | os.PathLike[str] | Run
Curve = dict[str, dict[float, float]]
"""The epochs of a training: metric -> epoch -> value, without what is missing or not a number."""


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


@dataclass(frozen=True)
class Details:
    """Confusion and reliability of a condition on one split, counts summed over its seeds."""

    confusion: NDArray[np.int64] | None
    """[K, K]: rows are labels, columns chosen classes."""
    bins: NDArray[np.float64]
    """[B, 3], of every bin that is not empty: rows, mean confidence (%), accuracy (%); [0, 3] without labels."""
    seeds: int
    classes: tuple[str, ...]
    """Names of the classes of the confusion; their numbers where the runs have none."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """One run folder as a report shows it."""

    run: Run
    state: str
    result: RunResult
    verdicts: tuple[Verdict, ...] = ()
    notes: tuple[str, ...] = ()
    """What is missing or unusual, in sentences."""
    curves: Mapping[str, tuple[Curve, ...]]
    """By condition: one per seed."""
    details: Mapping[str, Mapping[str, Details]]
    """By condition, then by role."""
    handed_over: Condition | None = None
    """Of a compression: the student that is handed over, with its one seed; not among the result's conditions."""
    candidates: tuple[Condition, ...] = ()
    """The noises that a run chose from."""
    parts: tuple[Study, ...] = ()
    """The sweeps of a reproduction."""

    @property
    def kind(self) -> str:
        """`compress`, `sweep`, `paper`, or a key of SINGLE."""
        return str(self.run.info["kind"])

    @property
    def command(self) -> str:
        """The command that started the run; "" where none is recorded."""
        command = self.run.info["command"]
        return " ".join(map(str, command)) if isinstance(command, list) else str(command or "")

    @property
    def rows(self) -> tuple[Condition, ...]:
        """Teachers, then students."""
        return self.result.rows

    @property
    def role(self) -> str:
        """The split that is reported on."""
        return self.result.role

    @property
    def over_noise(self) -> bool:
        """Whether noise is in question: used, put on a grid, chosen from candidates, or still to be chosen."""
        result, noise = self.result, self.run.config.get("noise")
        return bool(
            result.choice
            or any(row.kind == "noisy" for row in result.rows)
            or "auto" in (noise.values() if isinstance(noise, dict) else (noise,))
            or any(axis.startswith("noise.") for axis in result.axes)
        )

    @property
    def reference(self) -> str:
        """What the student without noise is called: `clean`, or `distilled` where no student has noise."""
        return "clean" if self.over_noise else "distilled"

    @property
    def models(self) -> str:
        """Which models on which data: `"mlp800 from lenet, mnist-5k"`."""
        networks = filter(None, (network(self.result.conditions), network(self.result.teachers)))
        data = dict.fromkeys(map(self.data_of, self.rows)) if self.rows else (self.result.data,)
        return ", ".join([" from ".join(networks) or str(self.run.info["name"]), *filter(None, data)])

    def with_parts(self) -> list[Study]:
        """This study and those inside it, in order."""
        return [self, *(inner for part in self.parts for inner in part.with_parts())]

    def picks(self) -> list[Condition]:
        """The conditions that a figure of epochs or calibration shows: all, or the controls and the best noises."""
        if len(self.rows) <= MAX_CURVES:
            return list(self.rows)
        noisy = {row.name: error.mean for row in self.rows if row.kind == "noisy" and (error := row.score("val"))}
        picks = [row for row in self.rows if row.kind != "noisy" or row.name in noisy]
        return sorted(picks, key=lambda row: noisy.get(row.name, -1.0))[:MAX_CURVES]

    def data_of(self, condition: Condition) -> str:
        """The name of a condition's data."""
        return condition.data or self.result.data

    def split_of(self, condition: Condition) -> tuple[str, int | None]:
        """(data, images) of the split that a condition's errors are of: only conditions of one split are compared."""
        return self.data_of(condition), condition.n.get(self.role)

    def is_chosen(self, condition: Condition) -> bool:
        """Whether validation prefers it in its family."""
        if self.result.choice is not None and condition in self.candidates:
            chosen = self.result.choice["chosen"]
            return all(condition.settings[f"noise.{key}"] == chosen[key] for key in ("sigma", "alpha"))
        return any(family.by_validation[:1] == (condition.name,) for family in self.result.families)

    def is_handed_over(self, condition: Condition) -> bool:
        """Whether the student that is handed over is one of its seeds."""
        return self.handed_over is not None and self.handed_over.runs[0] in condition.runs

    def marks(self, condition: Condition) -> str:
        """What distinguishes a condition: handed over, chosen by validation, least on test."""
        marks = ["chosen by validation"] if self.is_chosen(condition) else []
        marks += ["least on test"] if any(condition.name in family.by_test for family in self.result.families) else []
        if self.handed_over is not None and self.is_handed_over(condition):
            errors = self.handed_over.errors if len(condition.errors) > 1 else ()
            seed = f": seed {self.handed_over.seeds[0]}, {errors[0]:.2f} %" if errors else ""
            marks.insert(0, HANDED_OVER + seed)
        return ", ".join(marks)

    def verdict_condition(self, verdict: Verdict) -> Condition | None:
        """The condition that a verdict is about."""
        return self.handed_over if verdict.word == HANDED_OVER else self.result.condition(verdict.condition)

    def images(self, role: str, conditions: Iterable[Condition]) -> str:
        """How many images of one split the conditions are scored on, by data set where they differ; "" if unknown.

        `"n = 400 images"`, `"n = 150 (tiny), 60 (easy) images"`.
        """
        pairs = dict.fromkeys((self.data_of(row), row.n[role]) for row in conditions if row.n.get(role))
        if not pairs:
            return ""
        several = len({n for _, n in pairs}) > 1
        sizes = [f"{n:,} ({data})" if several else f"{n:,}" for data, n in pairs]
        return f"n = {', '.join(sizes if several else sizes[:1])} images"


def verdict_text(verdict: Verdict) -> str:
    """The verdict with its capital and full stop; a name or a setting at its beginning keeps its case."""
    text = verdict.sentence.rstrip(".")
    return sentence(text) if re.match("[a-z]+ ", text) else f"{text}."


def heading(studies: Sequence[Study]) -> str:
    """The title of a report: the models of one run, the name of one with runs in it, or how many runs there are."""
    if len(studies) > 1:
        return plural(len(studies), "run")
    return str(studies[0].run.info["name"]) if studies[0].parts else studies[0].models


def tagged(studies: Sequence[Study]) -> list[str]:
    """A short name per study: A, B, ..., Z, 27, 28, ..."""
    return [chr(65 + number) if number < 26 else str(number + 1) for number in range(len(studies))]


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
        candidates=_candidates(result.choice or {}),
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
        reader = {"compress": Result, "sweep": SweepResult}.get(kind, RunResult)
        return reader.read(run.path, record)
    if kind == "sweep":
        try:
            return replace(partial_result(run), verdicts=())
        except FileFormatError:
            raise
        except NoisyTeacherError:  # no training is done, or its settings cannot be read here
            return result
    rows = []
    for group in ("teacher", "labels", "clean", "noisy"):
        names = [name for name, each in trainings.items() if name.partition("-seed")[0] == group and each.result]
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
        kind = "model" if not chosen or info["kind"] != "distil" else "noisy" if _changes_logits(noise) else "clean"
    costs = first.result.get("costs")
    results = {training.info["seed"] or 0: training.result for training in members if training.result}
    condition = condition_of(name, title, kind, results, names, model=str(model))
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


def _candidates(choice: Json) -> tuple[Condition, ...]:
    """The noises that a run chose from, with the validation errors it chose by."""
    candidates = []
    for record in choice.get("candidates", ()):
        title = f"sigma {record['sigma']}, alpha {record['alpha']}"
        settings = {f"noise.{key}": record[key] for key in ("sigma", "alpha")}
        if (error := Estimate.of(record["val_error_%"])) is not None:
            kind, n = "noisy" if record["sigma"] else "clean", {"val": int(choice["n"])}
            candidates.append(Condition(title, title, kind, settings=settings, n=n, scores={"val": {"error": error}}))
    return tuple(candidates)


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


def _changes_logits(noise: Json) -> bool:
    """Whether noise of these settings changes any logit."""
    return bool(noise) and noise.get("sigma") not in (0, [0, 0]) and noise.get("alpha") != 0


def setting(value: object) -> str:
    """A setting in words: a range as `low..high`."""
    if isinstance(value, (list, tuple)):
        return "..".join(map(setting, value))
    return f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def latency_conditions(row: Condition) -> str:
    """How the latency was measured; "" where it was not."""
    latency = row.costs.latency_ms if row.costs is not None else None
    if latency is None:
        return ""
    threads = plural(latency.threads, "thread")
    return f"median of {latency.runs} forward passes, batch {latency.batch}, {threads}, {latency.device}"


def network(conditions: Iterable[Condition]) -> str | None:
    """The network of all these conditions; None where there are several or none is named."""
    names = {condition.model for condition in conditions if condition.model}
    return names.pop() if len(names) == 1 else None


def _table(record: Json, key: str) -> Json:
    value = record.get(key)
    return value if isinstance(value, dict) else {}
