"""The paper's own numbers, frozen: every table and figure with its place, networks, sigma and alpha (references.json).

Source of all of them: Sau & Balasubramanian 2016, arXiv 1610.09650 v2. Test errors in percent, single runs without
repeats, sigma chosen on the test set. Numbers read off a figure are marked `digitised` (within 0.04 points).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from noisyteacher.text import unknown_name

FILE = Path(__file__).with_name("references.json")
SOURCE = "Sau & Balasubramanian 2016, arXiv 1610.09650 v2"


@dataclass(frozen=True)
class Curve:
    """A row of a table or a line of a figure: the paper's test error (%) along one setting."""

    id: str
    """`table1`, `figure3-student2`, ..."""
    where: str
    """As the paper calls it: "Table 1"."""
    data: str
    teacher: str
    student: str
    """The networks by this package's names."""
    axis: str
    """What `x` is: `sigma`, `alpha` or `dropout`."""
    x: tuple[float, ...]
    errors: tuple[float, ...]
    """Test error in percent, one per x."""
    sigma: float | None
    alpha: float | None
    """The setting that is held; None for the one that `x` is, and for alpha where there is no noise."""
    target: str
    """Whose logits are perturbed: `teacher` or `student`."""
    digitised: bool
    """Read off a figure, within 0.04 points."""
    teacher_error: float
    clean_error: float
    """Test error (%) of the teacher, and of the same student by logit regression without noise."""
    note: str | None


@dataclass(frozen=True)
class Value:
    """A single test error (%) that the paper states."""

    id: str
    where: str
    data: str
    teacher: str
    student: str | None
    """None where the number is the teacher's own."""
    what: str
    """In words: "logit regression", "best noisy teacher, chosen on test", ..."""
    error: float
    sigma: tuple[float | tuple[float, float], ...] | None
    """The sigmas that gave it (two when tied; a pair is a range); None where not stated or without a student."""
    alpha: float | None


@cache
def curves() -> tuple[Curve, ...]:
    """Every curve of the paper. `[one.id for one in curves()][:2] == ["table1", "table2"]`."""
    return tuple(
        Curve(
            **_but(one, "x", "error_%", "teacher_error_%", "clean_error_%"),
            x=tuple(one["x"]),
            errors=tuple(one["error_%"]),
            teacher_error=one["teacher_error_%"],
            clean_error=one["clean_error_%"],
        )
        for one in _content()["curves"]
    )


@cache
def values() -> tuple[Value, ...]:
    """Every single number of the paper that is not a point of a curve, and each curve's teacher, clean and best."""
    return tuple(
        Value(
            **_but(one, "error_%", "sigma"),
            error=one["error_%"],
            sigma=None
            if one["sigma"] is None
            else tuple(tuple(sigma) if isinstance(sigma, list) else sigma for sigma in one["sigma"]),
        )
        for one in _content()["values"]
    )


def curve(name: str) -> Curve:
    """The curve of this id. `curve("table1").errors[0] == 0.96`. Raises UnknownNameError."""
    known = {one.id: one for one in curves()}
    if name not in known:
        raise unknown_name("curve of the paper", name, known)
    return known[name]


def value(name: str) -> Value:
    """The single number of this id. `value("table1-clean").error == 0.97`. Raises UnknownNameError."""
    known = {one.id: one for one in values()}
    if name not in known:
        raise unknown_name("number of the paper", name, known)
    return known[name]


def matching_curves(
    *,
    data: str,
    teacher: str,
    student: str,
    axis: str,
    sigma: float | None = None,
    alpha: float | None = None,
    target: str = "teacher",
) -> Sequence[Curve]:
    """The paper's curves along `axis` for these data, networks and target at the held setting (sigma or alpha).

    Empty where the paper has none: a curve of other data, networks or settings is never offered.
    """
    held = {"sigma": alpha, "alpha": sigma}.get(axis)
    return [
        one
        for one in curves()
        if (one.data, one.teacher, one.student, one.axis, one.target) == (data, teacher, student, axis, target)
        and (axis not in ("sigma", "alpha") or _same(one.alpha if axis == "sigma" else one.sigma, held))
    ]


def _same(stated: float | None, held: float | None) -> bool:
    return stated is not None and held is not None and abs(stated - held) < 1e-9


@cache
def _content() -> dict[str, Any]:
    return dict(json.loads(FILE.read_text(encoding="utf-8")))


def _but(record: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in names}
