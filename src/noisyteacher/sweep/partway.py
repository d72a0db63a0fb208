"""What the cells that are done say of an unfinished sweep."""

from __future__ import annotations

from typing import Any

from noisyteacher.errors import UsageError
from noisyteacher.runs import Run
from noisyteacher.sweep.cells import teacher_record
from noisyteacher.sweep.judging import judge_sweep, preferences
from noisyteacher.sweep.question import Question, asked
from noisyteacher.sweep.result import SweepResult


def so_far(run: Run) -> SweepResult:
    """What the cells that are done say of an unfinished sweep; nothing is trained and nothing written.

    Conditions may have different seeds; differences are taken over the seeds that both sides have. `.record` has no
    costs. Raises UsageError for another kind of run, or when no cell is done.
    """
    if run.info["kind"] != "sweep":
        raise UsageError(f"{run.path}: a {run.info['kind']} run, not a sweep")
    settings = run.config
    question = asked(settings["base"], settings["grids"], settings["seeds"])
    children = {child.path.name: child for child in run.children()}
    results, failed = {}, []
    for one in question.conditions:
        for seed in range(question.seeds):
            name = f"{one.name}-seed{seed}"
            child = children.get(name)
            result = None if child is None or child.state != "done" else child.result()
            if result is not None:
                results[one.name, seed] = result
            elif child is not None and child.state == "failed":
                error = " ".join((child.error() or "").split())
                failed.append({"condition": one.name, "seed": seed, "run": name, "error": error})
    teachers = _teachers(question, children)
    if not results or not teachers:
        raise UsageError(f"{run.path}: no cell of this sweep is done yet")
    judged, groups = judge_sweep(question.conditions, question.families, results)
    return SweepResult(
        run.path,
        {
            "data": teachers[0]["data"],
            "n": teachers[0]["n"],
            "teacher": teachers[0],
            "teachers": teachers,
            "axes": list(question.axes),
            "conditions": judged,
            "families": groups,
            "preferred": preferences(judged, teachers, question.axes),
            "failed": failed,
            "cells": {"done": len(results), "all": len(question.conditions) * question.seeds},
        },
    )


def _teachers(question: Question, children: dict[str, Run]) -> list[dict[str, Any]]:
    """Those that are done, as a sweep's result has them, but for the sizes of what they learned from."""
    found = []
    for name, members in question.taught().items():
        child = children.get(name)
        result = None if child is None or child.state != "done" else child.result()
        if child is None or result is None:
            continue
        data = child.config.get("data") or {}
        whose = str(data.get("name") or members[0].config.data.name)
        n = {role: one["error"]["n"] for role, one in result["scores"].items()}
        found.append(teacher_record(child, result, members, whose, n))
    return found
