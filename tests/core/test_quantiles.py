"""Bounds of a quantile against scipy's, and how often they hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal, stats

from bedplate.core.errors import UsageError
from bedplate.core.statistics.proportions import independent_worth, quantile_bounds, values_needed


@given(st.integers(2, 300), st.sampled_from([0.1, 0.5, 0.9, 0.95]), st.sampled_from([0.8, 0.95, 0.99]))
@settings(max_examples=60, deadline=None)
def test_bounds_are_those_of_scipys_quantile_test(n: int, quantile: float, confidence: float) -> None:
    values = np.random.default_rng(n).normal(size=n)
    lower, upper = quantile_bounds(values.tolist(), quantile, confidence)
    # scipy's one-sided intervals hold the quantile: to its right where the alternative is "greater"
    upper_test = stats.quantile_test(values, q=0, p=quantile, alternative="less").confidence_interval(confidence)
    below = stats.quantile_test(values, q=0, p=quantile, alternative="greater").confidence_interval(confidence)
    assert (upper is None) == (not np.isfinite(upper_test.high))
    assert (lower is None) == (not np.isfinite(below.low))
    if upper is not None:
        assert upper == upper_test.high
    if lower is not None:
        assert lower == below.low


def test_fifty_nine_calls_are_the_least_for_a_p95() -> None:
    assert values_needed(0.95) == 59
    assert values_needed(0.95, 0.99) == 90
    for needed, confidence in ((59, 0.95), (90, 0.99)):
        assert quantile_bounds(range(needed), 0.95, confidence)[1] == needed - 1
        assert quantile_bounds(range(needed - 1), 0.95, confidence)[1] is None
    assert quantile_bounds([], 0.95) == (None, None)


def test_bounds_hold_as_often_as_they_say_for_heavy_tails() -> None:
    rng = np.random.default_rng(1)
    truth = float(stats.lognorm.ppf(0.95, 1.2))
    drawn = rng.lognormal(0, 1.2, (2000, 64))
    bounds = [quantile_bounds(row.tolist(), 0.95) for row in drawn]
    assert np.mean([upper is not None and upper >= truth for _, upper in bounds]) >= 0.94
    assert np.mean([lower is not None and lower <= truth for lower, _ in bounds]) >= 0.94


def test_values_that_follow_each_other_are_worth_fewer() -> None:
    rng = np.random.default_rng(2)
    noise = rng.standard_normal((40, 200))
    assert np.median([independent_worth(row) for row in noise]) > 170
    for correlation, worth in ((0.5, 200 / 3), (0.9, 200 / 19)):
        chained = signal.lfilter([1.0], [1.0, -correlation], noise)
        assert np.median([independent_worth(row) for row in chained]) == pytest.approx(worth, rel=0.6)
    assert independent_worth([0.1] * 50) == 50
    assert independent_worth([]) == 0


def test_bounds_of_calls_that_are_worth_fewer_are_further_apart() -> None:
    values = list(range(200))
    nearer, further = quantile_bounds(values, 0.95), quantile_bounds(values, 0.95, worth=90.0)
    assert further[0] < nearer[0] < 190 < nearer[1] < further[1]
    assert quantile_bounds(values, 0.95, worth=58.0)[1] is None


@pytest.mark.parametrize(("quantile", "confidence"), [(0.0, 0.95), (1.0, 0.95), (0.95, 0.4)])
def test_wrong_calls_say_so(quantile: float, confidence: float) -> None:
    with pytest.raises(UsageError):
        quantile_bounds([1.0], quantile, confidence)
