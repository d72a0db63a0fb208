"""How long a compression takes: speeds of this machine, and the views and epochs that fit into `target.minutes`.

Decisions are kept in the run's folder: a resumed run must not decide again by the speeds of another machine.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from statistics import fmean, median
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from noisyteacher.config import type_adapter
from noisyteacher.data import Batch, Split, Splits, expand_views, samples_of
from noisyteacher.device import channels_last, inference, precision_context, resolve_device
from noisyteacher.errors import FileFormatError, NoisyTeacherError, UsageError
from noisyteacher.extract import BATCH_SIZES
from noisyteacher.io.files import Json, read_json, write_json
from noisyteacher.objectives import supervised
from noisyteacher.pipeline.resolve import LABEL_WEIGHT, short_epochs
from noisyteacher.progress import Watch, message
from noisyteacher.runs import Run
from noisyteacher.text import duration, plural, rough_duration
from noisyteacher.train import fit
from noisyteacher.train.history import Tick

FILE, KIND, SCHEMA = "plan.json", "compression-plan", 3
RESERVE = 0.05  # share of the remaining time that is kept in reserve, because measured speeds vary
MOST_EPOCHS = 200  # of students, where the minutes and not the user say how many
EPOCHS_PER_VIEW = 4  # logits of a further view are stored only if each view then gets at least this many epochs
ENOUGH = 0.5  # rather than keep less than this share of the epochs, fewer networks are tried
COMPARISON = 0.1  # the most of the time that a short student on labels may take, where no networks are tried
LONG_ENOUGH_S = 0.5  # a training is timed this long after its first step, a teacher this long or for CALLS calls
CALLS = 6
TIMED, MOST_TIMED_S = 0.02, 5.0  # where time is limited: the share of it for timing trainings, and the most for one
NO_COMPARISON = (
    "there is no time to compare the teacher with a student trained on labels: a label weight of auto means "
    f"{LABEL_WEIGHT}"
)
IMAGES = 32  # in the batch by which a teacher is timed on a CPU: a large one may take a second for each
SLOWER_LATER = 1.05  # epochs take longer than their first steps: 1.04 times after 5 s of them, on an EPYC
Clock = Callable[[], float]


@dataclass
class StageTitles:
    """Numbers the stages of a run. `StageTitles(9).next("teacher") == "[1/9] teacher"`."""

    total: int
    number: int = 0

    def next(self, title: str) -> str:
        """The title of the next stage, with its number before it."""
        self.number += 1
        return f"[{self.number}/{self.total}] {title}"


@dataclass(frozen=True)
class Work:
    """What remains to be done. Where they are None, tries have a quarter of the student's epochs, a comparison as many
    as a try, trials of the noise all of them.
    """

    teacher_epochs: int  # 0: the teacher is trained already
    student_epochs: int
    students: int  # trainings of all conditions and seeds
    tries: int = 0  # networks tried in short runs; 0: the student is named
    try_epochs: int | None = None
    noise_runs: int = 0  # trials that choose the noise
    noise_epochs: int | None = None
    comparison_epochs: int | None = 0  # of a short student on labels, which the teacher is compared with; 0: none
    views: int = 0  # under which the teacher's answers for the training images are stored; 0: nothing to choose
    most_epochs: int = 0  # of a student where there is time for more than student_epochs

    @property
    def short_epochs(self) -> int:
        """Epochs of a try."""
        return short_epochs(self.student_epochs, self.try_epochs)

    @property
    def labels_epochs(self) -> int:
        """Epochs of the short student on labels."""
        return self.short_epochs if self.comparison_epochs is None else min(self.short_epochs, self.comparison_epochs)


@dataclass(frozen=True)
class Speeds:
    """Measured on this machine, in seconds. An epoch includes its validation."""

    teacher: float  # an epoch
    logits: float  # the teacher's answers, but those that depend on the number of views
    students: tuple[float, ...]  # an epoch of each network that may be tried, or of the one that is named
    end: float = 0.0  # measuring and exporting
    view: float = 0.0  # the teacher's answers for the training images under a view
    scoring: float = 0.0  # scoring a trained student on validation and test


def estimate(work: Work, speeds: Speeds) -> dict[str, float]:
    """Seconds by what they are for. A student yet to be chosen is as slow as the slowest that is tried."""
    tried = speeds.students[: work.tries]
    slowest = max(tried or speeds.students)
    noise_epochs = work.noise_epochs or work.student_epochs
    return {
        "teacher": work.teacher_epochs * speeds.teacher,
        "logits": speeds.logits + work.views * speeds.view,
        "student on labels": work.labels_epochs and work.labels_epochs * speeds.students[0] + speeds.scoring,
        "search": work.short_epochs * sum(tried) + len(tried) * speeds.scoring,
        "noise": work.noise_runs * (noise_epochs * slowest + speeds.scoring),
        "students": work.students * (work.student_epochs * slowest + speeds.scoring),
        "export": speeds.end,
    }


def total(work: Work, speeds: Speeds) -> float:
    """Seconds of all the work."""
    return sum(estimate(work, speeds).values())


def shares(work: Work, speeds: Speeds) -> str:
    """What the time is for: `teacher 40 s, logits 1 s, students 10 s`."""
    times = estimate(work, speeds).items()
    return ", ".join(f"{name} {rough_duration(seconds)}" for name, seconds in times if seconds)


def fit_into(work: Work, speeds: Speeds, seconds: float) -> Work:
    """The work that can be done in this many seconds, at least one view, an epoch of everything and one try.

    Where time is short the noise is chosen in a quarter of the student's epochs. Then all epochs are cut by one factor;
    fewer networks are tried before less than half of the epochs would remain. Where there is time for more, students
    get up to `most_epochs`. Of the views there are as many as make views x epochs greatest, with EPOCHS_PER_VIEW each;
    where the epochs are named, with as few as the recipe has. A named student is compared with a short one on labels
    for a tenth of the time at most, and not at all where an epoch takes longer.
    """
    if work.comparison_epochs != 0 and not work.tries:
        affordable = max(0, int((COMPARISON * seconds - speeds.scoring) / speeds.students[0]))
        work = replace(work, comparison_epochs=affordable)
    fits = total(work, speeds) <= seconds
    if fits and work.most_epochs <= work.student_epochs:
        return work
    if work.noise_runs and not fits:
        work = replace(work, noise_epochs=short_epochs(work.student_epochs, work.noise_epochs))
    full = {name: n for name in ("teacher_epochs", "try_epochs", "noise_epochs") if (n := getattr(work, name))}

    def cut(tries: int, views: int, epochs: int) -> Work:
        share = min(1.0, epochs / work.student_epochs)
        others: dict[str, Any] = {name: max(1, int(n * share + 1e-9)) for name, n in full.items()}
        return replace(work, tries=tries, views=views, student_epochs=epochs, **others)

    most, per_view = max(work.student_epochs, work.most_epochs), float(EPOCHS_PER_VIEW)
    if not work.most_epochs:
        per_view = min(per_view, work.student_epochs / max(1, work.views))
    for tries in range(work.tries, min(1, work.tries) - 1, -1):
        plans = [work] if fits and tries == work.tries else []
        for views in range(min(1, work.views), work.views + 1):
            fewest = math.ceil(ENOUGH * work.student_epochs) if tries > 1 else 1
            least = math.ceil(views * per_view) if views > 1 else 1
            lengths = range(max(fewest, least), most + 1)
            fitting = bisect_right(lengths, seconds, key=lambda n: total(cut(tries, views, n), speeds))
            plans += [cut(tries, views, epochs) for epochs in lengths[:fitting][-1:]]
        if plans:
            return max(plans, key=lambda plan: max(1, plan.views) * plan.student_epochs)
    if work.comparison_epochs and not work.tries:
        return fit_into(replace(work, comparison_epochs=0), speeds, seconds)
    least_work: dict[str, Any] = {**dict.fromkeys(full, 1), "student_epochs": 1}
    return replace(work, tries=min(1, work.tries), views=min(1, work.views), **least_work)


@dataclass
class Decision:
    """What was decided at a stage, and by what."""

    requested: Work
    work: Work
    speeds: Speeds
    remaining_s: float


@dataclass
class PlanRecord:
    """The content of plan.json: decisions by stage (`begin`, `search`, `student`), networks there was time to try."""

    spent_s: float = 0.0
    decisions: dict[str, Decision] = field(default_factory=dict)
    tried: list[str] | None = None


@dataclass
class Pace:
    """How many epochs the stages of one compression have, and what is reported of the time."""

    run: Run
    whole: Work  # without a limit
    measure: Callable[[], Speeds | None]  # where speeds are needed that are not recorded
    minutes: float | None = None
    on_progress: Watch | None = None
    clock: Clock = time.monotonic
    started: float | None = None  # the clock's value when the run was started

    def __post_init__(self) -> None:
        self.started = self.clock() if self.started is None else self.started
        self.record, self.decided, file = PlanRecord(), self.whole, self.run.path / FILE
        if self.minutes is not None and file.exists():
            try:
                self.record = type_adapter(PlanRecord).validate_python(read_json(file, KIND, SCHEMA))
            except ValidationError as error:
                raise FileFormatError(f"{file}: not the plan of a compression: {error}") from error
        self.spent_before, begin = self.record.spent_s, self.record.decisions.get("begin")
        self.speeds = self.measure() if begin is None else begin.speeds

    def begin(self) -> Work:
        """The work that fits into the minutes; it and the estimate of its time are shown.

        Raises UsageError where not even one view and one epoch of everything fit.
        """
        if self.speeds is None:
            return self._decide("begin", self.whole, None)
        least = fit_into(self.whole, self.speeds, 0.0)
        if "begin" not in self.record.decisions and total(least, self.speeds) > self.remaining():
            enough = math.ceil((self.spent + total(least, self.speeds) / (1 - RESERVE)) / 60)
            raise UsageError(
                f"target.minutes: {self.minutes:.3g} min is too short: even with one epoch of every training and the "
                f"teacher's logits for one view it takes {enough} min (start {rough_duration(self.spent)}, "
                f"{shares(least, self.speeds)}): allow that many, or use fewer images (--set data.limit=N)"
            )
        work = self._decide("begin", self.whole, self.speeds)
        words = f"time: about {rough_duration(total(work, self.speeds))}: {shares(work, self.speeds)}"
        message(self.on_progress, "plan", words)
        if self.minutes is not None:
            epoch_s = max(self.speeds.students[: work.tries] or self.speeds.students)
            words = f"{self.minutes:.3g} min: students get {plural(work.student_epochs, 'epoch')} (recipe: "
            words += f"{self.whole.student_epochs})"
            if work.views:
                words += f" on {work.views} of {plural(self.whole.views, 'view')}, because the teacher's logits for a "
                words += f"view take {rough_duration(self.speeds.view)}, and an epoch {rough_duration(epoch_s)}"
            else:
                words += f", because an epoch takes {rough_duration(epoch_s)}"
            message(self.on_progress, "plan", words)
        if self._lacks_comparison(work):
            message(self.on_progress, "plan", NO_COMPARISON)
        return work

    def _lacks_comparison(self, work: Work) -> bool:
        """Whether a comparison with a student on labels was wanted, and this work has no time for it."""
        return self.whole.comparison_epochs is None and not work.labels_epochs

    def again(self, stage: str, students: tuple[float, ...] = (), tries: int | None = None) -> Work:
        """The work after the teacher's as it fits into the remaining time, decided once.

        students: newer speeds of them; tries: networks still to be tried (by default as planned).
        """
        tries, speeds = self.whole.tries if tries is None else tries, self.speeds
        work = replace(self.whole, teacher_epochs=0, comparison_epochs=0, views=0, tries=tries)
        if speeds is not None:
            speeds = replace(speeds, teacher=0.0, logits=0.0, students=students or speeds.students)
        return self._decide(stage, work, speeds)

    def _decide(self, stage: str, work: Work, speeds: Speeds | None) -> Work:
        """The work as it was decided before at this stage, or as it fits now; unchanged where time is not limited."""
        if speeds is not None and self.minutes is not None:
            if stage not in self.record.decisions:
                seconds = self.remaining()
                self.record.decisions[stage] = Decision(work, fit_into(work, speeds, seconds), speeds, seconds)
                self._write()
            work = self.record.decisions[stage].work
        self.decided = work
        return work

    def time_for_try(self, index: int, epochs: int, epoch_seconds: float) -> bool:
        """Whether a try leaves the time for half of the students' epochs, at the speed of the best network so far, and
        for what comes before and after them.
        """
        if self.record.tried is not None or self.speeds is None:
            return self.record.tried is None or index < len(self.record.tried)
        half = max(1, int(ENOUGH * self.decided.student_epochs))
        rest = replace(self.whole, student_epochs=half, teacher_epochs=0, views=0, comparison_epochs=0, tries=0)
        if rest.noise_runs:
            rest = replace(rest, noise_epochs=short_epochs(half, rest.noise_epochs))
        rest_s = total(rest, replace(self.speeds, logits=0.0, students=(epoch_seconds,)))
        return epochs * self.speeds.students[index] + self.speeds.scoring + rest_s <= self.remaining()

    def keep_tried(self, names: list[str]) -> None:
        """Record which networks there was time to try."""
        if self.minutes is not None and self.record.tried is None:
            self.record.tried = names
            self._write()

    def _write(self) -> None:
        self.record.spent_s = self.spent
        write_json(self.run.path / FILE, KIND, SCHEMA, asdict(self.record), self.run.path)

    @property
    def spent(self) -> float:
        """Seconds since the run was started, as far as they are recorded."""
        return self.spent_before + self.clock() - (self.started or 0.0)

    def remaining(self) -> float:
        """Seconds that may be planned with; infinite where the time is not limited."""
        return math.inf if self.minutes is None else (1 - RESERVE) * max(0.0, 60 * self.minutes - self.spent)

    def describe(self, student_epochs: int, tried: int | None) -> Json | None:
        """How the minutes were spent, JSON-able; None where the time was not limited."""
        if self.minutes is None:
            return None
        begin, whole = self.record.decisions.get("begin"), self.whole
        work = begin.work if begin else whole
        epochs = {"teacher": work.teacher_epochs, "student": student_epochs}
        requested = {"teacher": whole.teacher_epochs, "student": whole.student_epochs}
        counts = {f"epochs of the {role}": (epochs[role], requested[role]) for role in epochs}
        counts["views"] = (work.views, whole.views)
        counts["networks to try"] = (whole.tries if tried is None else tried, whole.tries)
        cut = ", ".join(
            f"{done} {'of' if done < planned else 'instead of'} {planned} {what}"
            for what, (done, planned) in counts.items()
            if done != planned
        )
        over = "MORE than" if self.spent > 60 * self.minutes else "of"
        took = f"the whole run took {duration(self.spent)}, {over} {self.minutes:.3g} min"
        summary = [f"{self.minutes:.3g} min allowed {cut}", took] if cut else [took]
        if self._lacks_comparison(work):
            summary.append(NO_COMPARISON)
        return {
            "minutes": self.minutes,
            "spent_s": self.spent,
            "epochs": epochs,
            "epochs_requested": requested,
            "views": work.views,
            "views_requested": whole.views,
            "tries": tried,
            "tries_requested": None if tried is None else whole.tries,
            "summary": summary,
        }


def timed_seconds(limit_s: float, trainings: int = 1) -> float:
    """For how many seconds each of this many trainings is timed, where all has to be done within `limit_s`."""
    return max(LONG_ENOUGH_S, min(MOST_TIMED_S, TIMED * limit_s / trainings))


class _EnoughError(Exception):
    """Ends a training that is only timed."""


def training_seconds(
    model: nn.Module,
    data: Splits,
    recipe: Mapping[str, Any],
    device: str,
    clock: Clock = time.monotonic,
    seconds: float = LONG_ENOUGH_S,
) -> float | None:
    """Seconds of an epoch of training this model by these options of `fit`, validation included; None if it fails.

    Steps are done for this many seconds, at most a whole training, which change the model: pass a copy.
    """
    options = {key: value for key, value in recipe.items() if key not in ("augment", "patience", "keep", "criterion")}
    times = [clock()]

    def on_step(tick: Tick) -> None:
        times.append(clock())
        if times[-1] - times[1] >= seconds:
            raise _EnoughError

    def any_loss(logits: Tensor, batch: Batch) -> Tensor:
        return torch.square(logits).mean()

    objective = any_loss if data.train.labels is None else supervised()  # as fast as distilling, also as a CUDA graph
    try:
        with suppress(_EnoughError):
            fit(model, data.train, objective, **options, keep="last", device=device, progress=on_step)
    except NoisyTeacherError:
        return None
    steps = [after - before for before, after in pairwise(times)]
    batch_size = int(options["batch_size"])
    samples = samples_of(data.train, expand_views(options["views"]), options["every_view"])
    batches = max(1.0, samples / batch_size) + len(data.val) / batch_size / 3  # validation has no backward pass
    return SLOWER_LATER * fmean(steps[1:] or steps) * batches  # the first step sets things up


def seconds_per_answer(
    model: nn.Module, split: Split, device: str, clock: Clock = time.monotonic, precision: str = "fp32"
) -> float:
    """Seconds of a forward pass per image of the split, in batches of many, as logits are stored."""
    target = resolve_device(device)
    size = BATCH_SIZES["cuda"] if target.type == "cuda" else IMAGES
    images = split.first_images(min(size, len(split))).to(target)
    with inference(model, target), channels_last(model, images), precision_context(precision, target):
        times: list[float] = []
        while len(times) < 2 or (len(times) <= CALLS and times[-1] - times[0] < LONG_ENOUGH_S):
            logits: Tensor = model(images)
            float(logits.sum())  # a GPU has answered once a number is there
            times.append(clock())
    return median(after - before for before, after in pairwise(times)) / len(images)  # the first call sets things up
