"""Which networks keep within what a student may cost: every one priced before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from noisyteacher.config import LIMITS, Config, limit
from noisyteacher.data import Splits
from noisyteacher.errors import AskedWronglyError, MismatchError
from noisyteacher.measure import measure
from noisyteacher.models import MODELS, PAPER, SHRINK
from noisyteacher.pipeline.given import network_of
from noisyteacher.text import count, few, size_bytes

AUTO = "auto"
RATIOS = tuple(number / 16 for number in range(15, 0, -1))
"""The narrower copies of a teacher that are looked at."""
SHOWN: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "macs": ("MACs", count),
    "bytes": ("bytes", size_bytes),
    "parameters": ("parameters", count),
}
"""What may be limited: key -> its name and how it is worded."""


@dataclass(frozen=True)
class Candidate:
    """A network that could be the student, and what it costs."""

    name: str
    macs: int
    bytes: int
    parameters: int
    over: tuple[str, ...]
    """The limits it breaks; empty where it keeps within all of them."""

    @property
    def family(self) -> str:
        """Networks of one family are of one design: `paper`, `compact`, `shrink`, or the name of any other."""
        return "paper" if self.name in PAPER else self.name.split(":")[0].split("-")[0]


@dataclass(frozen=True)
class Search:
    """The limits in absolute numbers, the teacher's own costs, and the candidates, most multiplications first."""

    limits: Mapping[str, float]
    teacher: Mapping[str, int]
    candidates: tuple[Candidate, ...]

    @property
    def fitting(self) -> tuple[Candidate, ...]:
        """Those within all limits, in the order in which they are tried.

        The largest of each family comes first, then the second of each: what is largest is not always what learns best.
        """
        ranks: dict[str, int] = {}
        ordered: list[tuple[int, int, Candidate]] = []
        for one in self.candidates:
            if not one.over:
                ranks[one.family] = ranks.get(one.family, -1) + 1
                ordered.append((ranks[one.family], len(ordered), one))
        return tuple(one for _, _, one in sorted(ordered, key=lambda found: found[:2]))

    def bound(self, chosen: Candidate) -> tuple[str, ...]:
        """The limits that kept out the next larger network; empty where nothing larger was known."""
        larger = [one for one in self.candidates if one.over and one.macs >= chosen.macs]
        larger = larger or [one for one in self.candidates if one.over]
        return min(larger, key=self._excess).over if larger else ()

    def _excess(self, one: Candidate) -> float:
        return max(float(getattr(one, name)) / most for name, most in self.limits.items())

    def describe(self) -> dict[str, Any]:
        """The JSON-able form."""
        return {
            "limits": dict(self.limits),
            "teacher": dict(self.teacher),
            "candidates": [asdict(one) | {"over": list(one.over)} for one in self.candidates],
        }


def price_candidates(config: Config, teacher: nn.Module, data: Splits) -> Search:
    """Every candidate with its costs. Raises AskedWronglyError where none keeps within the limits, with the nearest.

    The teacher need not be trained yet: costs depend on its architecture alone.
    """
    target = config.target
    own = measure(teacher, data.input_shape, latency=False)
    costs = {name: int(getattr(own, name)) for name in LIMITS}
    limits = {
        name: limit(given, costs[name]) for name in LIMITS if (given := getattr(target, name)) is not None
    }  # fmt: skip
    found: list[Candidate] = []
    for name in target.students or [*MODELS, *(f"{SHRINK}{ratio:g}" for ratio in RATIOS)]:
        narrow = [one for one in found if one.name.startswith(SHRINK) and not one.over]
        if not target.students and name.startswith(SHRINK) and len(narrow) == target.search:
            break  # narrower ones would not be tried
        try:
            model = network_of(config.student, name, data, teacher=teacher)
        except (MismatchError, AskedWronglyError):
            if target.students:
                raise
            continue  # not for these images, or the teacher cannot be narrowed
        priced = measure(model, data.input_shape, latency=False)
        numbers = {one: int(getattr(priced, one)) for one in LIMITS}
        over = tuple(one for one, most in limits.items() if numbers[one] > most)
        found.append(Candidate(name, numbers["macs"], numbers["bytes"], numbers["parameters"], over))
    search = Search(limits, costs, tuple(sorted(found, key=lambda one: (-one.macs, one.bytes, one.name))))
    if not search.fitting:
        raise AskedWronglyError(_impossible(search))
    return search


def _impossible(search: Search) -> str:
    if not search.candidates:
        return "target: no network is known that takes these images: name some in target.students"
    nearest = min(search.candidates, key=search._excess)
    told = ", ".join(
        f"{SHOWN[name][1](getattr(nearest, name))} of {SHOWN[name][1](search.limits[name])} {SHOWN[name][0]}"
        for name in nearest.over
    )
    tried = few([one.name for one in search.candidates])
    return (
        f"target: none of {len(search.candidates)} networks ({tried}) keeps within the limits; the nearest, "
        f"{nearest.name!r}, has {told}: allow more, or name a smaller network in target.students"
    )
