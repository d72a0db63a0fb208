"""Numbers that carry their n and unit, intervals over seeds, paired tests, and a verdict in one sentence."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from noisyteacher.errors import UsageError
from noisyteacher.text import plural, signed

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEVEL = 0.05
"""A p-value below this counts as evidence."""
POWER = 0.8
Scale = tuple[float, float]
"""The smallest and the largest value that a measure can have."""
PERCENT: Scale = (0.0, 100.0)
NONNEGATIVE: Scale = (0.0, math.inf)
Values = Sequence[float] | Mapping[int, float]
"""A value per seed, by seed or in the order of seeds."""


def is_within(drop: float, allowed: float) -> bool:
    """Whether a drop in points is within the allowed one; a drop of exactly that may have been rounded up."""
    return drop <= allowed + 1e-9


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
    """Standard deviation of a seed's difference; None with a single pair."""
    comparisons: int = 1
    """How many differences the interval and p hold for at once (`dunnett`)."""
    detectable: float | None = None
    """The size of a difference that would have been detected (p below LEVEL) with a probability of POWER."""


def mean_interval(values: Sequence[float], scale: Scale | None = None) -> Interval:
    """Mean, sample standard deviation and Student-t interval of the values (one per seed).

    `mean_interval([1.0, 2.0, 3.0])` is 2.0 with the interval -0.484 to 4.484. With the scale of the values, such as
    PERCENT, the interval is cut to the scale, and dropped if it is as wide as the whole scale. A single value has no
    interval, nor have equal ones. Raises UsageError without values.
    """
    n = len(values)
    if n == 0:
        raise UsageError("no values: an interval needs at least one seed")
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, None, None, None, 1)
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half_width = t_quantile(1 - LEVEL / 2, n - 1) * sd / math.sqrt(n)
    lowest, highest = scale or (-math.inf, math.inf)
    if _negligible(sd, mean):  # a width of 0 shows a coarse measure, not a sure mean
        return Interval(mean, None, None, 0.0, n)
    if 2 * half_width >= highest - lowest:
        return Interval(mean, None, None, sd, n)
    return Interval(mean, max(mean - half_width, lowest), min(mean + half_width, highest), sd, n)


def paired_difference(a: Sequence[float], b: Sequence[float], scale: Scale | None = None) -> PairedDifference:
    """How much larger b is than a, over pairs with the same seed: `dunnett` with one treatment, the paired t-test.

    Raises UsageError unless a and b have the same length, at least 1.
    """
    if len(a) != len(b) or not a:
        raise UsageError(f"{len(a)} and {len(b)} values: a paired difference needs the same seeds on both sides")
    return dunnett(a, [b], scale)[0]


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values after Holm's correction for their number. `holm([0.01, 0.2, 0.03]) == [0.03, 0.2, 0.06]`."""
    corrected, highest = list(p_values), 0.0
    for rank, number in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        corrected[number] = highest = max(highest, min(1.0, p_values[number] * (len(p_values) - rank)))
    return corrected


def simultaneous(tests: Sequence[PairedDifference], scale: Scale | None = None) -> list[PairedDifference]:
    """Paired tests as a family: p after Holm's correction, 95 % intervals that hold for all at once (Bonferroni), cut
    to differences on the scale, or left out where they would be wider.
    """
    span = math.inf if scale is None else scale[1] - scale[0]
    results, corrected = list(tests), holm([1.0 if test.p is None else test.p for test in tests])
    for number, (test, p) in enumerate(zip(tests, corrected, strict=True)):
        if test.p is None or not test.sd:
            continue
        error, freedom = test.sd / math.sqrt(test.n), test.n - 1
        point = t_quantile(1 - LEVEL / 2 / len(tests), freedom)
        half_width, size = point * error, detectable(error, freedom, point)
        low, high = max(test.mean - half_width, -span), min(test.mean + half_width, span)
        family = replace(test, low=low, high=high, p=p, comparisons=len(tests), detectable=size)
        results[number] = family if half_width < span else replace(family, low=None, high=None, detectable=None)
    return results


def missing_interval(n: int, mean: float, sd: float | None) -> str:
    """Why a paired difference over n pairs has no interval, in words."""
    if n == 1 or sd is None:
        return "no interval"
    if _negligible(sd, mean):
        return "no interval, as all pairs differ by the same amount"
    return "no interval, as it would be wider than the whole scale"


def _negligible(sd: float, mean: float) -> bool:
    return sd <= 1e-9 * abs(mean)


def outcome(difference: PairedDifference) -> str:
    """`helps`, `hurts` or `no evidence`, by the interval of a difference (smaller is better)."""
    low, high = difference.low, difference.high
    if low is None or high is None or low <= 0 <= high:
        return "no evidence"
    return "helps" if high < 0 else "hurts"


def verdict(difference: PairedDifference, what: str = "the noise", unit: str = "points of test error") -> str:
    """One sentence on a difference (smaller is better): helped, hurt or no evidence, and what the data allow."""
    d = difference
    words = {"helps": f"{what} helped here", "hurts": f"{what} hurt here"}
    claim = words.get(outcome(d), f"no evidence that {what} helped or hurt here")
    hint = (
        "" if d.low is not None else "; run at least 3 seeds" if d.n == 1 else "; run more seeds or a larger test set"
    )
    return f"{claim} ({evidence(d, unit)}{hint}){allowed(d)}"


def p_words(p: float) -> str:
    """A p-value with two digits, or `< 1e-06`: below that it is lost in rounding. `p_words(0.0213) == "0.021"`."""
    return f"{p:.2g}" if p >= 1e-6 else "< 1e-06"


def evidence(difference: PairedDifference, unit: str, seeds: str = "paired seed") -> str:
    """A difference with its interval, p and n, in words; without an interval the reason."""
    d, pairs = difference, plural(difference.n, seeds)
    if d.low is None or d.high is None or d.p is None:
        return f"{signed(d.mean)} {unit}, {pairs}: {missing_interval(d.n, d.mean, d.sd)}"
    every = f" for all {d.comparisons} at once" if d.comparisons > 1 else ""
    interval = f"{100 * d.confidence:g} % interval {signed(d.low)} to {signed(d.high)}{every}"
    p = p_words(d.p)
    return f"{signed(d.mean)} {unit}, {interval}, p {'' if p.startswith('<') else '= '}{p}, {pairs}"


def allowed(difference: PairedDifference) -> str:
    """The largest gain in an interval that holds 0, and what would have been detected: a clause, or ""."""
    low, high, size = difference.low, difference.high, difference.detectable
    if low is None or high is None or high < 0 or low > 0:
        return ""
    power = "" if size is None else f", {size:.2f} would have been detected with {100 * POWER:g} % power"
    return f"; a gain of up to {-low:.2f} is still possible{power}"


def discordant_p(first: int, second: int) -> float:
    """Two-sided p-value of McNemar's exact test. `discordant_p(8, 1) == 0.0390625`; 1 if both counts are 0.

    Of two models on the same images, `first` counts those that only the first misclassifies, `second` the reverse.
    """
    from scipy.special import bdtr

    both = first + second
    return min(1.0, 2 * float(bdtr(min(first, second), both, 0.5))) if both else 1.0


def binomial_interval(wrong: int, n: int) -> tuple[float, float]:
    """The Wilson interval of a share wrong/n, in percent: a model's error as far as n test images determine it."""
    if not 0 <= wrong <= n or n == 0:
        raise UsageError(f"{wrong} of {n}: expected 0 <= wrong <= n and n >= 1")
    from scipy.special import ndtri

    z = float(ndtri(1 - LEVEL / 2))
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
    effects: the variance of the mean is (MS seeds + MS images - MS rest) / (S N), where MS seeds and MS images are at
    least MS rest, as they are expected to be; degrees of freedom by Satterthwaite. Raises UsageError unless both have
    two seeds or more and the same shape.
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
    of_seeds, of_images, of_rest = (float(total) / df for total, df in zip(sums, freedoms, strict=True))
    of_seeds, of_images = max(of_seeds, of_rest), max(of_images, of_rest)
    variance = of_seeds + of_images - of_rest
    if variance <= 0:
        return PairedDifference(float(mean), None, None, None, seeds)
    freedom = float(seeds - 1)
    if variance > of_seeds:
        squares = (of_seeds, of_images, of_rest)
        freedom = max(1.0, variance**2 / sum(square**2 / df for square, df in zip(squares, freedoms, strict=True)))
    error = math.sqrt(variance / (seeds * images))
    point = t_quantile(1 - LEVEL / 2, freedom)
    half_width, size = point * error, detectable(error, freedom, point)
    p = float(2 * stdtr(freedom, -abs(mean) / error))
    return PairedDifference(float(mean), float(mean - half_width), float(mean + half_width), p, seeds, detectable=size)


def dunnett(control: Values, treatments: Sequence[Values], scale: Scale | None = None) -> list[PairedDifference]:
    """Each treatment minus the control, with p and 95 % intervals that hold for all of them at once (Dunnett 1955).

    Values by seed, or in the order of seeds. Common seeds are pairs: the model is a condition's effect + a seed's
    effect + a residual, which is pooled, k (n - 1) degrees of freedom if k treatments and the control have the same n
    seeds. That case is exact. Otherwise seeds are random effects (generalised least squares), so seeds of the control
    alone count too; the ratio of their variance to the residual's is the upper quartile of what the data allow, as its
    estimate is too low half of the time. Treatments are taken to be correlated as the two that are least so.

    A treatment whose differences scatter more than the others' (F-test, 5 % over all of them) is judged by its own
    residual (Bonferroni), since its residual would widen their intervals, and theirs would narrow its own.

    There is no interval for a single seed, if all pairs differ by the same amount, or if it would be wider than
    differences on this scale can be (`missing_interval` gives the reason); it is cut to the scale. Raises UsageError
    for a treatment that shares no seed with the control.
    """
    rows = [dict(row) if isinstance(row, Mapping) else dict(enumerate(row)) for row in treatments]
    control = dict(control) if isinstance(control, Mapping) else dict(enumerate(control))
    pooled, results = list(range(len(rows))), dict[int, PairedDifference]()
    while (widest := _widest(control, [rows[number] for number in pooled])) is not None:
        number = pooled.pop(widest)
        results[number] = _compared(control, [rows[number]], scale, len(rows))[0]
    results |= zip(pooled, _compared(control, [rows[number] for number in pooled], scale, len(rows)), strict=True)
    return [results[number] for number in range(len(rows))]


def _widest(control: Mapping[int, float], treatments: Sequence[Mapping[int, float]]) -> int | None:
    """The treatment whose differences to the control scatter most; None where the data allow that all do alike."""
    from scipy.special import fdtri

    gaps = [[row[seed] - control[seed] for seed in row.keys() & control.keys()] for row in treatments]
    if len(gaps) < 2 or min(map(len, gaps)) < 2:
        return None
    squares = [(len(row) - 1) * statistics.variance(row) for row in gaps]
    ratios = []
    for number, row in enumerate(gaps):
        freedom = sum(map(len, gaps)) - len(gaps) - len(row) + 1
        others = (math.fsum(squares) - squares[number]) / freedom
        limit = others * float(fdtri(len(row) - 1, freedom, 1 - LEVEL / len(gaps)))
        ratios.append(squares[number] / (len(row) - 1) / limit if limit > 1e-18 else 0.0)
    widest = max(range(len(gaps)), key=ratios.__getitem__)
    return widest if ratios[widest] > 1 else None


def _compared(
    control: Mapping[int, float], treatments: Sequence[Mapping[int, float]], scale: Scale | None, count: int
) -> list[PairedDifference]:
    """Each treatment minus the control by one residual, with p and intervals that hold for `count` of them."""
    import numpy as np
    from scipy.special import fdtri

    rows = [control, *treatments]
    pairs = [len(row.keys() & rows[0].keys()) for row in rows[1:]]
    if not all(pairs):
        raise UsageError("a treatment shares no seed with the control: Dunnett's test compares pairs of one seed")
    seeds = sorted(set().union(*rows))
    values = np.array([value for row in rows for value in row.values()])
    conditions = np.eye(len(rows))[np.repeat(range(len(rows)), [len(row) for row in rows])]
    both = np.hstack([conditions, np.eye(len(seeds))[[seeds.index(seed) for row in rows for seed in row]]])
    within, residual = (
        float(((values - design @ np.linalg.lstsq(design, values)[0]) ** 2).sum()) for design in (conditions, both)
    )
    between = len(seeds) - 1
    freedom = len(values) - len(rows) - between
    variance, rounding = residual / max(1, freedom), 1e-12 * float(np.abs(values).max())
    ratio = math.inf  # of the variance of seeds to that of the residual: differences within seeds alone
    if freedom and variance > rounding**2:
        spread = (within - residual) / between / variance / fdtri(between, freedom, 0.25)
        ratio = max(1e-6, (spread - 1) * between / (len(values) - len(rows)))
    shrinkage = np.hstack([np.zeros((len(seeds), len(rows))), np.eye(len(seeds)) / math.sqrt(ratio)])
    solution = np.linalg.pinv(np.vstack([both, shrinkage]), rcond=1e-10)
    contrasts = solution[1 : len(rows)] - solution[0]
    gaps = contrasts[:, : len(values)] @ values
    gaps[np.abs(gaps) <= rounding] = 0.0
    covariance = contrasts @ contrasts.T
    errors = np.sqrt(variance * covariance.diagonal())
    if not freedom or errors.max() <= rounding + 1e-9 * np.abs(gaps).max():
        sd, certain = (0.0, 1.0) if freedom else (None, None)  # a width of 0 shows a coarse measure, not a sure effect
        return [
            PairedDifference(float(gap), None, None, None if gap else certain, n, sd=sd, comparisons=count)
            for gap, n in zip(gaps, pairs, strict=True)
        ]
    correlation = float((covariance / np.sqrt(np.outer(covariance.diagonal(), covariance.diagonal()))).min())
    correlation = min(max(0.0, round(correlation, 2)), 0.99)
    alone, sd = len(treatments) == 1, math.sqrt(2 * variance)
    point = t_quantile(1 - LEVEL / 2 / count, freedom) if alone else dunnett_point(count, freedom, correlation)
    span = math.inf if scale is None else scale[1] - scale[0]
    results = []
    for gap, error, n in zip(gaps.tolist(), errors.tolist(), pairs, strict=True):
        half_width, size = point * error, detectable(error, freedom, point)
        low, high = max(gap - half_width, -span), min(gap + half_width, span)
        p = dunnett_p(abs(gap) / error, 1 if alone else count, freedom, correlation)
        p = min(1.0, count * p) if alone else p
        test = PairedDifference(gap, low, high, p, n, sd=sd, comparisons=count, detectable=size)
        results.append(test if half_width < span else replace(test, low=None, high=None, detectable=None))
    return results


def detectable(error: float, degrees_of_freedom: float, point: float) -> float:
    """The difference whose t exceeds `point` with a probability of POWER; error: the standard error of a difference.

    `point` plus the noncentrality that a noncentral t needs; the other tail, below 1e-4, is left out.
    """
    from scipy.special import nctdtrinc

    return error * float(nctdtrinc(degrees_of_freedom, 1 - POWER, point))


@cache
def dunnett_point(treatments: int, degrees_of_freedom: int, correlation: float) -> float:
    """The two-sided 5 % point of `dunnett_p`."""
    from scipy.optimize import brentq

    return float(brentq(lambda t: dunnett_p(t, treatments, degrees_of_freedom, correlation) - LEVEL, 0.1, 1000))


def dunnett_p(t: float, treatments: int, degrees_of_freedom: int, correlation: float = 0.5) -> float:
    """The chance that the largest of this many |t|, against one control and without any effect, is `t` or more.

    `dunnett_p(2.57, 2, 10)` is 0.05. The t's share the control: their correlation is 1/2 if all have the same seeds.
    """
    import numpy as np
    from scipy.special import gammaln, ndtr, stdtr

    if treatments == 1:
        return float(2 * stdtr(degrees_of_freedom, -t))
    df, (points, weights, nodes, node_weights) = degrees_of_freedom, _quadrature()
    low, high = max(1e-9, 1 - 9 / math.sqrt(2 * df)), 1 + 9 / math.sqrt(2 * df)
    scale = low + (high - low) * (nodes + 1) / 2  # of the standard deviation, in units of its expectation
    log_density = (
        math.log(2) + df / 2 * math.log(df / 2) - gammaln(df / 2) + (df - 1) * np.log(scale) - df * scale**2 / 2
    )
    reach = t * scale[:, None] / math.sqrt(1 - correlation)
    points = points * math.sqrt(correlation / (1 - correlation))
    inside = (ndtr(points + reach) - ndtr(points - reach)) ** treatments @ (weights / weights.sum())
    chance = (high - low) / 2 * float(node_weights @ (np.exp(log_density) * inside))
    return min(1.0, max(0.0, 1 - chance))


@cache
def _quadrature() -> tuple[NDArray[Any], ...]:
    """Points and weights of Gauss and Hermite, then those of Gauss and Legendre."""
    from numpy.polynomial import hermite_e, legendre

    return (*hermite_e.hermegauss(50), *legendre.leggauss(80))


def trend(values: Mapping[float, Mapping[int, float]]) -> PairedDifference:
    """The slope of values by seed on x, over the seeds that all x have: mean over seeds, Student-t interval, p.

    values: x -> seed -> value. The least squares slope of each seed is one number, so seeds need not be level. Raises
    UsageError for fewer than three x, and without a common seed.
    """
    seeds = set.intersection(*(set(row) for row in values.values())) if values else set()
    if len(values) < 3 or not seeds:
        raise UsageError(f"{len(values)} values of x over {plural(len(seeds), 'common seed')}: a trend needs 3 over 1")
    centre = math.fsum(values) / len(values)
    squares = math.fsum((x - centre) ** 2 for x in values)
    slopes = [math.fsum((x - centre) * row[seed] for x, row in values.items()) / squares for seed in sorted(seeds)]
    return paired_difference([0.0] * len(slopes), slopes)
