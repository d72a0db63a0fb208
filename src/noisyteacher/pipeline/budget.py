"""How long a compression takes, and how many epochs and tries fit into the minutes it may take.

Planning is a pure function of measured speeds. What was decided is kept in the run's folder, because a resumed run must
not decide again on another machine's speeds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from noisyteacher.errors import FileFormatError
from noisyteacher.io.files import read_json, write_json
from noisyteacher.runs import Run

FILE, KIND, SCHEMA = "plan.json", "compression-plan", 1
RESERVE = 0.05
"""The share of the time that is left which is not planned with: measured speeds vary."""
HALF = 0.5
"""Fewer networks are tried where otherwise less than this share of the epochs would be left."""


@dataclass(frozen=True)
class Work:
    """What is still to be done, in epochs and trainings."""

    teacher_epochs: int
    """0: the teacher is given, or trained already."""
    student_epochs: int
    students: int
    """Trainings of all conditions and seeds."""
    tries: int = 0
    """Networks tried in short runs; 0: the student is known."""
    try_epochs: int | None = None
    """Length of such a run; None: a quarter of the student's epochs."""
    noise_runs: int = 0
    """Short runs that choose the noise."""
    noise_epochs: int | None = None
    """Length of such a run; None: a quarter of the student's epochs."""
    comparisons: int = 0
    """Short runs on labels alone, which the teacher is compared with; as long as a try."""


@dataclass(frozen=True)
class Speeds:
    """Measured on this machine, in seconds."""

    teacher: float
    """An epoch of the teacher's training, validation included."""
    logits: float
    """Storing all the teacher's logits."""
    students: tuple[float, ...]
    """An epoch of each network that may be tried, in that order; of the student alone where it is known."""
    end: float = 0.0
    """Measuring and exporting."""


@dataclass(frozen=True)
class Stages:
    """Seconds by what they are spent on."""

    teacher: float
    logits: float
    search: tuple[float, ...]
    """Of each network that is tried."""
    comparison: float
    """The short run on labels alone."""
    noise: float
    """All short runs that choose the noise."""
    students: float
    """All students."""
    end: float

    @property
    def total(self) -> float:
        """Seconds in all."""
        return self.teacher + self.logits + self.comparison + sum(self.search) + self.noise + self.students + self.end


def short(epochs: int, named: int | None) -> int:
    """Epochs of a short run: as many as are named, else a quarter of the student's, at least one."""
    return named or max(1, round(epochs / 4))


def needed(work: Work, speeds: Speeds) -> Stages:
    """What the work takes. Until the student is known it is taken to be as slow as the slowest that is tried."""
    tried = speeds.students[: work.tries]
    slowest = max(tried or speeds.students)
    epochs = work.student_epochs
    return Stages(
        work.teacher_epochs * speeds.teacher,
        speeds.logits,
        tuple(short(epochs, work.try_epochs) * seconds for seconds in tried),
        work.comparisons * short(epochs, work.try_epochs) * speeds.students[0],
        work.noise_runs * short(epochs, work.noise_epochs) * slowest,
        work.students * epochs * slowest,
        speeds.end,
    )


def fitted(work: Work, speeds: Speeds, seconds: float) -> Work:
    """The work that is done in so many seconds, at least one epoch of everything and one try, however few they are.

    The epochs of teacher and students are cut by one factor, those of short runs with them. Where less than half of the
    epochs would be left, fewer networks are tried first.
    """
    least = min(1, work.tries)
    best, kept = _cut(replace(work, tries=least), speeds, seconds)
    for tries in range(work.tries, least, -1):
        shortened, share = _cut(replace(work, tries=tries), speeds, seconds)
        if share >= min(HALF, kept) and needed(shortened, speeds).total <= seconds:
            return shortened
    return best


def _cut(work: Work, speeds: Speeds, seconds: float) -> tuple[Work, float]:
    """The work with all epochs times the largest share that fits, and that share."""

    def at(share: float) -> Work:
        def epochs(number: int) -> int:
            return max(min(1, number), int(number * share + 1e-9))

        def named(number: int | None) -> int | None:
            return None if number is None else epochs(number)

        return replace(
            work, teacher_epochs=epochs(work.teacher_epochs), student_epochs=epochs(work.student_epochs),
            try_epochs=named(work.try_epochs), noise_epochs=named(work.noise_epochs),
        )  # fmt: skip

    if needed(work, speeds).total <= seconds:
        return work, 1.0
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if needed(at(middle), speeds).total <= seconds else (low, middle)
    return at(low), low


@dataclass
class Budget:
    """The time of one compression: what is spent, and what was decided."""

    run: Run
    seconds: float | None
    """What the whole run may take; None: as long as it needs."""
    started: float
    clock: Callable[[], float] = time.monotonic
    before: float = 0.0
    """Seconds spent before this process took the run up."""
    decisions: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, run: Run, minutes: float | None, clock: Callable[[], float], started: float) -> Budget:
        """The budget of a run, with what was decided in it before. Raises FileFormatError for a damaged record."""
        budget = cls(run, None if minutes is None else 60 * minutes, started, clock)
        file = run.path / FILE
        if minutes is not None and file.exists():
            kept = read_json(file, KIND, SCHEMA)
            try:
                budget.before, budget.decisions = float(kept["spent_s"]), dict(kept["decisions"])
            except (KeyError, TypeError, ValueError) as error:
                raise FileFormatError(f"{file}: not the plan of a compression: {error}") from error
        return budget

    @property
    def spent(self) -> float:
        """Seconds since the run was begun, as far as they are known."""
        return self.before + self.clock() - self.started

    def left(self) -> float:
        """Seconds that may be planned with. Only where the time is limited."""
        assert self.seconds is not None
        return (1 - RESERVE) * max(0.0, self.seconds - self.spent)

    def decide(self, stage: str, work: Work, speeds: Speeds | None) -> Work:
        """The work as it fits into the time that is left, or as it was decided before at this stage.

        Unchanged where the time is not limited. Raises FileFormatError for a damaged record.
        """
        if self.seconds is None or speeds is None:
            return work
        decided = self.kept(stage)
        if decided is None:
            left = self.left()
            planned = fitted(work, speeds, left)
            self.keep(stage, {"asked": asdict(work), "work": asdict(planned), "speeds": asdict(speeds), "left_s": left})
            return planned
        try:
            return Work(**decided["work"])
        except (KeyError, TypeError) as error:
            raise self.damaged(stage, error) from error

    def speeds(self, stage: str) -> Speeds | None:
        """The speeds that a stage was planned with; None where it was not. Raises FileFormatError if damaged."""
        decided = self.kept(stage)
        if decided is None:
            return None
        try:
            return Speeds(**{**decided["speeds"], "students": tuple(decided["speeds"]["students"])})
        except (KeyError, TypeError) as error:
            raise self.damaged(stage, error) from error

    def damaged(self, stage: str, error: Exception) -> FileFormatError:
        """The error for a record of a stage that is not one."""
        return FileFormatError(f"{self.run.path / FILE}: no plan of the stage {stage!r}: {error}")

    def kept(self, stage: str) -> dict[str, Any] | None:
        """What was decided at a stage; None where nothing was yet."""
        return self.decisions.get(stage)

    def keep(self, stage: str, decision: Mapping[str, Any]) -> None:
        """Write down what was decided at a stage, in the run's folder."""
        self.decisions[stage] = dict(decision)
        content = {"spent_s": self.spent, "decisions": self.decisions}
        write_json(Path(self.run.path) / FILE, KIND, SCHEMA, content, self.run.path)
