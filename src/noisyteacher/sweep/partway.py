"""What the cells that are done say of an unfinished sweep."""

from __future__ import annotations

from noisyteacher.errors import AskedWronglyError
from noisyteacher.runs import Run
from noisyteacher.sweep.cells import network_name
from noisyteacher.sweep.grid import expand
from noisyteacher.sweep.result import SweepResult, judge_sweep


def so_far(run: Run) -> SweepResult:
    """What the cells that are done say of an unfinished sweep; nothing is trained and nothing written.

    Conditions may have different seeds; differences are taken over the seeds that both sides have. `.record` has no
    costs. Raises AskedWronglyError for another kind of run, or when no cell is done.
    """
    if run.info["kind"] != "sweep":
        raise AskedWronglyError(f"{run.path}: a {run.info['kind']} run, not a sweep")
    settings = run.config
    conditions, families, axes = expand(settings["base"], settings["grids"])
    children = {child.path.name: child for child in run.children() if child.state == "done"}
    results = {}
    for one in conditions:
        for seed in range(settings["seeds"]):
            child = children.get(f"{one.name}-seed{seed}")
            result = None if child is None else child.result()
            if result is not None:
                results[one.name, seed] = result
    teachers = [child for name, child in children.items() if name.startswith("teacher")]
    if not results or not teachers:
        raise AskedWronglyError(f"{run.path}: no cell of this sweep is done yet")
    judged, groups = judge_sweep(conditions, families, results)
    scores = (teachers[0].result() or {})["scores"]
    first = {
        "name": network_name(teachers[0]),
        "run": teachers[0].path.name,
        **{f"{role}_error_%": found["error"]["value"] for role, found in scores.items()},
    }
    return SweepResult(
        run.path,
        {
            "data": conditions[0].config.data.name,
            "n": {role: found["error"]["n"] for role, found in scores.items()},
            "teacher": first,
            "axes": axes,
            "conditions": judged,
            "families": groups,
            "failed": [],
            "cells": {"done": len(results), "all": len(conditions) * settings["seeds"]},
        },
    )
