"""What came out of an experiment of the paper, beside the paper's numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noisyteacher.paper.experiments import Budget, Experiment, Part
from noisyteacher.references import Curve, curve, values
from noisyteacher.sweep import SweepResult, difference, spread

SECTION54 = {
    "drawn-sigma": "section5.4-sigma-range",
    "teacher2": "section5.4-from-teacher2",
    "two-teachers": "section5.4-from-both",
}
SECTION54_KIND = {"drawn-sigma": "noisy", "teacher2": "clean", "two-teachers": "clean"}
"""The numbers of section 5.4 (references.json) by part, and the kind of condition each stands beside."""


@dataclass(frozen=True)
class PaperResult:
    """An experiment's sweeps, and its rows with the paper's number and ours side by side."""

    path: Path
    record: Mapping[str, Any]
    sweeps: tuple[SweepResult, ...]

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The cells that failed, of all sweeps."""
        return [one for result in self.sweeps for one in result.failed]

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Headers and rows as text: a line per number."""
        headers = ("condition", "paper %", "ours % (test)", "seeds", "ours - clean", "p (Holm)")
        rows: list[tuple[str, ...]] = []
        for one in self.record["rows"]:
            d = one["against_clean"]
            shown = "" if d is None else difference(d)
            p = "" if d is None or d["p_holm"] is None else f"{d['p_holm']:.2g}"
            paper = "" if one["paper_%"] is None else f"{one['paper_%']:.2f}"
            seeds = "" if one["ours"] is None else str(one["ours"]["n"])
            rows.append((one["label"], paper, spread(one["ours"]), seeds, shown, p))
        return headers, rows


def record_of(asked: Experiment, size: Budget, parts: list[Part], found: list[SweepResult]) -> dict[str, Any]:
    """What result.json holds of an experiment: a row per number, the paper's and ours; verdicts, notes."""
    rows, verdicts = [], []
    for part, result in zip(parts, found, strict=True):
        told = None if part.curve is None else curve(part.curve)
        error = result.record["teacher"].get("test_error_%")
        rows.append(
            {
                "part": part.name,
                "label": f"{part.title}: teacher",
                "kind": "teacher",
                "paper_%": None if told is None or part.changed else told.teacher_error,
                "ours": None if error is None else {"mean": error, "low": None, "high": None, "sd": None, "n": 1},
                "against_clean": None,
            }
        )
        for one in result.conditions:
            against = one["against_clean"]
            rows.append(
                {
                    "part": part.name,
                    "label": one["label"],
                    "kind": one["kind"],
                    "paper_%": _paper(part, told, one),
                    "ours": one["test_error_%"],
                    "against_clean": None if against is None else against.get("test_error_%"),
                }
            )
        verdicts += [f"{part.title}: {sentence}" for sentence in result.verdicts()]
    return {
        "experiment": asked.name,
        "title": asked.title,
        "budget": size.name,
        "data": found[0].record["data"],
        "sweeps": [part.name for part in parts],
        "rows": rows,
        "verdicts": verdicts,
        "notes": [*asked.notes, *_notes(parts)],
    }


def _notes(parts: list[Part]) -> list[str]:
    """Why the paper's numbers are not there, where the user changed what it states."""
    changed = list(dict.fromkeys(key for part in parts for key in part.changed))
    if not changed:
        return []
    return [f"The paper's numbers are left out: {', '.join(changed)} not as it states."]


def _paper(part: Part, told: Curve | None, one: Mapping[str, Any]) -> float | None:
    """The paper's test error for a condition of ours, where the paper has one. Row draws have none of their own: the
    paper does not say which reading it means, so its number stands beside both.
    """
    settings = one["settings"]
    if part.changed:
        return None
    if told is None:
        known = {value.id: value.error for value in values()}
        return known[SECTION54[part.name]] if one["kind"] == SECTION54_KIND.get(part.name) else None
    if settings.get("student.loss", "logit_regression") != "logit_regression":
        return None
    if one["kind"] == "labels":
        return None
    if told.axis == "dropout":
        dropped = settings.get("student.options.dropout")
        place = None if dropped is None else 1 - dropped
    elif one["kind"] == "clean":
        return told.clean_error
    elif settings["noise.target"] != told.target:
        return None
    else:
        place = settings[f"noise.{told.axis}"]
    known_points = dict(zip(told.x, told.errors, strict=True))
    return next((error for x, error in known_points.items() if place is not None and abs(x - place) < 1e-9), None)
