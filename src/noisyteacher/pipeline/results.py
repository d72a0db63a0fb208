"""The one model of a result: conditions with their scores over seeds, differences, verdicts, as JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from noisyteacher import stats
from noisyteacher.config import type_adapter
from noisyteacher.errors import FileFormatError
from noisyteacher.io.files import Json
from noisyteacher.measure import Costs
from noisyteacher.tables import Table
from noisyteacher.text import count, signed, size_bytes

SCHEMA = 3
"""The number of the form of `result` in result.json."""
UNITS = {"error": "%", "disagreement": "%", "nll": "nats"} | dict.fromkeys(
    ("ece", "agreement", "balanced_accuracy", "top5"), "%"
)
"""Score -> unit. `disagreement` (with the teacher) stands for the error where there are no labels."""
COSTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "parameters": ("parameters", count),
    "bytes": ("bytes", size_bytes),
    "macs": ("MACs", count),
    "latency_ms": ("latency ms", "{:.3f}".format),
}
"""Cost -> its name in a table, and how it is written."""


KINDS = ("teacher", "labels", "clean", "noisy")
"""Kinds of conditions in a run of several; in a compression also their names."""


def why_no_interval(errors: Iterable[Estimate | None]) -> str:
    """Why some of these errors over seeds have no interval, as a clause in parentheses; "" where all have one."""
    missing = [error for error in errors if error is not None and error.n > 1 and error.low is None]
    reasons = ["it would be wider than 0 to 100 %; run more seeds"] if any(error.sd for error in missing) else []
    reasons += ["all seeds agree"] if any(not error.sd for error in missing) else []
    return f" (no interval: {', or '.join(reasons)})" if reasons else ""


def run_name(condition: str, seed: int) -> str:
    """The name of the child run that trains a condition with a seed."""
    return f"{condition}-seed{seed}"


def condition_of_run(name: str) -> str:
    """The condition in the name of a child run; of a teacher's its whole name."""
    return name.partition("-seed")[0]


@dataclass(frozen=True)
class Estimate(stats.Interval):
    """A score over seeds: mean, sample standard deviation, Student-t interval (95 %), and the value of each seed."""

    per_seed: tuple[float, ...] = ()
    unit: str = "%"

    @classmethod
    def of(cls, values: Sequence[float | None], unit: str = "%") -> Estimate | None:
        """The estimate from a value per seed; None without seeds, and unless all values are finite numbers."""
        numbers = tuple(float(value) for value in values if value is not None and math.isfinite(value))
        if not numbers or len(numbers) != len(values):
            return None
        interval = stats.mean_interval(numbers, scale=stats.PERCENT if unit == "%" else stats.NONNEGATIVE)
        return cls(**asdict(interval), per_seed=numbers, unit=unit)

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:.2f}" + (" [no interval]" if self.n > 1 else "")
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Difference(stats.PairedDifference):
    """An error minus that of the condition `reference`, paired by seed, in points: below zero is better."""

    reference: str = ""
    p_holm: float | None = None
    """In files of earlier versions p after Holm's correction; `p` and the interval are then of the noise alone."""

    @property
    def corrected(self) -> float | None:
        """p, corrected for the noises that were compared at once."""
        return self.p if self.p_holm is None else self.p_holm

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return signed(self.mean)
        return f"{signed(self.mean)} [{signed(self.low)}, {signed(self.high)}]"


@dataclass(frozen=True)
class Condition:
    """A model trained in one way, over its seeds."""

    name: str
    title: str
    kind: str
    """`teacher`, `labels`, `clean` (distilled without noise), `noisy`, or `model` (a training on its own)."""
    model: str | None = None
    settings: Json = field(default_factory=dict)
    family: str = ""
    teacher: str = ""
    data: str = ""
    n: dict[str, int] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    runs: tuple[str, ...] = ()
    """Run folders, one per seed, relative to the folder of the whole run."""
    scores: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    seconds: tuple[float, ...] = ()
    """Training time, one per seed; empty for a model that was trained elsewhere."""
    best_epoch: tuple[int, ...] = ()
    costs: Costs | None = None
    against_clean: dict[str, Difference] = field(default_factory=dict)
    """By role: its error minus that of the clean student of the same settings."""

    @property
    def role(self) -> str:
        """The split that its errors are reported on: test, or val where it has no test scores."""
        return "test" if "test" in self.scores else "val"

    def score(self, role: str, name: str = "error") -> Estimate | None:
        """A score on one split."""
        return self.scores.get(role, {}).get(name)

    def error_on(self, role: str) -> Estimate | None:
        """Error (%) on one split; without labels the share that disagrees with the teacher."""
        return self.score(role) or self.score(role, "disagreement")

    @property
    def error(self) -> Estimate | None:
        """`error_on` of the reported split."""
        return self.error_on(self.role)

    def errors_by_seed(self, role: str, seeds: Container[int] | None = None) -> dict[int, float]:
        """The error (%) of each seed on one split, or of these seeds alone."""
        error = self.error_on(role)
        pairs = () if error is None else zip(self.seeds, error.per_seed, strict=True)
        return {seed: value for seed, value in pairs if seeds is None or seed in seeds}

    @property
    def errors(self) -> tuple[float, ...]:
        """The error of each seed (%)."""
        return self.error.per_seed if self.error else ()

    def span(self, role: str) -> tuple[float, float, str] | None:
        """(low, high, kind) of the error: `t` over seeds; of a single seed `wilson`, from the number of images."""
        error, n = self.error_on(role), self.n.get(role)
        if error is None:
            return None
        if error.low is not None and error.high is not None:
            return error.low, error.high, "t"
        if not n or error.n > 1:
            return None
        return *stats.binomial_interval(min(n, max(0, round(error.mean * n / 100))), n), "wilson"

    def interval_text(self, role: str) -> str:
        """`[13.05, 19.47]` over seeds, `(13.05, 19.47)` of a single run, `[no interval]`, "" where it has no error."""
        span, error = self.span(role), self.error_on(role)
        if span is not None:
            return f"[{span[0]:.2f}, {span[1]:.2f}]" if span[2] == "t" else f"({span[0]:.2f}, {span[1]:.2f})"
        return "[no interval]" if error is not None and error.n > 1 else ""

    def cost(self, name: str) -> float | None:
        """A cost by name (of the latency the median); None where it was not measured."""
        value = getattr(self.costs, name, None)
        if name == "latency_ms" and value is not None:
            value = value.median
        return None if value is None else float(value)


@dataclass(frozen=True)
class Trend(stats.PairedDifference):
    """How much the error rises with sigma^2, in points per unit: the mean of a slope by seed, clean being 0."""

    title: str = ""
    """The noise, without its sigma."""
    sigmas: tuple[float, ...] = ()


@dataclass(frozen=True)
class Family:
    """Conditions that differ in their noise alone: their controls, and what validation and test prefer."""

    name: str
    settings: Json
    clean: str
    labels: str | None
    noisy: tuple[str, ...]
    by_validation: tuple[str, ...] = ()
    """The members with the lowest mean validation error: the chosen member, then those level with it."""
    by_test: tuple[str, ...] = ()
    """The same by test error, which is how the paper chose."""
    optimism_points: float | None = None
    """How much lower the test error of the first of `by_test` is than that of the first of `by_validation`."""
    trends: tuple[Trend, ...] = ()
    """On the reported split, of each noise with two sigmas or more that differs in nothing else."""


CHOICE_NOTE = (
    "Differences are over the seeds of the choice, errors over all seeds, the verdict over seeds that took no part in "
    "the choice."
)
"""What a table needs to say beside a verdict on fresh seeds."""


@dataclass(frozen=True)
class Verdict:
    """A claim in one sentence, without its full stop."""

    word: str
    """`helps`, `hurts`, `no evidence`, `handed over`, or "" where nothing is claimed of noise."""
    sentence: str
    condition: str | None = None
    fresh: Difference | None = None
    """The difference that is claimed, where it is of fresh seeds: the condition's own is of those of the choice."""

    def __str__(self) -> str:
        return self.sentence


@dataclass(frozen=True)
class PaperRow:
    """A number of the paper (test error in %, None where it has none) and ours beside it."""

    part: str
    label: str
    kind: str
    paper: float | None
    ours: Estimate | None
    against_clean: Difference | None = None


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The result of a compression, a sweep or an experiment of the paper: the content of its result.json.

    Of a sweep: families, axes, cells. Of an experiment: title, budget, sweeps, paper. Of a compression: the noise, how
    it and the student were chosen (choice, search), the student that is handed over (best), time, store.
    """

    path: Path
    kind: str
    """`compress`, `sweep`, `paper`; in reports also `train`, `distil`, `given`."""
    data: str = ""
    n: dict[str, int] = field(default_factory=dict)
    role: str = "test"
    teachers: tuple[Condition, ...] = ()
    conditions: tuple[Condition, ...] = ()
    families: tuple[Family, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    warnings: tuple[str, ...] = ()
    """What a reader must not miss, sentences without their full stop."""
    failed: dict[str, str] = field(default_factory=dict)
    """What failed, each with the reason: formats of an export, or cells of a sweep by run."""
    remarks: tuple[str, ...] = ()
    checks: tuple[Json, ...] = ()
    """Checks before the first step: `check`, whether it `passed` (None: not known), and `summary`, a sentence."""
    axes: tuple[str, ...] = ()
    cells: tuple[int, int] | None = None
    """Of an unfinished sweep: how many trainings are done, and how many there are."""
    title: str = ""
    budget: str = ""
    sweeps: tuple[str, ...] = ()
    paper: tuple[PaperRow, ...] = ()
    noise: Json | None = None
    choice: Json | None = None
    search: Json | None = None
    best: Json | None = None
    time: Json | None = None
    store: str = ""
    """The stored logits of the training split, relative to the run folder."""
    extraction_s: float = 0.0
    regime: Json | None = None
    """By noisy condition, or clean one where no noise was chosen, whether its question was fair: `steps`,
    `unfitted_%`, `clock`."""

    @property
    def rows(self) -> tuple[Condition, ...]:
        """Teachers, then students."""
        return (*self.teachers, *self.conditions)

    def condition(self, name: str | None) -> Condition | None:
        """The teacher or student of this name."""
        return next((condition for condition in self.rows if condition.name == name), None)

    def teacher_of(self, condition: Condition | None) -> Condition | None:
        """The teacher that a condition learned from; where it names none, the first."""
        name = condition.teacher if condition is not None else ""
        return next((teacher for teacher in self.teachers if name in ("", teacher.name)), None)

    def clean_of(self, condition: Condition) -> Condition | None:
        """The clean student that a condition is compared with."""
        for family in self.families:
            if family.name == condition.family:
                return self.condition(family.clean)
        clean = (row for row in self.conditions if row.kind == "clean" and row.family == condition.family)
        return next(clean, None)

    def tables(self) -> list[Table]:
        """What is printed of it before the closing lines."""
        return []

    def closing_lines(self) -> list[str]:
        """The last lines as text: verdicts, what failed, the run folder."""
        failed = [f"  {run}: {error}" for run, error in self.failed.items()]
        return [
            *(f"Verdict: {verdict}." for verdict in self.verdicts),
            *(["", f"{len(failed)} failed:", *failed] if failed else []),
            "",
            f"Run folder: {self.path}",
        ]

    def __str__(self) -> str:
        blocks = ("\n".join([table.text(), *(["", *table.notes] if table.notes else [])]) for table in self.tables())
        return "\n\n".join([*blocks, "\n".join(self.closing_lines())])

    def describe(self) -> Json:
        """The JSON-able form, which `read` takes back."""
        kind: Any = type(self)
        content = type_adapter(kind).dump_python(self, mode="json", exclude={"path"}, warnings=False)
        return {"schema": SCHEMA, **content}

    @classmethod
    def read(cls, path: Path, record: Mapping[str, Any]) -> Self:
        """The result of a run folder from the content of its result.json. Raises FileFormatError."""
        file = path / "result.json"
        if record.get("schema") != SCHEMA:
            version = f"schema {record.get('schema', 1)}, expected {SCHEMA}"
            raise FileFormatError(f"{file}: written by an earlier version ({version}): run it again")
        try:
            kind: Any = cls
            result: Self = type_adapter(kind).validate_python({**record, "path": path})
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            where = f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
            raise FileFormatError(f"{file}: not the result of a {record.get('kind')} run ({where})") from error
        return result


def condition_of(
    name: str, title: str, kind: str, results: Mapping[int, Mapping[str, Any]], runs: Sequence[str], **fields: Any
) -> Condition:
    """A condition from the results of its trainings.

    results: seed -> content of that training's result.json. runs: their folders, in the same order. fields: other
    fields of Condition. A split without labels has `disagreement` in place of `error`; a teacher's with itself is 0.
    """
    scores: dict[str, dict[str, Estimate]] = {}
    n: dict[str, int] = {}
    for role in dict.fromkeys(role for result in results.values() for role in result["scores"]):
        measured = [result["scores"].get(role, {}) for result in results.values()]
        sizes = [value["n"] for values in measured for value in values.values() if isinstance(value, Mapping)]
        n |= {role: int(sizes[-1])} if sizes else {}
        columns = {score: [values.get(score, {}).get("value") for values in measured] for score in UNITS}
        if kind == "teacher":
            columns["agreement"] = []
        elif not any(value is not None for value in columns["error"]):
            columns["disagreement"] = [None if value is None else 100 - value for value in columns["agreement"]]
        estimates = {score: Estimate.of(values, UNITS[score]) for score, values in columns.items()}
        if present := {score: estimate for score, estimate in estimates.items() if estimate is not None}:
            scores[role] = present
    trainings = [result["training"] for result in results.values() if result.get("training")]
    seconds = tuple(float(training["seconds"]) for training in trainings)
    best_epoch = tuple(int(epoch) for training in trainings if (epoch := training.get("best_epoch")) is not None)
    fields = {"n": n, "scores": scores, "seconds": seconds, "best_epoch": best_epoch, **fields}
    return Condition(name, title, kind, seeds=tuple(results), runs=tuple(runs), **fields)


def differences(
    conditions: Sequence[Condition],
    reference: Condition,
    seeds: Container[int] | None = None,
    reference_seeds: Container[int] | None = None,
) -> dict[str, dict[str, Difference]]:
    """By condition and role: its error minus the reference's, with intervals for all conditions at once (`dunnett`).

    seeds, reference_seeds: those that count; default all. Conditions that share none with the reference are left out.
    """
    by_name: dict[str, dict[str, Difference]] = {}
    for role in ("val", "test"):
        control = reference.errors_by_seed(role, reference_seeds)
        errors = {condition.name: condition.errors_by_seed(role, seeds) for condition in conditions}
        compared = {name: row for name, row in errors.items() if row.keys() & control.keys()}
        tests = stats.dunnett(control, list(compared.values()), stats.PERCENT) if compared else []
        for name, test in zip(compared, tests, strict=True):
            by_name.setdefault(name, {})[role] = Difference(**vars(test), reference=reference.name)
    return by_name


def p_note(gaps: Iterable[Difference]) -> str:
    """A sentence on the tests behind differences."""
    gaps = list(gaps)
    if any(gap.p_holm is not None for gap in gaps):
        return "p of the paired t-test, for noises after Holm's correction."
    if (count := max((gap.comparisons for gap in gaps), default=1)) > 1:
        return (
            "Noises, over common seeds: intervals and p hold for all noises of one clean student at once "
            f"(up to {count}; Dunnett); else paired t-test."
        )
    return "p of the paired t-test." if any(gap.p is not None for gap in gaps) else ""
