"""A student that is chosen: short runs of the networks within the limits, judged on validation, in a given time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from noisyteacher.pipeline.candidates import Candidate
from noisyteacher.pipeline.choosing import planned, shortened
from noisyteacher.pipeline.conditions import a_student, conditions_of
from noisyteacher.pipeline.plan import Answers, Plan
from noisyteacher.pipeline.steps import lost
from noisyteacher.pipeline.training import Trained
from noisyteacher.runs import folder_name
from noisyteacher.text import duration, plural


@dataclass(frozen=True)
class Tried:
    """A candidate after its short run."""

    candidate: Candidate
    error: float
    """Validation error in %."""
    per_epoch: float
    """Training time of an epoch, in seconds."""
    spent: float
    """Training time of the short run, in seconds."""
    run: str

    def describe(self) -> dict[str, Any]:
        """The JSON-able form."""
        return {"name": self.candidate.name, "val_error_%": self.error, "training_s": self.spent, "run": self.run}


def looked_at(plan: Plan) -> int:
    """How many short runs the choice of a student takes at most; 0 where it was named."""
    return 0 if plan.search is None else min(plan.config.target.search, len(plan.search.fitting))


def choose_student(
    plan: Plan, teacher: Trained, answers: Answers, numbered: tuple[int, int]
) -> tuple[Plan, dict[str, Any]]:
    """The plan with its student named and its epochs fitted to the time there is, and the evidence.

    Every candidate learns by clean logit regression with seed 0 for a few epochs; the lowest validation error wins, and
    of equals the one with fewer multiplications. Test data are not looked at. What the time allows is reckoned from the
    training times that the runs recorded, so an interrupted search goes on to the same choice.
    """
    search, target, student = plan.search, plan.config.target, plan.config.student
    assert search is not None
    among = search.fitting[: target.search]
    epochs = shortened(student, target.epochs).epochs
    clock = None if target.minutes is None else 60 * target.minutes
    tried: list[Tried] = []
    spent, (number, total) = _of_teacher(teacher), numbered
    for one in among:
        if tried and clock is not None:
            next_one = tried[-1].spent * one.macs / max(1, tried[-1].candidate.macs)
            if spent + next_one + _ahead(plan, min(tried, key=_rank).per_epoch) > clock:
                break
        number += 1
        run, title = folder_name(f"search-{one.name}", 120), f"[{number}/{total}] trying {one.name}"
        tried.append(_try(_named(plan, one.name, epochs), one, run, answers, title))
        spent += tried[-1].spent
    best = min(tried, key=_rank)
    needed, length, time = _ahead(plan, best.per_epoch), student.epochs, None
    if clock is not None:
        if spent + needed > clock:
            length = max(1, int(student.epochs * max(0.0, clock - spent) / needed))
        time = {
            "minutes": target.minutes,
            "spent_s": spent,
            "needed_s": needed,
            "not_tried": len(among) - len(tried),
            "epochs_asked": student.epochs,
            "epochs": length,
            "enough": spent + needed / student.epochs <= clock,
        }
    record = {
        "by": "validation error",
        "n": len(plan.data.val),
        "epochs": epochs,
        "seed": 0,
        "chosen": best.candidate.name,
        "bound": list(search.bound(best.candidate)),
        **search.describe(),
        "tried": [one.describe() for one in tried],
        "time": time,
    }
    return _named(plan, best.candidate.name, length), record | {"told": explain_search(record)}


def _try(plan: Plan, one: Candidate, run: str, answers: Answers, title: str) -> Tried:
    found = a_student(plan, run, "clean", None, 0, answers, title).result
    seconds, epochs = float(found["training"]["seconds"]), int(found["training"]["epochs"])
    return Tried(one, lost(found["scores"]["val"]), seconds / max(1, epochs), seconds, run)


def explain_search(search: Mapping[str, Any]) -> list[str]:
    """Sentences on which student was chosen, which limit kept larger ones out, and what the time did not allow."""
    errors = {one["name"]: one["val_error_%"] for one in search["tried"]}
    chosen, within = search["chosen"], sum(not one["over"] for one in search["candidates"])
    told = [
        f"chosen on validation (n = {search['n']:,}) was {chosen}: error {errors[chosen]:.2f} %, the lowest of "
        f"{len(errors)} tried for {plural(search['epochs'], 'epoch')} each, of {within} within the limits "
        f"({len(search['candidates'])} known)"
    ]
    bound = " and ".join(f"target.{name}" for name in search["bound"])
    told.append(f"the limit that bound was {bound}" if bound else "no limit bound: nothing larger is known")
    time = search["time"]
    if time is not None:
        if time["not_tried"]:
            told.append(f"{plural(time['not_tried'], 'network')} could not be tried in {time['minutes']:g} minutes")
        if not time["enough"]:
            told.append(
                f"{time['minutes']:g} minutes are too little: one epoch of every student would take "
                f"{duration(time['needed_s'] / time['epochs_asked'])} more; each got one all the same"
            )
        elif time["epochs"] < time["epochs_asked"]:
            told.append(
                f"{plural(time['epochs'], 'epoch')} instead of {time['epochs_asked']}, for {time['minutes']:g} minutes "
                f"did not allow more ({duration(time['needed_s'])} would have been needed)"
            )
    return told


def _of_teacher(teacher: Trained) -> float:
    """Training time of the teacher where it was trained here, 0 for one that was given."""
    return float(teacher.result["training"]["seconds"]) if teacher.run.info["kind"] == "train" else 0.0


def _ahead(plan: Plan, seconds: float) -> float:
    """Training time of everything after the search: the choice of the noise and all students, at so much per epoch."""
    student, choice = plan.config.student, plan.config.choice
    short = shortened(student, choice.epochs).epochs
    students = len(conditions_of(plan)) * plan.config.run.seeds
    return seconds * (planned(plan) * short + students * student.epochs)


def _named(plan: Plan, name: str, epochs: int) -> Plan:
    """The plan for a student of that name and so many epochs."""
    student = replace(shortened(plan.config.student, epochs), name=name)
    return replace(plan, student=name, config=replace(plan.config, student=student))


def _rank(one: Tried) -> tuple[float, int]:
    return one.error, one.candidate.macs
