"""Which networks could be the student: every one priced, and held against its limits, before anything is trained."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from torch import nn

from noisyteacher.config import LIMITS, Config, limit
from noisyteacher.data import Splits
from noisyteacher.errors import MismatchError, NoisyTeacherError, UsageError
from noisyteacher.measure import measure
from noisyteacher.models import COMPACT, PAPER, SHRINK, build_model
from noisyteacher.pipeline.given import network_of, preprocess_of
from noisyteacher.text import count, few, size_bytes

RATIOS = tuple(number / 16 for number in range(15, 0, -1))
"""The narrower copies of a teacher that are looked at, the widest first."""
WIDTHS = tuple(number / 32 for number in range(1, 129))
"""The widths of a compact network that are looked at."""
NARROWER = (0.75, 0.5)
"""Parts of the largest compact network within the limits that are candidates too."""
MEANT_FOR: Mapping[tuple[int, int, int], tuple[str, ...]] = {
    (1, 28, 28): ("lenet", "mlp800"),
    (3, 32, 32): tuple(name for name in PAPER if name not in ("lenet", "mlp800")),
}
"""The paper's networks by the only images for which they are candidates."""
MOBILE = tuple(
    f"timm:{name}"
    for name in (
        "mobilenetv3_small_050", "mobilenetv3_small_075", "mobilenetv3_small_100", "mobilenetv4_conv_small_050",
        "mobilenetv4_conv_small", "lcnet_050", "lcnet_100", "efficientnet_lite0",
    )
)  # fmt: skip
"""timm's mobile networks that are candidates, untrained, where timm is installed."""
SMALLEST_MOBILE = 32
"""The shorter side in pixels below which those are none: they divide an image's sides by 32."""
LITTLE = 0.25
"""A candidate that uses less than this share of every limit is tried after those that use more."""
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
        """Networks of one family are of one kind: `paper`, `compact`, `shrink`, `timm`, or the name of any other."""
        return "paper" if self.name in PAPER else self.name.split(":")[0].split("-")[0]

    @property
    def design(self) -> str:
        """Networks of one design differ in their width alone: `compact-s`, `shrink`, `timm:mobilenetv3_small`."""
        if self.family == "timm":
            return re.sub(r"_\d+$", "", self.name)
        return self.name.partition(":")[0]


@dataclass(frozen=True)
class Search:
    """The limits in absolute numbers, the teacher's own costs, and the candidates, most multiplications first."""

    limits: Mapping[str, float]
    """The limits that were set."""
    teacher: Mapping[str, int]
    candidates: tuple[Candidate, ...]
    named: bool = False
    """The candidates were named: they may be larger than the teacher where no limit is set."""
    notes: tuple[str, ...] = field(default=())
    """Sentences on networks that are no candidates and why."""

    @property
    def allowed(self) -> dict[str, float]:
        """The most that a candidate may cost: its limits, and in all else what the teacher has."""
        own = {} if self.named else {name: most for name, most in self.teacher.items() if most}
        return {**own, **self.limits}

    @property
    def fitting(self) -> tuple[Candidate, ...]:
        """Those within all limits, in the order in which they are tried.

        The largest of each family comes first, then the second of each, of another design where the family has one:
        what is largest is not always what learns best. Those that use little of what they may cost come last.
        """
        within = sorted((entry for entry in self.candidates if not entry.over), key=self.use, reverse=True)
        of_design: dict[str, int] = {}
        ranked: list[tuple[int, Candidate]] = []
        for candidate in within:
            ranked.append((of_design.setdefault(candidate.design, 0), candidate))
            of_design[candidate.design] += 1
        of_family: dict[str, int] = {}
        ordered: list[tuple[bool, int, Candidate]] = []
        for _, candidate in sorted(ranked, key=lambda entry: entry[0]):
            ordered.append((self.use(candidate) < LITTLE, of_family.setdefault(candidate.family, 0), candidate))
            of_family[candidate.family] += 1
        return tuple(candidate for _, _, candidate in sorted(ordered, key=lambda entry: entry[:2]))

    def use(self, candidate: Candidate) -> float:
        """The share that a network uses of the limit that is tightest for it; above 1 it breaks that limit."""
        return max(float(getattr(candidate, name)) / most for name, most in self.allowed.items())

    def bound(self, chosen: Candidate) -> tuple[str, ...]:
        """The limits that kept out the next larger network; empty where nothing larger was known."""
        larger = [candidate for candidate in self.candidates if candidate.over and candidate.macs >= chosen.macs]
        larger = larger or [candidate for candidate in self.candidates if candidate.over]
        return min(larger, key=self.use).over if larger else ()

    def describe(self) -> dict[str, Any]:
        """The JSON-able form, without the candidates."""
        return {
            "limits": dict(self.limits),
            "teacher": dict(self.teacher),
            "known": len(self.candidates),
            "within": len(self.fitting),
        }


def price_candidates(config: Config, teacher: nn.Module, data: Splits) -> Search:
    """Every candidate with its costs. Raises UsageError where none keeps within the limits, with the nearest.

    The teacher need not be trained yet: costs depend on its architecture alone. Networks that are not named keep below
    the teacher in every cost, limited or not.
    """
    target = config.target
    costs = costs_of(teacher, data)
    limits = {name: limit(most, costs[name]) for name in LIMITS if (most := getattr(target, name)) is not None}
    pricing = _Pricing(config, teacher, data, Search(limits, costs, (), bool(target.students)))
    notes: list[str] = []
    if target.students:
        candidates = [pricing.price(name) for name in target.students]
    else:
        candidates, notes = pricing.all_known()
    ordered = sorted(dict.fromkeys(candidates), key=lambda entry: (-entry.macs, entry.bytes, entry.name))
    search = Search(limits, costs, tuple(ordered), bool(target.students), tuple(notes))
    if not search.fitting:
        raise UsageError(_impossible(search))
    return search


def costs_of(model: nn.Module, data: Splits) -> dict[str, int]:
    """Multiplications per image, bytes of the weights file and parameters of a model, by the names of their limits.

    Raises UsageError for a model that cannot be measured, such as a torch.jit module.
    """
    try:
        costs = measure(model, data.input_shape, latency=False)
    except NoisyTeacherError:
        raise
    except Exception as error:
        raise UsageError(
            f"the costs of a {type(model).__name__} cannot be measured ({type(error).__name__}: {error}), so there is "
            "nothing to hold against a limit: name the student, and set no target"
        ) from error
    return {name: int(getattr(costs, name)) for name in LIMITS}


def size_warning(name: str, student: nn.Module, teacher: nn.Module, data: Splits) -> str | None:
    """The sentence of `larger_than_teacher` for two networks; None where one of them cannot be measured."""
    try:
        return larger_than_teacher(name, costs_of(student, data), costs_of(teacher, data))
    except UsageError:
        return None


def larger_than_teacher(name: str, student: Mapping[str, float], teacher: Mapping[str, float]) -> str | None:
    """A sentence where the student costs more than its teacher in multiplications, bytes or parameters; else None."""
    more = [
        f"{student[key] / teacher[key]:.2f} times its {noun}"
        for key, (noun, _) in SHOWN.items()
        if teacher[key] and student[key] > teacher[key]
    ]
    return f"the student {name} is LARGER than its teacher: {', '.join(more)}" if more else None


class _Pricing:
    """Builds candidates and measures them; all have one preprocessing, whose statistics are taken once."""

    def __init__(self, config: Config, teacher: nn.Module, data: Splits, search: Search) -> None:
        self.config, self.teacher, self.data, self.search = config, teacher, data, search
        self.front: nn.Module | None = None

    def price(self, name: str) -> Candidate:
        """The candidate of this name. Raises MismatchError or UsageError where the images do not suit it."""
        if self.search.named:
            model = network_of(self.config.student, name, self.data, teacher=self.teacher)
        else:
            front = preprocess_of(self.config.student, self.data) if self.front is None else self.front
            narrowed = self.teacher if name.startswith(SHRINK) else None
            model = build_model(name, self.data, preprocess=front, teacher=narrowed)
            self.front = model.preprocess
        costs = costs_of(model, self.data)
        over = tuple(key for key, most in self.search.allowed.items() if costs[key] > most)
        return Candidate(name, costs["macs"], costs["bytes"], costs["parameters"], over)

    def all_known(self) -> tuple[list[Candidate], list[str]]:
        """The candidates where none are named, and sentences on those that could not be."""
        shape = self.data.input_shape
        known = [candidate for member in COMPACT for candidate in self.compact(member)]
        known += self.those_that_can(MEANT_FOR.get(shape, ()))
        notes = []
        if min(shape[1:]) < SMALLEST_MOBILE:
            notes.append(f"timm's mobile networks are no candidates for images below {SMALLEST_MOBILE} pixels")
        elif find_spec("timm") is None:
            notes.append(
                "timm is not installed (pip install 'noisyteacher[zoo]'): its mobile networks are no candidates"
            )
        else:
            known += self.those_that_can(MOBILE)
        return [*known, *self.narrowed_copies()], notes

    def those_that_can(self, names: tuple[str, ...]) -> Iterator[Candidate]:
        """The candidates of these names, without networks that do not take the images."""
        for name in names:
            try:
                yield self.price(name)
            except (MismatchError, UsageError):
                continue

    def narrowed_copies(self) -> Iterator[Candidate]:
        """Copies of the teacher, until as many are within the limits as may be tried; none of one not understood."""
        within = 0
        for ratio in RATIOS:
            for candidate in self.those_that_can((f"{SHRINK}{ratio:g}",)):
                within += not candidate.over
                yield candidate
            if within == self.config.target.search:
                return

    def compact(self, member: str) -> list[Candidate]:
        """A compact network as it is named, at the largest width within the limits, parts of that, and the next width.

        Costs grow with the width, so the largest is found by halving the widths that are left.
        """
        priced: dict[float, Candidate] = {}

        def at(width: float) -> Candidate:
            if width not in priced:
                priced[width] = self.price(member if width == 1 else f"{member}:{width:g}")
            return priced[width]

        low, high = 0, len(WIDTHS)  # below `low` all fit, from `high` on none does
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if at(WIDTHS[middle]).over else (middle + 1, high)
        kept = {1.0} | ({WIDTHS[low]} if low < len(WIDTHS) else set())
        if low:
            largest = WIDTHS[low - 1]
            kept |= {largest} | {max(WIDTHS[0], int(32 * part * largest) / 32) for part in NARROWER}
        last_wins = map(at, sorted(kept, key=lambda width: width == 1))
        different = {(candidate.macs, candidate.parameters): candidate for candidate in last_wins}
        return list(different.values())


def _impossible(search: Search) -> str:
    if not search.candidates:
        return "target: no network is known that takes these images: name some in target.students"
    nearest = min(search.candidates, key=search.use)
    excess = ", ".join(
        f"{SHOWN[name][1](getattr(nearest, name))} of {SHOWN[name][1](search.allowed[name])} {SHOWN[name][0]}"
        for name in nearest.over
    )
    tried = few([candidate.name for candidate in search.candidates])
    return (
        f"target: none of {len(search.candidates)} networks ({tried}) keeps within the limits; the nearest, "
        f"{nearest.name!r}, has {excess}: allow more, or name a smaller network in target.students"
    )
