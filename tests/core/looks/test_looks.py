"""Levels of several looks against the multivariate normal, published boundaries and simulated rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from bedplate.core.errors import UsageError
from bedplate.core.statistics.clusters import effective_n_bound
from bedplate.core.statistics.multiplicity import look_levels

FIFTHS = (0.2, 0.4, 0.6, 0.8, 1.0)


def crossing(levels: tuple[float, ...], shares: tuple[float, ...]) -> float:
    """The probability that any of the standardised sums exceeds its boundary, by scipy's multivariate normal."""
    times = np.array(shares)
    together: Any = np.sqrt(np.minimum.outer(times, times) / np.maximum.outer(times, times))
    inside = stats.multivariate_normal.cdf(stats.norm.isf(levels), np.zeros(len(times)), together)
    return float(1 - inside)


def test_boundaries_are_those_of_lan_and_demets() -> None:
    # Lan & DeMets (1983), table 1: one-sided 0.05, five equal looks, error spent in proportion to time
    assert stats.norm.isf(look_levels(0.05, FIFTHS, 1.0)) == pytest.approx([2.33, 2.22, 2.12, 2.03, 1.96], abs=0.006)


@pytest.mark.parametrize("rho", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("shares", [(1.0,), (0.3, 1.0), (0.1, 0.15, 0.7), FIFTHS])
def test_all_looks_together_spend_what_their_time_allows(shares: tuple[float, ...], rho: float) -> None:
    for count in range(1, len(shares) + 1):
        levels = look_levels(0.05, shares[:count], rho)
        assert crossing(levels, shares[:count]) == pytest.approx(0.05 * shares[count - 1] ** rho, abs=2e-4)


def test_one_look_at_everything_has_the_whole_error_and_later_looks_change_no_earlier_ones() -> None:
    assert look_levels(0.03, (1.0,)) == pytest.approx((0.03,))
    assert look_levels(0.03, FIFTHS)[:3] == pytest.approx(look_levels(0.03, FIFTHS[:3]), rel=1e-6)
    smaller, larger = look_levels(0.01, FIFTHS), look_levels(0.03, FIFTHS)
    assert all(a < b for a, b in zip(smaller, larger, strict=True))  # which Holm over several nominees rests on


@pytest.mark.parametrize("shares", [(), (0.0, 1.0), (0.5, 0.5), (0.7, 0.2), (0.5, 1.2)])
def test_shares_that_are_none_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="shares of looks"):
        look_levels(0.05, shares)


def test_rows_at_the_bar_pass_within_the_error_and_looking_uncorrected_passes_more() -> None:
    rng = np.random.default_rng(0)
    runs, n, bar, alpha = 3000, 300, 0.8, 0.05
    right = (rng.random((runs, n)) < bar).cumsum(1)
    ends = [round(n * share) for share in FIFTHS]
    corrected, plain = (
        np.zeros(runs, bool) | np.any([_clears(right[:, end - 1], end, bar, level) for end, level in looks], axis=0)
        for looks in (
            list(zip(ends, look_levels(alpha, FIFTHS), strict=True)),
            [(end, alpha) for end in ends],
        )
    )
    assert corrected.mean() <= alpha
    assert plain.mean() > 0.07


def _clears(right: np.ndarray, n: int, bar: float, level: float) -> np.ndarray:
    """Whether the exact lower bound is above the bar, for each count of right answers."""
    table = [effective_n_bound(np.arange(n) < k, None, 1 - level).value > bar for k in range(n + 1)]
    return np.array(table)[right]
