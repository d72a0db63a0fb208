"""The paper's own numbers, frozen: every table and figure with its networks, sigma and alpha (reference.json).

Source of all of them: Sau & Balasubramanian 2016, arXiv 1610.09650 v2. Test errors in percent, single runs without
repeats, sigma chosen on the test set. Numbers read off a figure are marked `digitised` (within 0.04 points).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import TypeAdapter

from noisyteacher.io.files import Json

PAPERS_SETTINGS: Json = {
    "data.limit": None,
    "data.train_limit": None,
    "teacher.also": [],
    "student.loss": "logit_regression",
    "student.scale": "none",
    "student.label_weight": 0.0,
    "student.combine": "mean",
    "noise.kind": "multiplicative",
    "noise.distribution": "gaussian",
    "noise.draws": 1,
    "noise.frozen": False,
    "noise.schedule": "constant",
    "noise.until": 1.0,
}
"""What all curves of the paper have in common, by dotted setting: they do not belong beside other settings."""


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
    """The fixed setting; None for the one that `x` is, and for alpha where there is no noise."""
    target: str
    """Whose logits are perturbed: `teacher` or `student`."""
    digitised: bool
    """Read off a figure, within 0.04 points."""
    teacher_error: float
    clean_error: float
    """Test error (%) of the teacher, and of the same student by logit regression without noise."""

    def error_at(self, x: float) -> float | None:
        """The paper's test error (%) at this x; None where it has none."""
        return next((error for at, error in zip(self.x, self.errors, strict=True) if _equal(at, x)), None)


@cache
def curves() -> tuple[Curve, ...]:
    """All curves of reference.json."""
    content = json.loads(Path(__file__).with_name("reference.json").read_bytes())
    return TypeAdapter(tuple[Curve, ...]).validate_python(content["curves"])


def curve(name: str) -> Curve:
    """The curve of this id. `curve("table1").errors[0] == 0.96`."""
    return next(row for row in curves() if row.id == name)


def matching_curves(
    data: str,
    teacher: str,
    student: str,
    axis: str,
    *,
    sigma: object = None,
    alpha: object = None,
    target: str = "teacher",
) -> list[Curve]:
    """The paper's curves along `axis` for these data, networks and target at the fixed setting (sigma or alpha)."""
    setup = (data, teacher, student, axis, target)
    of_setup = [row for row in curves() if (row.data, row.teacher, row.student, row.axis, row.target) == setup]
    return [row for row in of_setup if _equal(row.alpha, alpha) or _equal(row.sigma, sigma)]


def _equal(first: object, second: object) -> bool:
    """Whether two settings are the same number; a range or None equals nothing."""
    if not isinstance(first, (int, float)) or not isinstance(second, (int, float)):
        return False
    return math.isclose(first, second, abs_tol=1e-9)
