"""The pace of a compression: speeds measured before it begins, epochs that fit its minutes, and how long is left."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from noisyteacher.config import Student
from noisyteacher.data import expand_views
from noisyteacher.distributed import world
from noisyteacher.errors import UsageError
from noisyteacher.pipeline.budget import Budget, Speeds, Stages, Work, needed
from noisyteacher.pipeline.conditions import conditions_of, controls
from noisyteacher.pipeline.given import network_of
from noisyteacher.pipeline.labels_alone import takes_short_run
from noisyteacher.pipeline.plan import Networks, Plan, lasting
from noisyteacher.pipeline.steps import recipe_of
from noisyteacher.pipeline.timing import answer_seconds, training_seconds
from noisyteacher.progress import Watch, message
from noisyteacher.text import duration, plural, rough_duration

EXPORT_S = 5.0
"""Seconds that writing and checking one exported file is taken to need."""
NUMBER = re.compile(r"\[(\d+)/\d+\]")
"""The place of a stage among all, at the start of its title."""


@dataclass
class Forecast:
    """A `Watch` that passes everything on, and adds to the note how long the whole run still takes."""

    watch: Watch
    clock: Callable[[], float]
    seconds: tuple[float, ...] = ()
    """What each stage takes, in order; empty where that is not known."""
    stage: str = ""
    begun: float = 0.0

    def __call__(self, stage: str, done: int, total: int, note: str) -> None:
        if stage != self.stage:
            self.stage, self.begun = stage, self.clock()
        left = self.left(stage, done / max(1, total))
        self.watch(stage, done, total, note if left is None else f"{note}, about {rough_duration(left)} left in all")

    def left(self, stage: str, share: float) -> float | None:
        """Seconds that are left when this share of a stage is done; None where nothing is known of it.

        From a tenth of a stage on, its own speed counts, no longer what was measured before.
        """
        number = NUMBER.match(stage)
        if number is None or not 1 <= int(number[1]) <= len(self.seconds):
            return None
        here = self.seconds[int(number[1]) - 1] * (1 - share)
        if share >= 0.1:
            here = (self.clock() - self.begun) / share * (1 - share)
        return here + sum(self.seconds[int(number[1]) :])


class Pace:
    """What the stages of one compression ask: how many epochs, and what to tell of the time."""

    def __init__(self, plan: Plan, networks: Networks, started: float, clock: Callable[[], float]) -> None:
        """Measures speeds where they are needed. `started`: the clock when the run was begun."""
        target = plan.config.target
        if target.minutes is not None and world().size > 1:
            raise UsageError("target.minutes: the time of a group of processes cannot be planned: leave it out")
        if target.minutes is not None and plan.config.teacher.also:
            raise UsageError("target.minutes: the time of several teachers cannot be planned: leave it out")
        self.plan, self.clock = plan, clock
        self.budget = Budget.of(plan.run, target.minutes, clock, started)
        self.forecast = None if plan.watch is None else Forecast(plan.watch, clock)
        self.whole = self.decided = work_of(plan)
        self.labels_first = int("labels" in controls(plan))
        self.speeds = self.budget.speeds("begin")
        if self.speeds is None and world().size == 1 and (plan.watch is not None or target.minutes is not None):
            self.speeds = measured(plan, networks, clock)

    def begin(self) -> Plan:
        """The plan with the epochs of its teacher, and a `watch` that tells the time left; the estimate is told."""
        work = self.decided = self.budget.decide("begin", self.whole, self.speeds)
        if self.forecast is not None and self.speeds is not None:
            stages = needed(work, self.speeds)
            self.expect(stages, self.whole.tries)
            message(self.forecast.watch, "plan", f"time: {in_words(stages)}")
        teacher = lasting(self.plan.config.teacher, work.teacher_epochs or self.plan.config.teacher.epochs)
        config = replace(self.plan.config, teacher=teacher)
        return replace(self.plan, config=config, watch=self.forecast)

    def again(self, stage: str, work: Work, students: tuple[float, ...] = ()) -> Work:
        """The work that is left as it fits into the time that is left, decided once; students: newer speeds of them."""
        if self.speeds is None:
            return work
        speeds = replace(self.speeds, teacher=0.0, logits=0.0, students=students or self.speeds.students)
        decided = self.decided = self.budget.decide(stage, work, speeds)
        self.expect(needed(decided, speeds), self.whole.tries)
        return decided

    def expect(self, stages: Stages, tries: int) -> None:
        """Tell the forecast what is still to come, stage by stage; those that are over count as nothing."""
        if self.forecast is None:
            return
        work = self.whole
        search = [*stages.search, *[0.0] * (tries - len(stages.search))]
        noise = [stages.noise / max(1, work.noise_runs)] * work.noise_runs
        students = [stages.students / max(1, work.students)] * work.students
        comparison = [stages.comparison] * work.comparisons
        on_labels = students[: self.labels_first]  # trained before the noise is chosen
        after = [*noise, *students[self.labels_first :]]
        self.forecast.seconds = (stages.teacher, stages.logits, *comparison, *search, *on_labels, *after, stages.end)

    def record(self, student: Student, tried: int | None) -> dict[str, Any] | None:
        """How the minutes were spent, for the result; None where the time was not limited."""
        seconds = self.budget.seconds
        if seconds is None:
            return None
        begin = self.budget.kept("begin") or {}
        done = {
            "teacher": begin.get("work", {}).get("teacher_epochs", self.whole.teacher_epochs),
            "student": student.epochs,
        }
        whole = {"teacher": self.whole.teacher_epochs, "student": self.whole.student_epochs}
        record = {
            "minutes": seconds / 60, "spent_s": self.budget.spent, "epochs": done, "epochs_asked": whole,
            "tries": tried, "tries_asked": self.whole.tries if tried is not None else None,
        }  # fmt: skip
        return record | {"told": explain_time(record)}


def explain_time(time: Mapping[str, Any]) -> list[str]:
    """Sentences on what the minutes allowed, and on whether they were enough."""
    done, whole = time["epochs"], time["epochs_asked"]
    minutes = f"{time['minutes']:.3g} minute{'' if time['minutes'] == 1 else 's'}"
    fewer = [
        f"the {role} was trained for {plural(done[role], 'epoch')} instead of {whole[role]}"
        for role in ("teacher", "student")
        if done[role] < whole[role]
    ]
    sentences = [f"{' and '.join(fewer)}: {minutes} did not allow more"] if fewer else []
    if time["tries"] is not None and time["tries"] < time["tries_asked"]:
        sentences.append(
            f"{plural(time['tries'], 'network')} instead of {time['tries_asked']} tried, for the same reason"
        )
    spent = f"the whole run took {duration(time['spent_s'])}"
    over = time["spent_s"] > 60 * time["minutes"]
    return [*sentences, f"{spent}, MORE than the {minutes} it was given" if over else f"{spent} of {minutes}"]


def work_of(plan: Plan) -> Work:
    """All that a compression does, as it was asked for."""
    config, named = plan.config, plan.search is None
    return Work(
        0 if plan.given else config.teacher.epochs,
        config.student.epochs,
        len(conditions_of(plan)) * config.run.seeds,
        0 if plan.search is None else min(config.target.search, len(plan.search.fitting)),
        None if named else config.target.epochs,
        (1 + len(plan.candidates)) * config.choice.seeds if plan.candidates else 0,
        config.choice.epochs,
        int(takes_short_run(plan)),
    )


def measured(plan: Plan, networks: Networks, clock: Callable[[], float] = time.monotonic) -> Speeds | None:
    """The Speeds of this machine for a plan; None where a network cannot be timed."""
    config, data = plan.config, plan.data
    device = config.run.device
    answer = answer_seconds(networks.teacher, data.train, device, clock)
    views = 0 if plan.live else len(expand_views(config.student.views))
    images = len(data.train) * views + sum(len(split) for split in data.parts.values()) - len(data.train)
    names = [plan.student] if plan.search is None else [one.name for one in plan.search.fitting[: config.target.search]]
    live = answer * len(data.train) if plan.live else 0.0
    students = []
    for name in names:
        model = copy.deepcopy(name) if isinstance(name, nn.Module) else name
        network = network_of(config.student, model, data, teacher=networks.teacher)
        recipe = recipe_of(config.student, network, data)
        students.append(training_seconds(network, data, recipe, device, clock))
    teacher: float | None = 0.0
    if not plan.given:
        teacher = training_seconds(
            networks.teacher, data, recipe_of(config.teacher, networks.teacher, data), device, clock
        )
    end = EXPORT_S * len(config.run.export)
    if teacher is None or any(one is None for one in students):
        return None
    return Speeds(teacher, answer * images, tuple(one + live for one in students if one is not None), end)


def in_words(stages: Stages) -> str:
    """The estimate on one line. `about 6 min: teacher 2 min, logits 1 min, students 3 min`."""
    parts = {
        "teacher": stages.teacher, "logits": stages.logits, "search": sum(stages.search), "noise": stages.noise,
        "students": stages.comparison + stages.students, "export": stages.end,
    }  # fmt: skip
    shares = ", ".join(f"{name} {rough_duration(seconds)}" for name, seconds in parts.items() if seconds > 0)
    return f"about {rough_duration(stages.total)}: {shares}"
