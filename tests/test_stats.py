"""Intervals and paired differences against printed tables and scipy's own tests."""

from __future__ import annotations

import itertools
import math
import pickle

import numpy as np
import pytest
from scipy import stats as oracle

from noisyteacher.errors import UsageError
from noisyteacher.stats import (
    NONNEGATIVE,
    PERCENT,
    Quantity,
    binomial_interval,
    discordant_p,
    holm,
    mean_interval,
    missing_interval,
    paired_difference,
    t_quantile,
    verdict,
)

SIMULATIONS = 4000


def simulated(n: int, effect: float, seed: int) -> list[tuple[list[float], list[float]]]:
    """Pairs of n errors under two conditions: seeds differ a lot, the effect is `effect` sd of a pair's difference."""
    rng = np.random.default_rng(seed)
    seeds = rng.normal(10, 3, (SIMULATIONS, n))
    differences = rng.normal(effect * 0.4, 0.4, (SIMULATIONS, n))
    return list(zip(seeds.tolist(), (seeds + differences).tolist(), strict=True))


def share(hits: list[bool], expected: float) -> None:
    """The share of hits is the expected one, within four standard errors of the simulation."""
    error = math.sqrt(expected * (1 - expected) / len(hits))
    assert sum(hits) / len(hits) == pytest.approx(expected, abs=4 * error)


@pytest.mark.parametrize(
    ("probability", "freedom", "printed"),
    [
        (0.975, 1, 12.706), (0.975, 2, 4.303), (0.975, 4, 2.776), (0.975, 9, 2.262), (0.975, 29, 2.045),
        (0.975, 120, 1.980), (0.95, 5, 2.015), (0.995, 4, 4.604), (0.9995, 7, 5.408),
    ],
)  # fmt: skip
def test_t_quantiles_of_a_printed_table(probability: float, freedom: int, printed: float) -> None:
    assert t_quantile(probability, freedom) == pytest.approx(printed, abs=5e-4)
    assert t_quantile(1 - probability, freedom) == pytest.approx(-printed, abs=5e-4)


@pytest.mark.parametrize("probability", [0.6, 0.9, 0.975, 0.999])
def test_t_quantiles_in_closed_form(probability: float) -> None:
    """One degree of freedom is Cauchy; two have the quantile (2p - 1) / sqrt(2p(1 - p))."""
    assert t_quantile(probability, 1) == pytest.approx(math.tan(math.pi * (probability - 0.5)))
    closed = (2 * probability - 1) / math.sqrt(2 * probability * (1 - probability))
    assert t_quantile(probability, 2) == pytest.approx(closed)


def test_p_values_in_closed_form() -> None:
    """Two pairs: p = 1 - (2 / pi) atan |t|. Three pairs: p = 1 - |t| / sqrt(2 + t^2)."""
    two = paired_difference([0.0, 0.0], [1.0, 2.0])  # mean 1.5, sd sqrt(1/2), t = 3
    assert two.p == pytest.approx(1 - 2 / math.pi * math.atan(3))
    three = paired_difference([0.0, 0.0, 0.0], [1.0, 2.0, 3.0])  # mean 2, sd 1, t = 2 sqrt 3
    assert three.p == pytest.approx(1 - math.sqrt(12 / 14))


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_the_paired_test_has_its_size_and_its_interval_its_coverage(n: int) -> None:
    """Without an effect 5 % of tests reject, in both directions alike, and 95 % of intervals contain 0."""
    differences = [paired_difference(a, b) for a, b in simulated(n, 0.0, seed=n)]
    share([d.p is not None and d.p < 0.05 for d in differences], 0.05)
    share([d.low is not None and d.high is not None and d.low <= 0 <= d.high for d in differences], 0.95)
    share(["helped here" in verdict(d) and "no evidence" not in verdict(d) for d in differences], 0.025)
    share([d.p is not None and d.p < 0.5 for d in differences], 0.5)


@pytest.mark.parametrize(("n", "effect"), [(3, 2.0), (5, 1.0), (5, -2.0), (10, 1.0)])
def test_the_paired_test_has_the_power_of_the_noncentral_t(n: int, effect: float) -> None:
    differences = [paired_difference(a, b) for a, b in simulated(n, effect, seed=100 + n)]
    critical, centre = t_quantile(0.975, n - 1), effect * math.sqrt(n)
    power = oracle.nct.sf(critical, n - 1, centre) + oracle.nct.cdf(-critical, n - 1, centre)
    share([d.p is not None and d.p < 0.05 for d in differences], float(power))


def test_pairing_removes_what_seeds_have_in_common() -> None:
    """The same numbers unpaired, that is against a shuffled partner, show the effect much less often."""
    pairs = simulated(5, 2.0, seed=7)[:500]
    paired = sum(d.p is not None and d.p < 0.05 for d in (paired_difference(a, b) for a, b in pairs))
    shuffled = sum(d.p is not None and d.p < 0.05 for d in (paired_difference(a, [*b[1:], b[0]]) for a, b in pairs))
    assert paired > 4 * shuffled


def test_holm_by_hand_and_its_properties() -> None:
    assert holm([]) == []
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.01, 0.01]) == [0.02, 0.02]
    ps = [0.001, 0.2, 0.03, 0.012]
    for order in itertools.permutations(range(4)):
        corrected = holm([ps[index] for index in order])
        assert corrected == [holm(ps)[index] for index in order]
        for index, value in zip(order, corrected, strict=True):
            assert ps[index] <= value <= min(1.0, 4 * ps[index])


def test_holm_bounds_any_false_rejection() -> None:
    """Of 5 true hypotheses at least one is rejected with 1 - 0.99^5; beside 3 false ones, of 2 with 1 - 0.975^2."""
    rng = np.random.default_rng(0)
    ps = rng.random((SIMULATIONS, 5))
    share([min(holm(row)) < 0.05 for row in ps.tolist()], 1 - 0.99**5)
    ps[:, :3] *= 1e-6
    false = [min(holm(row)[3:]) < 0.05 for row in ps.tolist()]
    share(false, 1 - 0.975**2)


def test_interval_from_a_printed_t_table() -> None:
    """t(0.975, 2) = 4.303; mean 2, sd 1, n 3."""
    interval = mean_interval([1.0, 2.0, 3.0])
    assert (interval.mean, interval.sd, interval.n) == (2.0, 1.0, 3)
    assert interval.low == pytest.approx(2 - 4.3027 / 3**0.5, abs=1e-3)
    assert interval.high == pytest.approx(2 + 4.3027 / 3**0.5, abs=1e-3)
    alone = mean_interval([4.0])
    assert (alone.mean, alone.low, alone.high, alone.sd, alone.n) == (4.0, None, None, None, 1)
    with pytest.raises(UsageError):
        mean_interval([])


def test_paired_difference_is_scipys() -> None:
    a, b = [4.2, 4.0, 4.5, 4.1], [4.7, 4.1, 5.2, 4.4]
    interval, expected = paired_difference(a, b), oracle.ttest_rel(b, a)
    low, high = expected.confidence_interval(0.95)
    assert interval.mean == pytest.approx(0.4)
    assert interval.p == pytest.approx(float(expected.pvalue))
    assert (interval.low, interval.high) == pytest.approx((float(low), float(high)))
    assert paired_difference([1.0, 2.0], [1.0, 2.0]).p == 1.0
    alike = paired_difference([1.0, 2.0], [1.5, 2.5])
    assert (alike.mean, alike.low, alike.p, alike.n) == (0.5, None, None, 2)
    assert "no evidence" in verdict(alike)
    assert "differ alike" in verdict(alike)
    with pytest.raises(UsageError, match="same seeds"):
        paired_difference([1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("a", "b", "word"),
    [
        ([5.0, 5.1, 5.2], [4.0, 4.1, 4.3], "the noise helped here"),
        ([4.0, 4.1, 4.3], [5.0, 5.1, 5.2], "the noise hurt here"),
        ([4.0, 5.0, 4.5], [4.5, 4.4, 4.9], "no evidence that the noise"),
        ([4.0], [1.0], "no interval"),
    ],
)
def test_the_verdict_says_what_the_interval_says(a: list[float], b: list[float], word: str) -> None:
    sentence = verdict(paired_difference(a, b))
    assert word in sentence
    assert ("3 paired seeds" in sentence) == (len(a) == 3)


def test_an_interval_of_a_share_stays_on_its_scale() -> None:
    """t(0.975, 1) = 12.71: two errors of 48 and 68 % would give 58 +- 127."""
    assert mean_interval([48.0, 68.0]).low == pytest.approx(58 - 127.06, abs=0.01)
    wide = mean_interval([48.0, 68.0], scale=PERCENT)
    assert (wide.mean, wide.low, wide.high, wide.n) == (58.0, None, None, 2)
    assert wide.sd == pytest.approx(14.142, abs=1e-3)
    cut = mean_interval([1.0, 2.0, 3.0], scale=PERCENT)
    assert (cut.low, cut.high) == pytest.approx((0.0, 4.484), abs=1e-3)
    assert mean_interval([99.0, 98.0, 97.0], scale=PERCENT).high == 100.0
    near = mean_interval([2.0, 2.5], scale=PERCENT)
    assert (near.low, near.high) == pytest.approx((0.0, 2.25 + 12.706 * 0.25), abs=1e-2)
    assert mean_interval([1.0, 400.0], scale=NONNEGATIVE).low == 0.0


def test_a_difference_of_shares_stays_on_its_scale() -> None:
    wide = paired_difference([10.0, 20.0], [60.0, 30.0], scale=PERCENT)
    assert (wide.mean, wide.low, wide.high, wide.n) == (30.0, None, None, 2)
    assert "2 paired seeds: no interval, as it would be wider than the whole scale" in verdict(wide)
    cut = paired_difference([10.0, 20.0, 15.0], [60.0, 30.0, 90.0], scale=PERCENT)
    assert (cut.low, cut.high) == pytest.approx((45 - 81.45, 100.0), abs=0.01)
    alike = paired_difference([10.0, 20.0], [10.0, 20.0], scale=PERCENT)
    assert "2 paired seeds: no interval, as all of them differ alike" in verdict(alike)


@pytest.mark.parametrize(
    ("wrong", "n", "low", "high"),
    [(81, 263, 25.53, 36.62), (15, 148, 6.24, 16.05), (0, 20, 0.0, 16.11), (1, 29, 0.61, 17.18)],
)
def test_wilson_intervals_of_newcombe(wrong: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, table I, method 3."""
    assert binomial_interval(wrong, n) == pytest.approx((low, high), abs=0.005)
    assert binomial_interval(n - wrong, n) == pytest.approx((100 - high, 100 - low), abs=0.005)


def test_wilson_intervals_in_closed_form_and_by_scipy() -> None:
    z = 1.959964
    assert binomial_interval(0, 50) == pytest.approx((0.0, 100 * z**2 / (50 + z**2)), abs=1e-4)
    for wrong, n in ((7, 600), (250, 10_000), (1, 2)):
        expected = oracle.binomtest(wrong, n).proportion_ci(method="wilson")
        assert binomial_interval(wrong, n) == pytest.approx((100 * expected.low, 100 * expected.high))
    for wrong, n in ((-1, 5), (6, 5), (0, 0)):
        with pytest.raises(UsageError, match=f"{wrong} of {n}"):
            binomial_interval(wrong, n)


@pytest.mark.parametrize(("first", "second"), [(8, 1), (0, 3), (5, 5), (12, 30), (1, 0)])
def test_mcnemar_is_the_exact_binomial_test(first: int, second: int) -> None:
    tails = sum(math.comb(first + second, k) for k in range(min(first, second) + 1)) / 2 ** (first + second)
    assert discordant_p(first, second) == pytest.approx(min(1.0, 2 * tails))
    assert discordant_p(first, second) == discordant_p(second, first)
    assert discordant_p(first, second) == pytest.approx(oracle.binomtest(first, first + second).pvalue)
    assert discordant_p(0, 0) == 1.0


def test_reasons_for_a_missing_interval() -> None:
    assert missing_interval(1, 0.5, None) == "no interval"
    assert missing_interval(3, 0.5, 0.0) == "no interval, as all of them differ alike"
    assert missing_interval(2, 20.0, 30.0) == "no interval, as it would be wider than the whole scale"


def test_a_quantity_carries_its_unit_and_n() -> None:
    interval = Quantity(98.3, "%", 10000)
    assert interval > 98
    assert repr(interval) == "98.3 % (n=10,000)"
    assert interval.describe() == {"value": 98.3, "unit": "%", "n": 10000}
    again = pickle.loads(pickle.dumps(interval))
    assert (again, again.unit, again.n) == (98.3, "%", 10000)
