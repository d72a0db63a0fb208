"""Numbers that carry their n and unit, intervals over seeds, paired tests, and a verdict in one sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from noisyteacher.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEVEL = 0.05
"""A corrected p-value below this counts as evidence."""
Scale = tuple[float, float]
"""The smallest and the largest value that a measure can have."""
PERCENT: Scale = (0.0, 100.0)
NONNEGATIVE: Scale = (0.0, math.inf)


class Quantity(float):
    """A float with its unit and its number of observations. `Quantity(98.3, "%", 10000).n == 10000`."""

    unit: str
    n: int

    def __new__(cls, value: float, unit: str, n: int) -> Quantity:
        quantity = super().__new__(cls, value)
        quantity.unit, quantity.n = unit, n
        return quantity

    def __reduce__(self) -> tuple[Any, ...]:
        return Quantity, (float(self), self.unit, self.n)

    def __repr__(self) -> str:
        return f"{float(self):.4g} {self.unit} (n={self.n:,})"

    def describe(self) -> dict[str, Any]:
        """Value, unit and n, for JSON."""
        return {"value": float(self), "unit": self.unit, "n": self.n}


@dataclass(frozen=True)
class Interval:
    """A mean over n seeds with its Student-t interval; low and high are None where there is no usable interval."""

    mean: float
    low: float | None
    high: float | None
    sd: float | None
    n: int
    confidence: float = 0.95


@dataclass(frozen=True)
class PairedDifference:
    """The mean of b - a over n pairs, its Student-t interval and two-sided p-value; None where there is none."""

    mean: float
    low: float | None
    high: float | None
    p: float | None
    n: int
    confidence: float = 0.95
    sd: float | None = None
    """Sample standard deviation of the differences; None with a single pair."""


def mean_interval(values: Sequence[float], confidence: float = 0.95, scale: Scale | None = None) -> Interval:
    """Mean, sample standard deviation and Student-t interval of the values (one per seed).

    `mean_interval([1.0, 2.0, 3.0])` is 2.0 with the interval -0.484 to 4.484. With the scale of the values, such as
    PERCENT, the interval is cut to the scale, and dropped if it is as wide as the whole scale. A single value has no
    interval. Raises UsageError without values.
    """
    n = len(values)
    if n == 0:
        raise UsageError("no values: an interval needs at least one seed")
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, None, None, None, 1, confidence)
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half_width = t_quantile(0.5 + confidence / 2, n - 1) * sd / math.sqrt(n)
    lowest, highest = scale or (-math.inf, math.inf)
    if 2 * half_width >= highest - lowest:
        return Interval(mean, None, None, sd, n, confidence)
    return Interval(mean, max(mean - half_width, lowest), min(mean + half_width, highest), sd, n, confidence)


def paired_difference(
    a: Sequence[float], b: Sequence[float], confidence: float = 0.95, scale: Scale | None = None
) -> PairedDifference:
    """How much larger b is than a, over pairs with the same seed: mean, Student-t interval, p of the paired t-test.

    There is no interval for a single pair, if all pairs differ by the same amount, or if it would be wider than
    differences on this scale of a and b can be (`missing_interval` gives the reason). Raises UsageError unless a and b
    have the same length, at least 1.
    """
    if len(a) != len(b) or not a:
        raise UsageError(f"{len(a)} and {len(b)} values: a paired difference needs the same seeds on both sides")
    differences = [second - first for first, second in zip(a, b, strict=True)]
    span = None if scale is None else (scale[0] - scale[1], scale[1] - scale[0])
    interval = mean_interval(differences, confidence, span)
    mean, sd, n = interval.mean, interval.sd, interval.n
    if sd is None:
        return PairedDifference(mean, None, None, None, n, confidence)
    if _negligible(sd, mean):
        # A width of zero shows a coarse measure, not a certain difference.
        return PairedDifference(mean, None, None, 1.0 if mean == 0 else None, n, confidence, sd)
    from scipy.special import stdtr

    p = float(2 * stdtr(n - 1, -abs(mean / (sd / math.sqrt(n)))))
    return PairedDifference(mean, interval.low, interval.high, p, n, confidence, sd)


def missing_interval(n: int, mean: float, sd: float | None) -> str:
    """Why a paired difference over n pairs has no interval, in words."""
    if n == 1 or sd is None:
        return "no interval"
    if _negligible(sd, mean):
        return "no interval, as all of them differ alike"
    return "no interval, as it would be wider than the whole scale"


def _negligible(sd: float, mean: float) -> bool:
    return sd <= 1e-9 * abs(mean)


def holm(ps: Sequence[float]) -> list[float]:
    """The p-values corrected for multiple testing (Holm 1979), in their order, each at most 1.

    Rejecting what is below 0.05 here makes any false rejection in the family at most 5 % likely.
    `holm([0.01, 0.04, 0.03]) == [0.03, 0.06, 0.06]`.
    """
    corrected, largest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda index: ps[index])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[index]))
        corrected[index] = largest
    return corrected


def outcome(difference: PairedDifference) -> str:
    """`helps`, `hurts` or `no evidence`, by the interval of a difference (smaller is better)."""
    low, high = difference.low, difference.high
    if low is None or high is None or low <= 0 <= high:
        return "no evidence"
    return "helps" if high < 0 else "hurts"


def verdict(difference: PairedDifference, what: str = "the noise", unit: str = "points of test error") -> str:
    """One sentence on a difference (smaller is better): helped, hurt or no evidence, with n and interval."""
    d = difference
    words = {"helps": f"{what} helped here", "hurts": f"{what} hurt here"}
    claim = words.get(outcome(d), f"no evidence that {what} helped or hurt here")
    size = f"{d.mean:+.2f} {unit}"
    if d.low is None or d.high is None:
        why = f"{d.n} paired seeds: {missing_interval(d.n, d.mean, d.sd)}; run more seeds or a larger test set"
        return f"{claim} ({size}; {'one seed has no interval; run at least 3 seeds' if d.n == 1 else why})"
    interval = f"{d.confidence:.0%} interval {d.low:+.2f} to {d.high:+.2f}"
    return f"{claim} ({size}, {interval}, p = {d.p:.2g}, {d.n} paired seeds)"


def discordant_p(first: int, second: int) -> float:
    """Two-sided p-value of McNemar's exact test. `discordant_p(8, 1) == 0.0390625`; 1 if both counts are 0.

    Of two models on the same images, `first` counts those that only the first misclassifies, `second` the reverse.
    """
    from scipy.special import bdtr

    both = first + second
    return min(1.0, 2 * float(bdtr(min(first, second), both, 0.5))) if both else 1.0


def binomial_interval(wrong: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson interval of a share wrong/n, in percent: a model's error as far as n test images determine it."""
    if not 0 <= wrong <= n or n == 0:
        raise UsageError(f"{wrong} of {n}: expected 0 <= wrong <= n and n >= 1")
    from scipy.special import ndtri

    z = float(ndtri(0.5 + confidence / 2))
    centre = (wrong + z * z / 2) / (n + z * z)
    half_width = z / (n + z * z) * math.sqrt(wrong * (n - wrong) / n + z * z / 4)
    return 100 * max(0.0, centre - half_width), 100 * min(1.0, centre + half_width)


def t_quantile(probability: float, degrees_of_freedom: float) -> float:
    """Quantile of Student's t distribution. `t_quantile(0.975, 4) == 2.776...`."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees_of_freedom, probability))


def crossed_difference(first: NDArray[Any], second: NDArray[Any]) -> PairedDifference:
    """Error of `second` minus error of `first`, in points, with an interval that covers other seeds AND other images.

    Both bool `[S, N]`: whether the student of seed s misclassifies test image i. Seeds and images are crossed random
    effects: the variance of the mean is (MS seeds + MS images - MS rest) / (S N), at least what seeds alone give;
    degrees of freedom by Satterthwaite. Raises UsageError unless both have two seeds or more and the same shape.
    """
    from scipy.special import stdtr

    if first.ndim != 2 or len(first) < 2 or first.shape != second.shape:
        raise UsageError(f"{first.shape} and {second.shape}: expected two tables [S, N] of two seeds or more")
    gaps = 100 * (second.astype(float) - first.astype(float))
    seeds, images = gaps.shape
    mean, by_seed, by_image = gaps.mean(), gaps.mean(1), gaps.mean(0)
    rest = gaps - by_seed[:, None] - by_image[None, :] + mean
    freedoms = seeds - 1, images - 1, (seeds - 1) * (images - 1)
    sums = images * ((by_seed - mean) ** 2).sum(), seeds * ((by_image - mean) ** 2).sum(), (rest**2).sum()
    of_seeds, of_images, of_rest = squares = [float(total) / df for total, df in zip(sums, freedoms, strict=True)]
    variance = max(of_seeds, of_seeds + of_images - of_rest)
    if variance <= 0:
        return PairedDifference(float(mean), None, None, None, seeds)
    freedom = float(seeds - 1)
    if variance > of_seeds:
        freedom = max(1.0, variance**2 / sum(square**2 / df for square, df in zip(squares, freedoms, strict=True)))
    error = math.sqrt(variance / (seeds * images))
    half_width = t_quantile(0.975, freedom) * error
    p = float(2 * stdtr(freedom, -abs(mean) / error))
    return PairedDifference(float(mean), float(mean - half_width), float(mean + half_width), p, seeds)


def dunnett(control: Sequence[float], treatments: Sequence[Sequence[float]]) -> list[PairedDifference]:
    """Each treatment minus the control, with p and 95 % intervals that hold for all of them at once (Dunnett 1955).

    One value per seed, the same seeds everywhere; the residual of treatment + seed is pooled over the treatments, with
    k (n - 1) degrees of freedom. Raises UsageError for fewer than two seeds or other numbers of them.
    """
    import numpy as np

    if {len(row) for row in treatments} != {len(control)} or len(control) < 2:
        raise UsageError("Dunnett's test needs a control and treatments over the same seeds, at least two")
    table = np.asarray([control, *treatments], dtype=float)
    count, n = len(table) - 1, table.shape[1]
    freedom = count * (n - 1)
    rest = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + table.mean()
    error = math.sqrt(2 * float((rest**2).sum()) / freedom / n)
    gaps = table[1:].mean(1) - table[0].mean()
    if _negligible(error, float(np.abs(gaps).max())):
        return [PairedDifference(float(gap), None, None, None, n) for gap in gaps]
    half_width = error * _dunnett_point(count, freedom)
    return [
        PairedDifference(
            float(gap), float(gap - half_width), float(gap + half_width), dunnett_p(abs(gap) / error, count, freedom), n
        )
        for gap in gaps
    ]


@cache
def _dunnett_point(treatments: int, degrees_of_freedom: int) -> float:
    """The two-sided 5 % point."""
    from scipy.optimize import brentq

    return float(brentq(lambda t: dunnett_p(t, treatments, degrees_of_freedom) - 0.05, 0.1, 1000))


def dunnett_p(t: float, treatments: int, degrees_of_freedom: int) -> float:
    """The chance that the largest of so many |t|, against one control and without any effect, is `t` or more.

    `dunnett_p(2.57, 2, 10)` is 0.05. The t's are correlated by 1/2, as they share the control.
    """
    import numpy as np
    from scipy.special import gammaln, ndtr

    points, weights = np.polynomial.hermite_e.hermegauss(50)
    weights = weights / weights.sum()
    nodes, node_weights = np.polynomial.legendre.leggauss(80)
    df = degrees_of_freedom
    low, high = max(1e-9, 1 - 9 / math.sqrt(2 * df)), 1 + 9 / math.sqrt(2 * df)
    scale = low + (high - low) * (nodes + 1) / 2  # of the standard deviation, in units of its expectation
    log_density = (
        math.log(2) + df / 2 * math.log(df / 2) - gammaln(df / 2) + (df - 1) * np.log(scale) - df * scale**2 / 2
    )
    reach = math.sqrt(2) * t * scale[:, None]
    inside = (ndtr(points + reach) - ndtr(points - reach)) ** treatments @ weights
    chance = (high - low) / 2 * float(node_weights @ (np.exp(log_density) * inside))
    return min(1.0, max(0.0, 1 - chance))
