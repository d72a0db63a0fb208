"""Intervals and paired differences against printed tables and scipy's own tests."""

from __future__ import annotations

import pickle

import pytest
from scipy import stats as oracle

from noisyteacher.errors import UsageError
from noisyteacher.stats import (
    NONNEGATIVE,
    PERCENT,
    Quantity,
    binomial_interval,
    mean_interval,
    paired_difference,
    scale_of,
    verdict,
)


def test_interval_from_a_printed_t_table() -> None:
    """t(0.975, 2) = 4.303; mean 2, sd 1, n 3."""
    found = mean_interval([1.0, 2.0, 3.0])
    assert (found.mean, found.sd, found.n) == (2.0, 1.0, 3)
    assert found.low == pytest.approx(2 - 4.3027 / 3**0.5, abs=1e-3)
    assert found.high == pytest.approx(2 + 4.3027 / 3**0.5, abs=1e-3)
    alone = mean_interval([4.0])
    assert (alone.mean, alone.low, alone.high, alone.sd, alone.n) == (4.0, None, None, None, 1)
    with pytest.raises(UsageError):
        mean_interval([])


def test_paired_difference_is_scipys() -> None:
    a, b = [4.2, 4.0, 4.5, 4.1], [4.7, 4.1, 5.2, 4.4]
    found, expected = paired_difference(a, b), oracle.ttest_rel(b, a)
    low, high = expected.confidence_interval(0.95)
    assert found.mean == pytest.approx(0.4)
    assert found.p == pytest.approx(float(expected.pvalue))
    assert (found.low, found.high) == pytest.approx((float(low), float(high)))
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
    assert (cut.low, cut.high) == (0.0, pytest.approx(4.484, abs=1e-3))
    assert mean_interval([99.0, 98.0, 97.0], scale=PERCENT).high == 100.0
    near = mean_interval([2.0, 2.5], scale=PERCENT)
    assert (near.low, near.high) == (0.0, pytest.approx(2.25 + 12.706 * 0.25, abs=1e-2))
    assert mean_interval([1.0, 400.0], scale=NONNEGATIVE).low == 0.0
    assert [scale_of(key) for key in ("test_error_%", "val_nll_nats")] == [PERCENT, NONNEGATIVE]


def test_a_difference_of_shares_stays_on_its_scale() -> None:
    wide = paired_difference([10.0, 20.0], [60.0, 30.0], scale=PERCENT)
    assert (wide.mean, wide.low, wide.high, wide.n) == (30.0, None, None, 2)
    assert "2 paired seeds: no interval, as it would be wider than the whole scale" in verdict(wide)
    cut = paired_difference([10.0, 20.0, 15.0], [60.0, 30.0, 90.0], scale=PERCENT)
    assert (cut.low, cut.high) == (pytest.approx(45 - 81.45, abs=0.01), 100.0)
    alike = paired_difference([10.0, 20.0], [10.0, 20.0], scale=PERCENT)
    assert "2 paired seeds: no interval, as all of them differ alike" in verdict(alike)


def test_binomial_interval_is_wilsons() -> None:
    expected = oracle.binomtest(7, 600).proportion_ci(method="wilson")
    assert binomial_interval(7, 600) == pytest.approx((100 * expected.low, 100 * expected.high))
    assert binomial_interval(0, 100)[0] == pytest.approx(0.0)


def test_a_quantity_carries_its_unit_and_n() -> None:
    found = Quantity(98.3, "%", 10000)
    assert found > 98
    assert repr(found) == "98.3 % (n=10,000)"
    assert found.describe() == {"value": 98.3, "unit": "%", "n": 10000}
    again = pickle.loads(pickle.dumps(found))
    assert (again, again.unit, again.n) == (98.3, "%", 10000)
