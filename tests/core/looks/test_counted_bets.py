"""Bounds that hold at every moment: against the formula written out, and by streams whose mean is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from bedplate.core.errors import UsageError
from bedplate.core.statistics.betting import STAKES, capital, lower_bound, upper_bound


def test_capital_is_the_mean_of_gamblers_who_bet_on_each_value_in_turn() -> None:
    stream, mean = [1.0, 0.0, 0.5, 1.0, 1.0], 0.6
    gamblers = [math.prod(1 + part * (x / mean - 1) for x in stream) for part in STAKES]
    assert capital({1.0: 3, 0.0: 1, 0.5: 1}, mean) == pytest.approx(math.log(np.mean(gamblers)))


def test_no_gambler_gains_on_average_where_the_mean_is_what_is_bet_against() -> None:
    mean, n = 0.8, 12
    expected = sum(stats.binom.pmf(k, n, mean) * math.exp(capital({1.0: k, 0.0: n - k}, mean)) for k in range(n + 1))
    assert expected == pytest.approx(1.0)
    # Beta(4, 1) has mean 0.8, and values between
    gain = integrate.quad(lambda x: float(np.asarray(stats.beta.pdf(x, 4, 1))) * math.exp(capital({x: 1}, mean)), 0, 1)[
        0
    ]
    assert gain == pytest.approx(1.0, abs=1e-6)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60), st.sampled_from([0.9, 0.95, 0.99]))
@settings(deadline=None, max_examples=60)
def test_bounds_hold_the_mean_between_them_and_mirror_each_other(zero: int, half: int, full: int, level: float) -> None:
    counts = {0.0: zero, 0.5: half, 1.0: full}
    low, high = lower_bound(counts, level), upper_bound(counts, level)
    n = zero + half + full
    mean = (half / 2 + full) / n if n else 0.5
    assert 0 <= low <= mean + 1e-9
    assert mean - 1e-9 <= high <= 1
    assert 1 - lower_bound({0.0: full, 0.5: half, 1.0: zero}, level) == pytest.approx(high)
    if low > 0:
        assert capital(counts, low) == pytest.approx(-math.log(1 - level), abs=1e-3)


def test_a_stream_at_the_bar_is_called_better_at_any_moment_as_rarely_as_promised() -> None:
    rng = np.random.default_rng(0)
    runs, n, bar = 1500, 3000, 0.9
    right = (rng.random((runs, n)) < bar).cumsum(1)
    ever, single_look = 0, 0
    at = np.unique(np.geomspace(5, n, 60).astype(int))
    parts = STAKES
    for stream in right:  # the logarithm of capital at many moments, all at once
        successes, zeros = stream[at - 1], at - stream[at - 1]
        growth = np.log1p(parts[:, None] * (1 / bar - 1)) * successes + np.log1p(-parts[:, None]) * zeros
        ever += bool((np.log(np.exp(growth).mean(0)) >= math.log(20)).any())
        single_look += bool((stats.binom.sf(successes - 1, at, bar) <= 0.05).any())
    assert ever / runs <= 0.05
    assert single_look / runs > 0.15  # what looking each time as if it were the only one would do


def test_a_real_difference_is_found_and_nothing_seen_says_nothing() -> None:
    assert lower_bound({1.0: 950, 0.0: 50}) > 0.92
    assert lower_bound({1.0: 950, 0.0: 50}) < stats.beta.ppf(0.05, 950, 51)  # wider than a single look's
    assert (lower_bound({}), upper_bound({})) == (0.0, 1.0)
    assert (lower_bound({0.0: 10}), upper_bound({1.0: 10})) == (0.0, 1.0)
    with pytest.raises(UsageError, match="between 0 and 1"):
        lower_bound({1.5: 1})
