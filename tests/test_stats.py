"""Intervals and paired differences against printed tables and scipy's own tests."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from scipy import stats as oracle

from noisyteacher.errors import UsageError
from noisyteacher.stats import (
    NONNEGATIVE,
    PERCENT,
    PairedDifference,
    Quantity,
    binomial_interval,
    detectable,
    discordant_p,
    dunnett,
    dunnett_p,
    dunnett_point,
    mean_interval,
    missing_interval,
    outcome,
    paired_difference,
    simultaneous,
    t_quantile,
    trend,
    verdict,
)

SIMULATIONS = 1000


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


def test_interval_from_a_printed_t_table() -> None:
    """t(0.975, 2) = 4.303; mean 2, sd 1, n 3."""
    interval = mean_interval([1.0, 2.0, 3.0])
    assert (interval.mean, interval.sd, interval.n) == (2.0, 1.0, 3)
    assert interval.low == pytest.approx(2 - 4.3027 / 3**0.5, abs=1e-3)
    assert interval.high == pytest.approx(2 + 4.3027 / 3**0.5, abs=1e-3)
    for error in (0.05, 5.0, 5.3):  # the mean of three 0.05 is rounded
        equal = mean_interval([error] * 3, PERCENT)
        assert (equal.low, equal.sd) == (None, 0.0), "equal errors show a coarse measure, not a sure mean"
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
    assert (alike.low, alike.p, alike.n) == (None, None, 2)
    assert alike.mean == pytest.approx(0.5)
    assert "no evidence" in verdict(alike)
    assert "differ by the same amount" in verdict(alike)
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


@pytest.mark.parametrize(("n", "controls", "count"), [(5, 5, 3), (4, 8, 3), (3, 12, 2), (6, 9, 5)])
def test_dunnett_p_is_scipys_with_more_values_of_the_control(n: int, controls: int, count: int) -> None:
    """Independent samples: the t's are correlated by n / (n + controls)."""
    draws = np.random.default_rng(n)
    samples = [draws.normal(0.6, 1, n) for _ in range(count)]
    result = oracle.dunnett(*samples, control=draws.normal(0, 1, controls), rng=np.random.default_rng(0))
    freedom = count * (n - 1) + controls - 1
    ps = [dunnett_p(abs(float(t)), count, freedom, n / (n + controls)) for t in result.statistic]
    assert ps == pytest.approx(result.pvalue.tolist(), abs=1e-3)


def test_dunnett_p_in_closed_form() -> None:
    """Independent t's with many degrees of freedom: the chance of none beyond t is that of one to the power k."""
    for count, t in ((2, 2.2365), (3, 2.3877), (10, 2.7995)):
        assert dunnett_p(t, count, 10**6, 0.0) == pytest.approx(0.05, abs=1e-4)
        assert dunnett_p(t, count, 10**6, 0.0) == pytest.approx(1 - math.erf(t / math.sqrt(2)) ** count, abs=1e-5)
    assert dunnett_p(2.0, 1, 7) == pytest.approx(2 * oracle.t.sf(2.0, 7))


def half_width(difference: PairedDifference) -> float:
    assert difference.low is not None
    return difference.mean - difference.low


def test_further_seeds_of_the_control_count_by_what_seeds_do() -> None:
    """Seeds without an effect of their own: control and treatment are compared by means, as if unpaired."""
    test = dunnett([1.0, -1.0, 0.0, 0.0], [[4.0, 6.0]])[0]  # residual of 2 x 2: (2 + 2)^2 / 4 = 4, 1 df
    assert test.mean == pytest.approx(5.0)
    assert test.n == 2
    assert half_width(test) == pytest.approx(t_quantile(0.975, 1) * math.sqrt(4 * (1 / 2 + 1 / 4)), rel=1e-4)
    control, treatments = [10.0, 2010.0, 1012.0], [[11.0, 2011.5, 1012.5], [10.0, 2013.0, 1012.0]]
    common, more = dunnett(control, treatments), dunnett([*control, 3000.0, 500.0], treatments)
    for first, second in zip(common, more, strict=True):  # seeds with a large effect: pairs alone count
        assert second.mean == pytest.approx(first.mean, abs=1e-3)
        assert half_width(second) == pytest.approx(half_width(first), rel=1e-3)


def test_missing_seeds_are_least_squares_with_conditions_and_seeds() -> None:
    """By a regression on dummies; seeds differ so much that they count as fixed."""
    control = {0: 100.0, 1: 250.0, 2: 400.0, 3: 50.0}
    treatments = [{0: 101.0, 1: 250.5, 2: 401.5}, {1: 249.0, 2: 400.5, 3: 49.0}]
    rows = [(k, seed, value) for k, row in enumerate((control, *treatments)) for seed, value in row.items()]
    design = np.array([[k == 1, k == 2, *(seed == s for s in range(4))] for k, seed, _ in rows], dtype=float)
    values = np.array([value for *_, value in rows])
    solution, squares, rank, _ = np.linalg.lstsq(design, values)
    freedom = len(values) - int(rank)
    inverse = np.linalg.inv(design.T @ design)
    errors = np.sqrt(float(squares[0]) / freedom * inverse.diagonal())
    correlation = float(inverse[0, 1] / np.sqrt(inverse[0, 0] * inverse[1, 1]))
    tests = dunnett(control, treatments)
    assert [test.n for test in tests] == [3, 3]
    assert [test.mean for test in tests] == pytest.approx(solution[:2].tolist(), abs=1e-2)
    for test, error in zip(tests, errors, strict=False):
        assert test.p == pytest.approx(dunnett_p(abs(test.mean) / error, 2, freedom, correlation), abs=2e-3)
    with pytest.raises(UsageError, match="shares no seed"):
        dunnett({0: 1.0, 1: 2.0}, [{2: 1.0}])
    assert dunnett([1.0], [[2.0], [3.0]])[0].low is None


@pytest.mark.parametrize(("seeds", "controls", "spread"), [(3, 6, 1.0), (4, 16, 0.0), (4, 16, 3.0)])
def test_dunnett_has_its_size_with_more_seeds_of_the_control(seeds: int, controls: int, spread: float) -> None:
    draws, false, widths = np.random.default_rng(seeds), [], []
    for _ in range(500):
        effects, values = draws.normal(0, spread, controls), draws.normal(0, 1, (5, controls))
        table = [row[: controls if k == 0 else seeds].tolist() for k, row in enumerate(values + effects)]
        tests, paired = (dunnett(table[0][:end], table[1:]) for end in (controls, seeds))
        false.append(any(test.low is not None and test.high is not None and test.low * test.high > 0 for test in tests))
        widths.append(half_width(tests[0]) / half_width(paired[0]))
    share(false, 0.05)
    assert np.mean(widths) < (0.9 if spread < 1 else 1.0)


@pytest.mark.parametrize(("treatments", "seeds"), [(1, 3), (1, 8), (6, 3), (6, 8)])
def test_the_detectable_difference_is_detected_with_the_stated_power(treatments: int, seeds: int) -> None:
    """A planted gain of that size, from the true standard error, is detected in 80 of 100 studies."""
    draws, hits, freedom = np.random.default_rng(treatments + seeds), [], treatments * (seeds - 1)
    gain = detectable(0.3 * math.sqrt(2 / seeds), freedom, dunnett_point(treatments, freedom, 0.5))
    for _ in range(SIMULATIONS):
        values = draws.normal(10, 2, seeds) + draws.normal(0, 0.3, (treatments + 1, seeds))
        values[1] -= gain
        first = dunnett(values[0].tolist(), values[1:].tolist())[0]
        hits.append(first.high is not None and first.high < 0)
    share(hits, 0.8)
    alone = paired_difference([1.0, 2.0, 4.0, 3.0], [1.5, 2.0, 4.5, 4.0])  # of a result: from its own standard error
    assert alone.detectable is not None
    centre = alone.detectable / (half_width(alone) / t_quantile(0.975, 3))
    assert oracle.nct.sf(t_quantile(0.975, 3), 3, centre) == pytest.approx(0.8, abs=1e-4)


def test_a_trend_is_the_mean_slope_of_the_seeds() -> None:
    """Slopes by hand: seed 0 has 2, seed 1 has 3 + 1/14 x ..., seeds' levels do not count."""
    x = (0.0, 1.0, 4.0)
    lines = {0: (5.0, 2.0), 1: (50.0, 3.0), 2: (7.0, 2.5)}
    values = {point: {seed: start + slope * point for seed, (start, slope) in lines.items()} for point in x}
    slope = trend(values)
    assert slope.mean == pytest.approx(2.5)
    assert half_width(slope) == pytest.approx(t_quantile(0.975, 2) * 0.5 / math.sqrt(3))
    bent = {point: {**row, 3: 1.0} for point, row in values.items()}
    bent[4.0][3] += 1.0  # centred x -5/3, -2/3, 7/3, squares 26/3: slope (7/3) / (26/3) = 7/26
    assert trend(bent).mean == pytest.approx((7.5 + 7 / 26) / 4)
    del bent[1.0][0]
    assert trend(bent).n == 3
    with pytest.raises(UsageError, match="a trend needs"):
        trend({0.0: {0: 1.0}, 1.0: {0: 2.0}})


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
    assert wide.mean == pytest.approx(30.0)
    assert (wide.low, wide.high, wide.n) == (None, None, 2)
    assert "2 paired seeds: no interval, as it would be wider than the whole scale" in verdict(wide)
    cut = paired_difference([10.0, 20.0, 15.0], [60.0, 30.0, 90.0], scale=PERCENT)
    assert (cut.low, cut.high) == pytest.approx((45 - 81.45, 100.0), abs=0.01)
    alike = paired_difference([10.0, 20.0], [10.0, 20.0], scale=PERCENT)
    assert "2 paired seeds: no interval, as all pairs differ by the same amount" in verdict(alike)


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


def test_a_family_of_paired_tests_by_hand() -> None:
    """Holm: the smallest p times 3, the next times 2, never falling; Bonferroni: t at 1 - 0.05 / 6."""
    values = [[1.0, 1.2, 0.9, 1.1], [0.3, 0.1, 0.25, 0.3], [0.1, -0.2, 0.3, -0.1]]
    tests = [paired_difference([0.0] * 4, row) for row in values]
    p = [float(oracle.ttest_1samp(row, 0).pvalue) for row in values]
    family = simultaneous([tests[2], tests[0], tests[1]])
    expected = [max(2 * p[1], p[2]), 3 * p[0], 2 * p[1]]
    assert [test.p for test in family] == pytest.approx(expected)
    point = float(oracle.t.ppf(1 - 0.05 / 6, 3))
    for test, row in zip(family, (values[2], values[0], values[1]), strict=True):
        half_width = point * float(np.std(row, ddof=1)) / 2
        assert (test.low, test.high) == pytest.approx((np.mean(row) - half_width, np.mean(row) + half_width))
        assert test.comparisons == 3
    close = [PairedDifference(1.0, 0.1, 1.9, q, 4, sd=0.5) for q in (0.02, 0.021, 0.5)]
    assert [test.p for test in simultaneous(close)] == pytest.approx([0.06, 0.06, 0.5])
    wide = paired_difference([10.0, 20.0], [30.0, 90.0], PERCENT)
    [cut] = simultaneous([wide], PERCENT)
    assert (cut.low, cut.high, cut.p) == (None, None, wide.p)
    single = paired_difference([0.0], [1.0])
    assert simultaneous([single]) == [single]


def test_reasons_for_a_missing_interval() -> None:
    assert missing_interval(1, 0.5, None) == "no interval"
    assert missing_interval(3, 0.5, 0.0) == "no interval, as all pairs differ by the same amount"
    assert missing_interval(2, 20.0, 30.0) == "no interval, as it would be wider than the whole scale"


def test_a_quantity_carries_its_unit_and_n() -> None:
    interval = Quantity(98.3, "%", 10000)
    assert interval > 98
    assert repr(interval) == "98.3 % (n=10,000)"
    assert interval.describe() == {"value": 98.3, "unit": "%", "n": 10000}
    again = pickle.loads(pickle.dumps(interval))
    assert (again, again.unit, again.n) == (98.3, "%", 10000)


def test_a_noise_that_scatters_more_is_judged_by_its_own_residual() -> None:
    """Nine noises without an effect, one with ten times the scatter: pooled, a fifth of studies claim one."""
    draws, claims, widths = np.random.default_rng(0), 0, []
    for _ in range(200):
        seeds, spreads = draws.normal(20, 0.1, 5), [0.1] * 9 + [1.0]
        control, *noises = ((seeds + draws.normal(0, spread, 5)).tolist() for spread in spreads)
        tests = dunnett(control, noises)
        claims += any(outcome(test) != "no evidence" for test in tests)
        widths.append([test.high - test.low for test in tests if test.low is not None and test.high is not None])
        assert {test.comparisons for test in tests} == {9}
    assert claims <= 19, "0.05 of 200, and three standard deviations"
    narrow, wide = np.median(np.array(widths), 0)[[0, -1]]
    assert narrow < 0.5 < 3 < wide
