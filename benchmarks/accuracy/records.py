"""The runs that are done, in a JSON file, and what they say: table, comparison with ours, figure."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from noisyteacher.pipeline.results import Estimate
from noisyteacher.report.figures import COLOURS, Figure
from noisyteacher.stats import PERCENT, evidence, paired_difference
from noisyteacher.text import plural

OURS = "ours"
PILOT_SEED = 1000
QUIET = 0.2
"""So many cores busy with other processes, on average over a run, are little enough."""
LATE = 1.05
"""A training that takes longer than so many times its minutes is marked. Everything counts at the time it took."""
SERIES = {"ours": ("clean", "o"), "torchdistill": ("s2", "s"), "timm": ("s3", "^"), "labels": ("labels", "D")}
"""Contestant -> colour and marker."""


@dataclass(frozen=True)
class Run:
    """A training to be done, or done. candidate: the number of the tried options of a pilot, None in the comparison."""

    contestant: str
    minutes: float
    seed: int
    candidate: int | None = None


def schedule(candidates: dict[str, int], minutes: Sequence[float], seeds: int, pilot_minutes: float) -> Iterator[Run]:
    """The pilots, then the comparison; in it the order of the contestants rotates with seed and time."""
    for candidate in range(max(candidates.values())):
        for name, count in candidates.items():
            if candidate < count:
                yield Run(name, pilot_minutes, PILOT_SEED, candidate)
    names = list(candidates)
    for seed in range(seeds):
        for place, budget in enumerate(sorted(minutes)):
            first = (seed + place) % len(names)
            for name in [*names[first:], *names[:first]]:
                yield Run(name, budget, seed)


@dataclass
class Records:
    """The file: the conditions that all runs share, and the runs. Raises SystemExit for runs of other conditions."""

    path: Path
    conditions: dict[str, Any]
    runs: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.path.exists():
            return
        content = json.loads(self.path.read_text(encoding="utf-8"))
        former = content["conditions"]
        if former != self.conditions:
            keys = ", ".join(key for key in self.conditions if former.get(key) != self.conditions[key])
            raise SystemExit(f"{self.path} holds runs of other conditions ({keys}): name another file with --out")
        self.runs = content["runs"]

    def find(self, run: Run) -> dict[str, Any] | None:
        """The record of a run that is done."""
        return next((record for record in self.runs if vars(run).items() <= record.items()), None)

    def add(self, run: Run, record: dict[str, Any]) -> None:
        """Keep a run; the file is whole at every moment."""
        self.runs.append({**vars(run), **record})
        temporary = self.path.with_suffix(".new")
        content = {"conditions": self.conditions, "runs": self.runs}
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, self.path)

    def chosen(self, contestant: str) -> int:
        """The candidate with the lowest validation error in the pilots, the first of equals."""
        pilots = [run for run in self.runs if run["candidate"] is not None and run["contestant"] == contestant]
        errors = {run["candidate"]: run["val_error"] for run in pilots}
        return min(sorted(errors), key=lambda candidate: errors[candidate])


def summary(records: Records) -> list[dict[str, Any]]:
    """A row per contestant and time, in this order: test errors by seed with their interval, seconds used.

    None for a time that was refused, were it for one seed.
    """
    done = [run for run in records.runs if run["candidate"] is None]
    refused = {(run["contestant"], run["minutes"]) for run in done if "refused" in run}
    done = [run for run in done if (run["contestant"], run["minutes"]) not in refused]
    rows = []
    for (name, minutes), group in groupby(
        sorted(done, key=_place), key=lambda run: (run["contestant"], run["minutes"])
    ):
        runs = list(group)
        estimate = Estimate.of([run["test_error"] for run in runs])
        assert estimate is not None
        rows.append({
            "contestant": name,
            "minutes": minutes,
            "seeds": [run["seed"] for run in runs],
            "errors": list(estimate.per_seed),
            "mean": estimate.mean, "low": estimate.low, "high": estimate.high,
            "seconds": statistics.mean(run["seconds"] for run in runs),
            "epochs": statistics.mean(run["epochs"] for run in runs),
            "options": runs[0]["options"],
            "background_cores": max((run["background_cores"] or 0.0 for run in runs), default=0.0),
            "curve": _mean_curve([run["curve"] for run in runs]),
        })  # fmt: skip
    return rows


def refusals(records: Records) -> Iterator[str]:
    """A sentence for every run whose minutes were refused."""
    for run in records.runs:
        if "refused" in run:
            yield f"{run['contestant']}, {run['minutes']:g} min, seed {run['seed']}: refused: {run['refused']}"


def _place(run: dict[str, Any]) -> tuple[int, float, int]:
    return list(SERIES).index(run["contestant"]), run["minutes"], run["seed"]


def _mean_curve(curves: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    """Mean seconds and errors, counted from the end: a training that begins late has fewer points."""
    ends = zip(*(reversed(curve) for curve in curves), strict=False)
    means = [[statistics.mean(values) for values in zip(*points, strict=True)] for points in ends]
    return means[::-1]


def comparisons(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """For each other side a sentence: when ours had reached the error of its longest training, and by how much."""
    mine = [row for row in rows if row["contestant"] == OURS]
    for name in SERIES:
        row = next((row for row in reversed(rows) if row["contestant"] == name != OURS), None)
        if row is None:
            continue
        target = f"the {row['mean']:.2f} % of {name} after {row['minutes']:g} min"
        reached = min((point for point in mine if point["mean"] <= row["mean"]), key=_seconds, default=None)
        if reached is None:
            yield f"ours has not reached {target}"
            continue
        pairs = sorted(set(row["seeds"]) & set(reached["seeds"]))
        errors = [[side["errors"][side["seeds"].index(seed)] for seed in pairs] for side in (row, reached)]
        difference = evidence(paired_difference(errors[0], errors[1], PERCENT), "points") if pairs else "no pairs"
        yield f"ours reached {target} in {reached['seconds'] / 60:.2f} min: {reached['mean']:.2f} % ({difference})"


def _seconds(row: dict[str, Any]) -> float:
    return float(row["seconds"])


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The summary as lines of text."""
    yield f"{'':14}{'minutes':>8}{'used':>8}{'epochs':>8}{'test error %':>28}  options by validation"
    for row in rows:
        interval = "" if row["low"] is None else f" [{row['low']:.2f}, {row['high']:.2f}]"
        error = f"{row['mean']:.2f}{interval}, n={len(row['errors'])}"
        options = ", ".join(f"{key} {value:g}" for key, value in row["options"].items())
        used, notes = row["seconds"] / 60, []
        if used > LATE * row["minutes"]:
            notes.append("MORE than its minutes")
        if row["background_cores"] > QUIET:
            notes.append(f"NOT QUIET: {row['background_cores']:.1f} cores busy with other work")
        line = f"{row['contestant']:14}{row['minutes']:8g}{used:8.2f}{row['epochs']:8.1f}{error:>28}  {options}"
        yield line + (f"  ({'; '.join(notes)})" if notes else "")


def figure(rows: Sequence[dict[str, Any]], titles: dict[str, str], conditions: dict[str, Any]) -> Figure:
    """Test error against minutes: the ends of trainings joined, and thinly how each of them came there."""
    seeds = max(len(row["errors"]) for row in rows)
    worst, best = max(row["mean"] for row in rows), min(row["mean"] for row in rows)
    top, left = worst + 0.6 * (worst - best) + 0.5, min(map(_seconds, rows)) / 120

    def paint(canvas: Any) -> None:
        from matplotlib.ticker import NullLocator

        axes = canvas.add_subplot()
        for name, (colour, marker) in SERIES.items():
            mine = [row for row in rows if row["contestant"] == name]
            if not mine:
                continue
            x, y = [row["seconds"] / 60 for row in mine], [row["mean"] for row in mine]
            sides = [[row["mean"] if row[side] is None else row[side] for side in ("low", "high")] for row in mine]
            bars = [[mean - low, high - mean] for mean, (low, high) in zip(y, sides, strict=True)]
            style = {"color": COLOURS[colour], "marker": marker, "label": titles[name], "zorder": 3}
            axes.errorbar(x, y, yerr=list(zip(*bars, strict=True)), elinewidth=1.1, **style)
            for row in mine:
                points = [(seconds / 60, error) for seconds, error in row["curve"]]
                curve = [(minutes, error) for minutes, error in points if minutes >= left and error <= top]
                axes.plot(*zip(*curve, strict=True), color=COLOURS[colour], linewidth=0.7, alpha=0.45, marker="none")
        budgets = sorted({row["minutes"] for row in rows})
        axes.set(xscale="log", xlabel="minutes of wall clock", ylabel="test error (%)")
        axes.set_xticks(budgets, [f"{budget:g}" for budget in budgets])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylim(max(0.0, best - 0.3 * (worst - best) - 0.5), top)
        canvas.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2)

    caption = (
        f"Test error (n = {conditions['n']['test']:,}) against wall clock, {plural(conditions['threads'], 'thread')}: "
        f"{conditions['student']} from {conditions['teacher']} on {conditions['data']}, {plural(seeds, 'seed')}, 95 % "
        "Student-t intervals. Thin lines: the weights during each training, without interval."
    )
    return Figure(225, caption, paint)
