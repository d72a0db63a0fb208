"""The result of a run: conditions with their scores over seeds, differences, verdicts; as JSON, table and text."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError

from noisyteacher import stats
from noisyteacher.errors import FileFormatError
from noisyteacher.export import Exported
from noisyteacher.export import notes as export_notes
from noisyteacher.export import table as export_table
from noisyteacher.export.card import PREDICT
from noisyteacher.export.hub import CARD
from noisyteacher.io.files import Json
from noisyteacher.measure import Costs
from noisyteacher.models import HUB_WEIGHTS
from noisyteacher.runs import Run
from noisyteacher.tables import Table
from noisyteacher.text import SPLIT_NAMES, count, duration, sentence, sigma_words, signed, size_bytes

SCHEMA = 2
"""The number of the form of `result` in result.json."""
REPORT = "report.html"
HANDED_OVER = "handed over"
UNITS = {"error": "%", "disagreement": "%", "nll": "nats", "ece": "%", "agreement": "%"}
"""Score -> unit. `disagreement` (with the teacher) stands for the error where there are no labels."""
COSTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "parameters": ("parameters", count),
    "bytes": ("bytes", size_bytes),
    "macs": ("MACs", count),
    "latency_ms": ("latency ms", "{:.3f}".format),
}
"""Cost -> its name in a table, and how it is written."""
SEARCHED = ("macs", "bytes", "parameters")
"""The costs that a search for a student may limit, in the order of its table."""
RATIO_WORDS = {
    "macs": ("fewer MACs", "MORE MACs", "as many MACs"),
    "bytes": ("smaller", "LARGER", "as large"),
    "latency_ms": ("faster", "SLOWER", "as fast"),
}
"""Cost -> words for a student with less of it than the teacher, with more, and with as much."""


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
    """p after Holm's correction for all noises that are compared with one clean student; else None."""

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

    def errors_by_seed(self, role: str) -> dict[int, float]:
        """The error (%) of each seed on one split."""
        error = self.error_on(role)
        return {} if error is None else dict(zip(self.seeds, error.per_seed, strict=True))

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


@dataclass(frozen=True)
class Verdict:
    """A claim in one sentence, without its full stop."""

    word: str
    """`helps`, `hurts`, `no evidence`, `handed over`, or "" where nothing is claimed of noise."""
    sentence: str
    condition: str | None = None

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
    """Checks before the first step: `check`, whether it `held` (None: not known), and `told`, a sentence."""
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

    def describe(self) -> Json:
        """The JSON-able form, which `read` takes back."""
        content = TypeAdapter(type(self)).dump_python(self, mode="json", exclude={"path"}, warnings=False)
        return {"schema": SCHEMA, **content}

    @classmethod
    def read(cls, path: Path, record: Mapping[str, Any]) -> Self:
        """The result of a run folder from the content of its result.json. Raises FileFormatError."""
        file = path / "result.json"
        if record.get("schema") != SCHEMA:
            version = f"schema {record.get('schema', 1)}, expected {SCHEMA}"
            raise FileFormatError(f"{file}: written by an earlier version ({version}): run it again")
        try:
            result: Self = TypeAdapter(cls).validate_python({**record, "path": path})
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


def differences(condition: Condition, reference: Condition) -> dict[str, Difference]:
    """By role: a condition's error minus the reference's, paired over the seeds that both have; {} without any."""
    by_role = {}
    for role in ("val", "test"):
        before, after = reference.errors_by_seed(role), condition.errors_by_seed(role)
        if common := [seed for seed in after if seed in before]:
            pairs = [before[seed] for seed in common], [after[seed] for seed in common]
            difference = stats.paired_difference(*pairs, scale=stats.PERCENT)
            by_role[role] = Difference(**asdict(difference), reference=reference.name)
    return by_role


@dataclass(frozen=True, kw_only=True)
class Result(RunResult):
    """The outcome of `compress`; `str()` of it is the table. `rows`: the teacher, the controls, the student."""

    @property
    def seeds(self) -> int:
        """How many seeds each student was trained with."""
        return len(self.conditions[-1].errors)

    @property
    def scored(self) -> str:
        """What `errors` of the rows are: `error`, or, without labels, `disagreement` with the teacher."""
        return "disagreement" if any("disagreement" in row.scores.get(self.role, {}) for row in self.rows) else "error"

    @property
    def verdict(self) -> str | None:
        """One sentence on what the noise changed against the clean student; None where no noise was named."""
        return next((verdict.sentence for verdict in self.verdicts if verdict.word != HANDED_OVER), None)

    @property
    def handed_over(self) -> tuple[Condition, int]:
        """The condition of the student that is handed over, and the number of its seed."""
        run = (self.best or {}).get("run")
        rows = ((row, row.runs.index(run)) for row in self.conditions if run in row.runs)
        return next(rows, (self.conditions[-1], 0))

    @property
    def best_student(self) -> Path | None:
        """The folder of the student that is handed over, for `nt.load_model`: weights, exported files, model card."""
        folder = (self.best or {}).get("folder")
        return None if folder is None else self.path / folder

    @property
    def files(self) -> list[Exported]:
        """The files written of the student that is handed over, in `best_student`."""
        return [Exported.read(record) for record in (self.best or {}).get("files", ())]

    @property
    def holds(self) -> bool:
        """Whether all that was checked holds: the loss of accuracy, and a file in every format."""
        within = self.best is None or bool(self.best["holds"])
        return within and not self.failed and all(file.holds for file in self.files)

    def table(self) -> Table:
        """A row per model; a cell's second line is the ratio student / teacher (below 1: smaller, faster)."""
        headers = ("model", f"{self.role} {self.scored} %", *(name for name, _ in COSTS.values()), "training")
        return Table(headers, tuple(self._cells(row) for row in self.rows), notes=tuple(self.notes()))

    def search_table(self) -> Table | None:
        """Which networks were considered for a student and why each was not chosen; None without a search."""
        return search_table(self.search)

    def _cells(self, row: Condition) -> tuple[str, ...]:
        teacher = self.teachers[0]

        def with_ratio(text: str, value: float, reference: float | None) -> str:
            return text if row is teacher or not reference else f"{text}\n{value / reference:.2f}x"

        chosen, seed = self.handed_over
        title = row.title
        if self.best is not None and row is chosen:
            title += f"\n{HANDED_OVER}" + (f": seed {seed}, {row.errors[seed]:.2f} %" if len(row.errors) > 1 else "")
        cells = [title, "-" if row.error is None else f"{row.error.mean:.2f}\n{row.interval_text(self.role)}".strip()]
        for name, (_, written) in COSTS.items():
            value = row.cost(name)
            bound = ">= " if name == "macs" and row.costs is not None and row.costs.unsupported else ""
            cells.append("-" if value is None else with_ratio(bound + written(value), value, teacher.cost(name)))
        if not row.seconds:
            return (*cells, "given")
        mean = sum(row.seconds) / len(row.seconds)
        return (*cells, with_ratio(duration(mean), mean, teacher.seconds[0] if teacher.seconds else None))

    def notes(self) -> list[str]:
        """What a reader needs beside the table: n, what the intervals are, conditions of the latency."""
        what, seeds = "Errors" if self.scored == "error" else "Disagreement with the teacher", ""
        if self.seeds > 1:
            missing = any(row.error is not None and row.error.n > 1 and row.error.low is None for row in self.rows)
            hint = " (no interval: it would be wider than 0 to 100 %; run more seeds)" if missing else ""
            seeds = f"[ ] = 95 % Student-t interval over {self.seeds} seeds{hint}; "
        notes = [
            f"{what}: {self.data}, {self.role}, n = {self.n[self.role]:,} images; {seeds}( ) = 95 % Wilson interval of "
            "one run.",
            "Second lines: ratio to the teacher (below 1: smaller, faster). MACs: multiplications of convolution and "
            "linear layers per image. Bytes: the weights file.",
        ]
        if self.scored != "error":
            notes.append("No labels: nothing is said of errors, and there is no student on labels to compare with.")
        records = {"Time": self.time, "Student": self.search, "Noise": self.noise and self.choice}
        for name, record in records.items():
            if record:
                words = [record["told"]] if isinstance(record["told"], str) else record["told"]
                notes.append(f"{name}: {'; '.join(words)}.")
        if self.best is not None:
            notes.append(sentence(self.best["told"]))
        costs = self.conditions[-1].costs
        if costs is not None and (latency := costs.latency_ms) is not None:
            notes.append(
                f"Latency: median of {latency.runs} forward passes, batch {latency.batch}, {latency.threads} "
                f"thread(s), {latency.device}. Training: mean over seeds, validation left out; storing the teacher's "
                f"logits took {duration(self.extraction_s)} once."
            )
        return notes

    def gains(self) -> dict[str, float | None]:
        """Teacher over student for each cost, above 1 where the student is cheaper; None where either is not exact."""
        gains: dict[str, float | None] = {}
        pair = self.teachers[0], self.handed_over[0]
        for name in COSTS:
            before, after = (row.cost(name) for row in pair)
            bound = name == "macs" and any(row.costs is not None and row.costs.unsupported for row in pair)
            gains[name] = before / after if before and after and not bound else None
        return gains

    def compression_verdict(self) -> str:
        """One sentence: how much cheaper than its teacher the student that is handed over is, and what it loses.

        `4.5x fewer MACs, 5.2x smaller, 3.0x faster; test error 4.10 % against the teacher's 3.20 % (n = 600)`.
        """
        row, seed = self.handed_over
        gains, words = self.gains(), []
        for name, (cheaper, dearer, equal) in RATIO_WORDS.items():
            if (ratio := gains[name]) is not None:
                size = f"{max(ratio, 1 / ratio):.1f}"
                words.append(equal if size == "1.0" else f"{size}x {cheaper if ratio > 1 else dearer}")
        if gains["macs"] is None and gains["bytes"] is not None:
            words.append("MACs not comparable")
        loss = f"disagreement with the teacher {row.errors[seed]:.2f} %"
        if self.scored == "error":
            loss = f"error {row.errors[seed]:.2f} % against the teacher's {self.teachers[0].errors[0]:.2f} %"
        saved = ", ".join(words) or "costs unknown"
        return f"{saved}; {SPLIT_NAMES[self.role]} {loss} (n = {self.n[self.role]:,})"

    def paths(self) -> Json:
        """Where things are: `run`, `best` (the student's folder), `weights`, `card`, `predict`, `report`, `files`.

        `files` has a `path` and `bytes` per exported file. A path is None where there is no such file.
        """
        best, inside = self.best_student, {"best": "", "weights": HUB_WEIGHTS, "predict": PREDICT, "card": CARD}
        paths = {name: None if best is None else best / file for name, file in inside.items()}
        paths["report"] = self.path / REPORT
        files = [{"path": str(self.path / file.path), "bytes": file.bytes} for file in self.files]
        existing = {name: str(path) if path is not None and path.exists() else None for name, path in paths.items()}
        return {"run": str(self.path), **existing, "files": files}

    def next_commands(self) -> list[str]:
        """What to run next with the student that is handed over, as a shell or Python takes it."""
        paths, loads = self.paths(), (self.best or {}).get("loads", "name")
        folder, script = paths["best"], paths["predict"]
        if folder is None:
            return []
        commands = [] if script is None else [f"python {shlex.quote(script)} IMAGE"]
        in_python = True  # with data that no command line can name
        with suppress(FileFormatError):
            in_python = Run(self.path).config.get("call") == "python"
        if loads != "module":
            imports = loads == "import"
            python = f"nt.load_model({folder!r}{', allow_import=True' if imports else ''})  # in Python"
            shell = f"noisyteacher evaluate {shlex.quote(folder)}{' --allow-import' if imports else ''}"
            commands.insert(0, python if in_python else shell)
        return commands

    def summary(self) -> Json:
        """The last lines as JSON-able fields: verdicts, `gains` (teacher over student), warnings, paths, `next`."""
        return {
            "compression": self.compression_verdict(),
            "gains": self.gains(),
            "noise": self.verdict,
            "warnings": [sentence(warning) for warning in self.warnings],
            "paths": self.paths(),
            "next": self.next_commands(),
        }

    def closing_lines(self) -> list[str]:
        """The last lines as text: verdicts, warnings, paths with sizes, the next commands."""
        paths, commands = self.paths(), self.next_commands()
        files = [(file["path"], size_bytes(file["bytes"])) for file in paths["files"]]
        if paths["weights"]:
            files.insert(0, (paths["weights"], size_bytes(Path(paths["weights"]).stat().st_size)))
        files.append((paths["predict"], "runs the ONNX file without noisyteacher"))
        files += [(paths["card"], "model card"), (paths["report"], "report")]
        return [
            f"Verdict: {self.compression_verdict()}.",
            *([f"Noise: {self.verdict}."] if self.verdict else []),
            *(f"WARNING: {warning}." for warning in self.warnings),
            "",
            f"Run folder: {self.path}",
            *(f"  {path} ({what})" for path, what in files if path),
            *(["", "Next:", *(f"  {command}" for command in commands)] if commands else []),
        ]

    def __str__(self) -> str:
        lines = [self.table().text(), ""]
        if (searched := self.search_table()) is not None:
            lines += [searched.text(), ""]
        lines += [*self.notes(), ""]
        if self.files or self.failed:
            lines += [export_table(self.files, self.failed).text(), "", *export_notes(self.files, self.failed), ""]
        return "\n".join([*lines, *self.closing_lines()])


def judged(result: Result) -> Result:
    """The result with differences to the clean student, the verdict on the noise, and warnings."""
    rows, teacher = list(result.conditions), result.teachers[0]
    clean = next((row for row in rows if row.kind == "clean"), None)
    if clean is not None:
        rows = [row if row is clean else replace(row, against_clean=differences(row, clean)) for row in rows]
    zero = Estimate.of([0.0])
    if result.role not in teacher.scores and zero is not None:  # without labels: it agrees with itself
        teacher = replace(teacher, scores={result.role: {"disagreement": zero}}, n=result.n)
    result = replace(result, teachers=(teacher,), conditions=tuple(rows))
    result = replace(result, verdicts=_verdicts(result))
    return replace(result, warnings=(*result.warnings, *loss_warnings(result)))


def _verdicts(result: Result) -> tuple[Verdict, ...]:
    """The verdict on the noise; nothing where no noise was named."""
    noisy = next((row for row in result.conditions if row.kind == "noisy"), None)
    if result.noise is None or noisy is None:
        return () if result.choice is None else (Verdict("", result.choice["told"], result.conditions[-1].name),)
    difference = noisy.against_clean.get(result.role)
    if difference is None:
        words = "nothing can be said of the noise: no clean student was trained beside the noisy student"
        return (Verdict("no evidence", words, noisy.name),)
    what = f"noise of sigma {sigma_words(result.noise['sigma'])}, alpha {result.noise['alpha']:g}"
    unit = f"points of {SPLIT_NAMES[result.role]} {result.scored}"
    word = "no evidence"
    if difference.low is not None and difference.high is not None and not difference.low <= 0 <= difference.high:
        word = "helps" if difference.high < 0 else "hurts"
    return (Verdict(word, stats.verdict(difference, what, unit), noisy.name),)


def loss_warnings(result: Result) -> tuple[str, ...]:
    """What a reader must not miss, as the result itself shows it: sentences without their full stop."""
    best, warnings = result.best, []
    if best is not None and not best["holds"]:
        drop, allowed = f"{best['drop']:.2f} points", f"{best['max_drop']:g}"
        warnings.append(f"validation lost {drop} against the teacher, {allowed} are allowed")
    warnings += [f"{file.name} does not hold: {file.reason}" for file in result.files if not file.holds]
    warnings += [f"{name} was not written: {reason}" for name, reason in result.failed.items()]
    for check in result.checks:
        if check["held"] is False:
            warnings.append(f"Did not hold before the first step ({check['check']}): {check['told'].rstrip('.')}")
    return tuple(warnings)


def search_table(search: Json | None) -> Table | None:
    """A row per network that was considered for a student, by the record of the search; None without a search."""
    if not search or not search["table"]:
        return None
    rows = []
    for row in search["table"]:
        costs = ("" if row[name] is None else COSTS[name][1](row[name]) for name in SEARCHED)
        error = row["val_error_%"]
        rows.append((row["student"], *costs, "" if error is None else f"{error:.2f}", row["outcome"]))
    headers = ("student", *(COSTS[name][0] for name in SEARCHED), "validation error %", "outcome")
    strong = frozenset(number for number, row in enumerate(rows) if row[0] == search["chosen"])
    return Table(headers, tuple(rows), "lrrrrl", strong=strong)
