"""A student that is chosen: short runs of networks within the limits, judged on validation, in the time there is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from noisyteacher.pipeline.budget import HALF, Work, short
from noisyteacher.pipeline.candidates import SHOWN, Candidate, Search, larger_than_teacher
from noisyteacher.pipeline.conditions import a_student
from noisyteacher.pipeline.pacing import Pace
from noisyteacher.pipeline.plan import Answers, Plan, lasting
from noisyteacher.pipeline.steps import lost
from noisyteacher.pipeline.tried import outcomes
from noisyteacher.runs import folder_name
from noisyteacher.text import plural


@dataclass(frozen=True)
class Tried:
    """A candidate after its short run."""

    candidate: Candidate
    error: float
    """Validation error in %."""
    per_epoch: float
    """Time of an epoch, in seconds."""
    spent: float
    """Training time of the short run, in seconds."""
    run: str

    def describe(self) -> dict[str, Any]:
        """The JSON-able form."""
        return {"name": self.candidate.name, "val_error_%": self.error, "training_s": self.spent, "run": self.run}


def choose_student(plan: Plan, answers: Answers, numbered: tuple[int, int], pace: Pace) -> tuple[Plan, dict[str, Any]]:
    """The plan with its student named and its epochs fitted to the time there is, and the evidence.

    Every candidate is distilled without noise, with seed 0, for a few epochs; the lowest validation error wins, and
    of equals the one with fewer multiplications. Test data are not looked at. What the time allowed is kept in the
    run's folder, so an interrupted search goes on to the same choice.
    """
    search = plan.search
    assert search is not None
    work = pace.again("search", replace(pace.whole, teacher_epochs=0, comparisons=0))
    among = search.fitting[: work.tries]
    epochs = short(work.student_epochs, work.try_epochs)
    tried: list[Tried] = []
    number, total = numbered
    before = pace.budget.kept("tried")
    for index, candidate in enumerate(among):
        goes_on = candidate.name in before["names"] if before else _time_for(index, tried, work, pace)
        if tried and not goes_on:
            break
        number += 1
        run, title = folder_name(f"search-{candidate.name}", 120), f"[{number}/{total}] trying {candidate.name}"
        tried.append(_try(_named(plan, candidate.name, epochs), candidate, run, answers, title))
    if before is None and pace.budget.seconds is not None:
        pace.budget.keep("tried", {"names": [trial.candidate.name for trial in tried]})
    best = min(tried, key=_rank)
    work = pace.again(
        "student", replace(pace.whole, teacher_epochs=0, tries=0, comparisons=0), (_speed(best, among, pace),)
    )
    chosen = best.candidate
    errors = {trial.candidate.name: trial.error for trial in tried}
    planned = [candidate.name for candidate in search.fitting[: plan.config.target.search]]
    record = {
        "by": "validation error",
        "n": len(plan.data.val),
        "epochs": epochs,
        "seed": 0,
        "chosen": chosen.name,
        "bound": list(search.bound(chosen)),
        **search.describe(),
        "table": outcomes(search, errors, chosen.name, planned, plan.config.target.search),
        "tried": [trial.describe() for trial in tried],
    }
    costs = {key: float(getattr(chosen, key)) for key in SHOWN}
    warning = larger_than_teacher(chosen.name, costs, search.teacher)
    plan = replace(plan, warnings=(*plan.warnings, *(() if warning is None else (warning,))))
    return _named(plan, chosen.name, work.student_epochs), record | {"told": explain_search(record, search)}


def explain_search(record: Mapping[str, Any], search: Search) -> list[str]:
    """Sentences on which student was chosen, how sure that is, and which limit kept larger ones out."""
    errors = {candidate["name"]: candidate["val_error_%"] for candidate in record["tried"]}
    chosen, n = record["chosen"], record["n"]
    sentences = [
        f"chosen on validation (n = {n:,}) was {chosen}: error {errors[chosen]:.2f} %, the lowest of {len(errors)} "
        f"tried for {plural(record['epochs'], 'epoch')} each, of {record['within']} within the limits "
        f"({record['known']} known)"
    ]
    noise = standard_error(errors[chosen], n)
    level = [name for name, error in errors.items() if name != chosen and error - errors[chosen] <= noise]
    if level:
        sentences.append(
            f"{', '.join(level)} came within one standard error ({noise:.2f} points) of it, which so few images do not "
            "tell apart"
        )
    limits = [f"target.{key}" if key in search.limits else f"the teacher's own {key}" for key in record["bound"]]
    sentences.append(
        f"the limit that bound was {' and '.join(limits)}" if limits else "no limit bound: nothing larger is known"
    )
    return [*sentences, *search.notes]


def standard_error(error: float, n: int) -> float:
    """The standard error, in points, of the difference of two errors (%) near this one, of n images each."""
    share = min(max(error / 100, 1 / (n + 2)), (n + 1) / (n + 2))
    return 100 * math.sqrt(2 * share * (1 - share) / n)


def _time_for(index: int, tried: list[Tried], work: Work, pace: Pace) -> bool:
    """Whether a further try leaves the time for half of the student's epochs, at the speeds that were seen."""
    if not tried or pace.budget.seconds is None or pace.speeds is None:
        return True
    per_epoch = pace.speeds.students[index]
    best = min(tried, key=_rank)
    ahead = pace.whole.students * max(1, int(HALF * work.student_epochs)) * best.per_epoch
    return short(work.student_epochs, work.try_epochs) * per_epoch + ahead <= pace.budget.left()


def _try(plan: Plan, candidate: Candidate, run: str, answers: Answers, title: str) -> Tried:
    result = a_student(plan, run, "clean", None, 0, answers, title).result
    seconds, epochs = float(result["training"]["seconds"]), int(result["training"]["epochs"])
    return Tried(candidate, lost(result["scores"]["val"]), seconds / max(1, epochs), seconds, run)


def _speed(best: Tried, among: tuple[Candidate, ...], pace: Pace) -> float:
    """Seconds of an epoch of the chosen student: as its short run took, validation included as it was measured."""
    measured = 0.0 if pace.speeds is None else pace.speeds.students[among.index(best.candidate)]
    return max(best.per_epoch, measured)


def _named(plan: Plan, name: str, epochs: int) -> Plan:
    """The plan for a student of that name and so many epochs."""
    student = replace(lasting(plan.config.student, epochs), name=name)
    return replace(plan, student=name, config=replace(plan.config, student=student))


def _rank(trial: Tried) -> tuple[float, int]:
    return trial.error, trial.candidate.macs
