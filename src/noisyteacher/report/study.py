"""What a report knows of one run folder, whatever its kind: studies, their lines, verdicts and curves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from noisyteacher.stats import NONNEGATIVE, PairedDifference, Scale, binomial_interval, mean_interval

HANDED_OVER = "handed over"
UNITS = {"error_%": "%", "nll_nats": "nats", "ece_%": "%", "agreement_%": "%"}
"""Score -> unit; a line's scores are called ROLE_SCORE, such as `test_error_%`."""


@dataclass(frozen=True)
class Estimate:
    """A number over seeds: mean and Student-t interval (95 %); low and high are None where there is no interval."""

    mean: float
    low: float | None
    high: float | None
    sd: float | None
    per_seed: tuple[float, ...]

    @property
    def n(self) -> int:
        """How many seeds."""
        return len(self.per_seed)

    @classmethod
    def of(cls, values: Sequence[float | None], scale: Scale = NONNEGATIVE) -> Estimate | None:
        """The estimate from one value per seed, its interval within the scale; None unless all are numbers."""
        known = tuple(float(value) for value in values if value is not None)
        if not known or len(known) != len(values):
            return None
        found = mean_interval(known, scale=scale)
        return cls(found.mean, found.low, found.high, found.sd, known)

    @classmethod
    def read(cls, record: Mapping[str, Any] | None, scale: Scale = NONNEGATIVE) -> Estimate | None:
        """The estimate of a result's `{"mean", "low", "high", "sd", "per_seed"}`, or None."""
        if record is None:
            return None
        if "per_seed" in record:
            return cls.of(record["per_seed"], scale)
        return cls(float(record["mean"]), record["low"], record["high"], record["sd"], (float(record["mean"]),))

    def describe(self) -> dict[str, Any]:
        """The JSON-able form."""
        per_seed = list(self.per_seed)
        return {"mean": self.mean, "low": self.low, "high": self.high, "sd": self.sd, "n": self.n, "per_seed": per_seed}


@dataclass(frozen=True)
class Difference:
    """A line's error minus its reference's, paired by seed (points): below zero is better."""

    mean: float
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    """Of a noise in a sweep: p after Holm's correction for all noises with the same other settings; else None."""
    n: int
    reference: str

    @classmethod
    def of(cls, found: PairedDifference, reference: str) -> Difference:
        """The same as a `stats.paired_difference` against the line called `reference`."""
        return cls(found.mean, found.low, found.high, found.p, None, found.n, reference)

    @property
    def word(self) -> str:
        """`helps`, `hurts` or `no evidence`, by the interval alone."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return "no evidence"
        return "helps" if self.high < 0 else "hurts"


@dataclass(frozen=True)
class Curve:
    """The epochs of one training, as metrics.jsonl has them."""

    seed: int | None
    epochs: tuple[Mapping[str, Any], ...]

    def points(self, key: str) -> tuple[list[float], list[float]]:
        """Epochs and values of one metric, without the epochs where it is missing or not a number."""
        known = [(one["epoch"], one[key]) for one in self.epochs if _number(one.get(key)) and _number(one.get("epoch"))]
        return [float(epoch) for epoch, _ in known], [float(value) for _, value in known]


@dataclass(frozen=True)
class Details:
    """Confusion and reliability of one line on one split, counts summed over its seeds."""

    confusion: tuple[tuple[int, ...], ...] | None
    """[K][K]: rows are labels, columns chosen classes."""
    bins: tuple[tuple[int, float, float], ...]
    """(rows, mean confidence %, accuracy %) of every bin that is not empty; () where there are no labels."""
    seeds: int
    classes: tuple[str, ...] = ()
    """The classes' names where the runs tell them."""


@dataclass(frozen=True)
class Line:
    """A model under one condition, over its seeds: a row of the table."""

    name: str
    title: str
    kind: str
    """`teacher`, `labels`, `clean`, `noisy`, or `model` for a training on its own."""
    model: str | None = None
    """The network's name."""
    family: str = ""
    """Lines of one family differ in their noise alone."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Dotted settings that tell the line from its siblings; all `noise.*` for a noisy one."""
    seeds: tuple[int, ...] = ()
    scores: Mapping[str, Estimate] = field(default_factory=dict)
    training_s: Estimate | None = None
    costs: Mapping[str, Any] | None = None
    against_clean: Difference | None = None
    teacher: str | None = None
    """The name of the teacher's line, where a study has several."""
    runs: tuple[str, ...] = ()
    curves: tuple[Curve, ...] = ()
    details: Mapping[str, Details] = field(default_factory=dict)
    chosen: bool = False
    """The noisy line of its family with the least validation error."""
    handed_over: str = ""
    """Of the line of a compression that the student handed over belongs to: these words, and which seed it is."""
    least_on_test: bool = False
    """The noisy line of its family with the least test error, which is how the paper chose."""
    data: str = ""
    """The data's name where it is not the study's."""
    n: Mapping[str, int] = field(default_factory=dict)
    """Images by role where they are not the study's."""

    def images(self, role: str, n: int | None) -> int | None:
        """How many images of one split its scores are of: its own where it has them, else n, the study's."""
        return self.n.get(role) if self.n else n

    def error(self, role: str) -> Estimate | None:
        """The error (%) on one split."""
        return self.scores.get(f"{role}_error_%")

    def span(self, role: str, n: int | None) -> tuple[float, float, str] | None:
        """(low, high, kind) of the error: `t` over seeds; with one seed `wilson`, from the images of the split.

        None where there is neither.
        n: how many the study's split has; a line of other data has a number of its own.
        """
        error = self.error(role)
        if error is None:
            return None
        if error.low is not None and error.high is not None:
            return error.low, error.high, "t"
        n = self.images(role, n)
        if not n or error.n > 1:
            return None
        low, high = binomial_interval(min(n, max(0, round(error.mean * n / 100))), n)
        return low, high, "wilson"


@dataclass(frozen=True)
class Verdict:
    """One honest word and the sentence behind it."""

    word: str
    """`handed over`, `helps`, `hurts`, `no evidence`, `unfinished`, `failed`, or "" where nothing is claimed."""
    sentence: str
    line: Line | None = None
    """The line that it is about, whose difference to the clean one is the claim."""

    @property
    def whole(self) -> str:
        """The sentence with its capital and its full stop; the name of a network or a setting keeps its case."""
        text = self.sentence.rstrip(".")
        model = self.line.model if self.line is not None else None
        named = model is not None and text.startswith(model)
        word = text.split(" ", 1)[0].rstrip(",:")
        return (text if named or not word.isalpha() else text[:1].upper() + text[1:]) + "."


@dataclass(frozen=True)
class PaperRow:
    """One number of the paper and ours beside it."""

    label: str
    paper: float | None
    ours: Estimate | None


@dataclass(frozen=True)
class Study:
    """One run folder, read whole."""

    path: Path
    id: str
    kind: str
    name: str
    state: str
    started: str
    finished: str | None
    command: str
    config: Mapping[str, Any]
    versions: Mapping[str, Any]
    host: Mapping[str, Any]
    data: str = ""
    n: Mapping[str, int] = field(default_factory=dict)
    """Images by role."""
    role: str = "test"
    """The split that the errors of tables and verdicts are of."""
    teacher: str | None = None
    student: str | None = None
    lines: tuple[Line, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    notes: tuple[str, ...] = ()
    """What is missing or unusual, in sentences."""
    failed: tuple[tuple[str, str], ...] = ()
    """(what, why) of parts that failed."""
    classes: tuple[str, ...] = ()
    stores: tuple[Path, ...] = ()
    """Where the logits that the students learned from may be."""
    store_digest: str | None = None
    """Which of them it is: the digest that the student's run names."""
    noise: Mapping[str, Any] | None = None
    """The settings of the noise that is pictured."""
    noise_seed: int = 0
    batch_size: int = 64
    axes: tuple[str, ...] = ()
    families: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Of a sweep: family -> the names of its clean and its label-only line, which families may share."""
    candidates: tuple[Line, ...] = ()
    """Of a run that chose its noise on validation: what it chose from."""
    choice: Mapping[str, Any] | None = None
    """The record of that choice, as the run's result has it."""
    search: Mapping[str, Any] | None = None
    """Of a compression that chose its student: the limits, what was looked at and tried, in sentences too."""
    best: Mapping[str, Any] | None = None
    """Of a compression: the student that is handed over, and the files written of it."""
    handed_over: Line | None = None
    """That student as a line of its one run, which is not among `lines`."""
    rows: tuple[PaperRow, ...] = ()
    parts: tuple[Study, ...] = ()
    """Studies inside this one: the sweeps of a reproduction."""

    def with_parts(self) -> list[Study]:
        """This study and those inside it, in order."""
        return [self, *(one for part in self.parts for one in part.with_parts())]

    @property
    def of_noise(self) -> bool:
        """Whether noise was wanted: used, put on a grid, chosen from candidates, or still to be chosen."""
        if self.noise or self.choice or any(line.kind == "noisy" for line in self.lines):
            return True
        asked = self.config.get("noise")
        settings = asked.values() if isinstance(asked, dict) else (asked,)
        return "auto" in settings or any(axis.startswith("noise.") for axis in self.axes)

    @property
    def reference(self) -> str:
        """What the student without noise is called beside the others: `clean`, or `distilled` where none has noise."""
        return "clean" if self.of_noise else "distilled"

    @property
    def of_models(self) -> str:
        """Which models on which data, in words. `"mlp800 from lenet, mnist-5k"`."""
        models = " from ".join(name for name in (self.student, self.teacher) if name) or self.name
        data = dict.fromkeys(self.data_of(line) for line in self.lines) if self.lines else (self.data,)
        return ", ".join([models, *filter(None, data)])

    def data_of(self, line: Line) -> str:
        """The name of the data that a line is of."""
        return line.data or self.data

    def split_of(self, line: Line) -> tuple[str, int | None]:
        """(data, images) of the split that a line's errors are of: only lines of one are set side by side."""
        return self.data_of(line), line.images(self.role, self.n.get(self.role))

    def teacher_of(self, line: Line | None) -> Line | None:
        """The line of the teacher that a line learned from; of a line that tells none, and of None, the first."""
        teachers = [one for one in self.lines if one.kind == "teacher"]
        return next((one for one in teachers if line is None or line.teacher in (None, one.name)), None)

    def clean_of(self, line: Line) -> Line | None:
        """The line of the clean student that a line is compared with; None where there is none."""
        clean = [one for one in self.lines if one.kind == "clean"]
        name = self.families[line.family][0] if line.family in self.families else None
        return next((one for one in clean if one.name == name or (name is None and one.family == line.family)), None)

    def images(self, role: str, lines: Iterable[Line] = ()) -> str:
        """How many images of one split the lines are scored on, by data set where they differ; "" where unknown.

        `"n = 400 images"`, `"n = 150 (tiny), 60 (easy) images"`, of parts of one `"n = 60 or 150 images"`; without
        lines the study's own number.
        """
        own = self.n.get(role)
        found = dict.fromkeys((self.data_of(one), one.images(role, own)) for one in lines) or {(self.data, own): None}
        known = [(data, n) for data, n in found if n]
        if len({n for _, n in known}) < 2:
            return f"n = {known[0][1]:,} images" if known else ""
        if len({data for data, _ in known}) < len(known):
            return f"n = {' or '.join(f'{n:,}' for n in sorted({n for _, n in known}))} images"
        return f"n = {', '.join(f'{n:,} ({data})' for data, n in known)} images"


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
