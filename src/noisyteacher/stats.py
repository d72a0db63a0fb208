"""Numbers that travel with their n and unit, intervals over seeds, paired differences, one honest sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from noisyteacher.errors import UsageError

LEVEL = 0.05
"""A corrected p below this is called evidence."""
Scale = tuple[float, float]
"""The least and the largest value that a measure can take."""
PERCENT: Scale = (0.0, 100.0)
NONNEGATIVE: Scale = (0.0, math.inf)


def scale_of(key: str) -> Scale:
    """The scale of a score by its key, which ends in its unit: `scale_of("test_error_%") == PERCENT`."""
    return PERCENT if key.endswith("%") else NONNEGATIVE


class Quantity(float):
    """A float that knows its unit and how many observations stand behind it. `Quantity(98.3, "%", 10000).n == 10000`"""

    unit: str
    n: int

    def __new__(cls, value: float, unit: str, n: int) -> Quantity:
        """The value with its unit ("%", "nats", "ms") and n."""
        made = super().__new__(cls, value)
        made.unit, made.n = unit, n
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return Quantity, (float(self), self.unit, self.n)

    def __repr__(self) -> str:
        return f"{float(self):.4g} {self.unit} (n={self.n:,})"

    def describe(self) -> dict[str, Any]:
        """The JSON-able form: value, unit and n."""
        return {"value": float(self), "unit": self.unit, "n": self.n}


@dataclass(frozen=True)
class Interval:
    """A mean over n seeds with its Student-t interval; low and high are None where there is none worth printing."""

    mean: float
    low: float | None
    high: float | None
    sd: float | None
    n: int
    confidence: float = 0.95


@dataclass(frozen=True)
class PairedDifference:
    """The mean of b - a over n pairs, its Student-t interval and the two-sided p-value; None where there is none."""

    mean: float
    low: float | None
    high: float | None
    p: float | None
    n: int
    confidence: float = 0.95
    sd: float | None = None
    """Sample standard deviation of the pairs' differences; None with a single pair."""


def mean_interval(values: Sequence[float], confidence: float = 0.95, scale: Scale | None = None) -> Interval:
    """Mean, sample standard deviation and Student-t interval of the values (one per seed).

    `mean_interval([1.0, 2.0, 3.0])` is 2.0 with the interval -0.484 .. 4.484. With the scale of the values, such as
    PERCENT, the interval is cut to it, and one that is as wide as the whole scale is left out: it says nothing. There
    is none for a single value either. Raises UsageError when empty.
    """
    n = len(values)
    if n == 0:
        raise UsageError("no values: an interval needs at least one seed")
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, None, None, None, 1, confidence)
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = _t_quantile(0.5 + confidence / 2, n - 1) * sd / math.sqrt(n)
    low, high = mean - half, mean + half
    if scale is None:
        return Interval(mean, low, high, sd, n, confidence)
    if high - low >= scale[1] - scale[0]:
        return Interval(mean, None, None, sd, n, confidence)
    return Interval(mean, max(low, scale[0]), min(high, scale[1]), sd, n, confidence)


def paired_difference(
    a: Sequence[float], b: Sequence[float], confidence: float = 0.95, scale: Scale | None = None
) -> PairedDifference:
    """How much larger b is than a, pair by pair (the same seed in both): mean, Student-t interval, paired t-test's p.

    With a single pair, or when all pairs differ by the same amount, there is no interval; nor where it would be wider
    than differences can be on the scale of a and b (`missing_interval` says which). Raises UsageError unless a
    and b have the same length, at least 1.
    """
    if len(a) != len(b) or not a:
        raise UsageError(f"{len(a)} and {len(b)} values: a paired difference needs the same seeds on both sides")
    gaps = [second - first for first, second in zip(a, b, strict=True)]
    span = None if scale is None else (scale[0] - scale[1], scale[1] - scale[0])
    found = mean_interval(gaps, confidence, span)
    if found.sd is None:
        return PairedDifference(found.mean, None, None, None, 1, confidence)
    if _alike(found.sd, found.mean):
        # All pairs differ alike: a width of zero says that the measure is coarse, not that the difference is certain.
        p = 1.0 if found.mean == 0 else None
        return PairedDifference(found.mean, None, None, p, found.n, confidence, found.sd)
    from scipy.special import stdtr

    t = found.mean / (found.sd / math.sqrt(found.n))
    p = float(2 * stdtr(found.n - 1, -abs(t)))
    return PairedDifference(found.mean, found.low, found.high, p, found.n, confidence, found.sd)


def missing_interval(n: int, mean: float, sd: float | None) -> str:
    """The words for a paired difference over n pairs that has no interval, with the reason where n is not 1."""
    if n == 1 or sd is None:
        return "no interval"
    if _alike(sd, mean):
        return "no interval, as all of them differ alike"
    return "no interval, as it would be wider than the whole scale"


def _alike(sd: float, mean: float) -> bool:
    return sd <= 1e-9 * abs(mean)


def holm(ps: Sequence[float]) -> list[float]:
    """The p-values corrected for there being several (Holm 1979), in the given order, each at most 1.

    Calling "different" what is below 0.05 here is wrong anywhere in the family at most 5 times in 100.
    `holm([0.01, 0.04, 0.03]) == [0.03, 0.06, 0.06]`.
    """
    order = sorted(range(len(ps)), key=lambda place: ps[place])
    corrected, worst = [0.0] * len(ps), 0.0
    for rank, place in enumerate(order):
        worst = max(worst, min(1.0, (len(ps) - rank) * ps[place]))
        corrected[place] = worst
    return corrected


def verdict(difference: PairedDifference, what: str = "the noise", unit: str = "points of test error") -> str:
    """One honest sentence on a difference (smaller is better): helped, hurt or no evidence, with n and interval."""
    d = difference
    size = f"{d.mean:+.2f} {unit}"
    if d.low is None or d.high is None:
        if d.n == 1:
            why = "one seed has no interval; run at least 3 seeds"
        else:
            why = f"{d.n} paired seeds: {missing_interval(d.n, d.mean, d.sd)}; run more seeds or a larger test set"
        return f"no evidence that {what} helped or hurt here ({size}; {why})"
    basis = f"({size}, {d.confidence:.0%} interval {d.low:+.2f} to {d.high:+.2f}, p = {d.p:.2g}, {d.n} paired seeds)"
    if d.high < 0:
        return f"{what} helped here {basis}"
    if d.low > 0:
        return f"{what} hurt here {basis}"
    return f"no evidence that {what} helped or hurt here {basis}"


def discordant_p(first: int, second: int) -> float:
    """The two-sided p-value of McNemar's exact test: of two models asked the same images, `first` and `second` are how
    many only the one, and only the other, got wrong. `discordant_p(8, 1) == 0.0390625`; 1 where there are none.
    """
    from scipy.special import bdtr

    both = first + second
    return min(1.0, 2 * float(bdtr(min(first, second), both, 0.5))) if both else 1.0


def binomial_interval(wrong: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson interval of a share wrong/n, in percent: what a test set of n images can tell of one model's error."""
    if not 0 <= wrong <= n or n == 0:
        raise UsageError(f"{wrong} of {n}: expected 0 <= wrong <= n and n >= 1")
    from scipy.special import ndtri

    z = float(ndtri(0.5 + confidence / 2))
    centre = (wrong + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(wrong * (n - wrong) / n + z * z / 4)
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


def _t_quantile(probability: float, freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))
