"""The one student that is handed over: best on validation, held against its teacher, written as files that run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from noisyteacher.pipeline.conditions import TITLES
from noisyteacher.pipeline.plan import Plan
from noisyteacher.pipeline.shipping import ship
from noisyteacher.pipeline.steps import lost
from noisyteacher.pipeline.training import Trained
from noisyteacher.progress import Watch

FOLDER = "export"


def best_student(
    plan: Plan, teacher: Trained, trained: Mapping[str, Sequence[Trained]]
) -> tuple[Trained, dict[str, Any]]:
    """The student to hand over, and on what grounds: the condition, then the seed, with the lowest validation error.

    Of equals the first: labels alone, then clean logits, then noise. `drop` is what the condition's mean loses against
    the teacher, in points of validation accuracy. Test data are not looked at.
    """
    means = {name: sum(map(_error, found)) / len(found) for name, found in trained.items()}
    condition = min(means, key=lambda name: means[name])
    best = min(trained[condition], key=_error)
    drop = means[condition] - _error(teacher)
    scored = "error" if plan.data.val.labels is not None else "disagreement"
    allowed = plan.config.target.max_drop
    record = {
        "by": f"validation {scored}",
        "n": len(plan.data.val),
        "condition": condition,
        "run": os.path.relpath(best.run.path, plan.run.path),
        "val_error_%": _error(best),
        "mean_val_error_%": means[condition],
        "teacher_val_error_%": _error(teacher),
        "drop": drop,
        "max_drop": allowed,
        "holds": allowed is None or drop <= allowed,
        "files": [],
    }
    return best, record | {"told": explain_best(record)}


def export_best(plan: Plan, best: Trained, title: str) -> list[dict[str, Any]]:
    """What came of every format of `run.export`, in the run's folder `export`; paths are relative to the run."""
    watch = plan.watch
    tell: Watch | None = None
    if watch is not None:

        def tell(stage: str, done: int, total: int, note: str) -> None:
            watch(title, done, total, note)

    found = ship(best.model, plan.data, plan.run.path / FOLDER, plan.config.run.export, best.run, tell)
    return [one.describe() | {"path": os.path.relpath(one.path, plan.run.path)} for one in found]


def explain_best(best: Mapping[str, Any]) -> str:
    """One sentence on which student is handed over and what it loses."""
    more = f"{abs(best['drop']):.2f} points {'more' if best['drop'] >= 0 else 'less'} than the teacher's"
    limit = (
        ""
        if best["max_drop"] is None
        else f", {'within' if best['holds'] else 'OVER'} the {best['max_drop']:g} allowed"
    )
    scored = best["by"].split()[-1]
    return (
        f"best on validation (n = {best['n']:,}): {TITLES[best['condition']]}, {best['mean_val_error_%']:.2f} % "
        f"{scored}, {more}{limit}; handed over is {best['run']} ({best['val_error_%']:.2f} %)"
    )


def _error(one: Trained) -> float:
    """The validation error in %; where nothing is labelled the disagreement with the teacher, its own being 0."""
    return lost(one.result["scores"].get("val", {}))
