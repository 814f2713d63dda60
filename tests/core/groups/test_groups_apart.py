"""Few groups that dominate the others are set apart by every bound: of shares, of other scores, of drops."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest

from bedplate.core.statistics import bootstrap, clusters, unequal
from bedplate.core.statistics.noninferiority import mean_drop

GIANT = np.repeat(np.arange(801), [230, *[1] * 800])
"""Worth 19.8 groups of one size with the first, 800 without."""
FEW = np.repeat(np.arange(40), [39, *[1] * 39])


def mean_bounds(values: np.ndarray, groups: np.ndarray, confidence: float = 0.97) -> bootstrap.Bootstrap:
    rows = np.stack([values, np.ones(values.size)], axis=1)
    return bootstrap.bca_of_sums(rows, bootstrap.mean_of_sums, groups.tolist(), confidence, resamples=1000)


@pytest.mark.parametrize(("groups", "enough"), [(GIANT, True), (FEW, False), (np.arange(60), True)])
def test_enough_groups_says_what_bounds_do(groups: np.ndarray, enough: bool) -> None:
    values = (np.arange(groups.size) % 9 > 0).astype(float)
    assert unequal.enough_groups(groups.tolist()) is enough
    assert (mean_drop(values, values, groups.tolist()).upper is not None) is enough
    refused = nullcontext() if enough else pytest.raises(unequal.InsufficientGroups, match="39 groups are too few")
    with refused:
        clusters.effective_n_bound(values, groups)
    with refused:
        mean_bounds(0.5 * values, groups)


def test_scores_and_drops_are_bounded_by_the_further_of_the_others_and_of_all_rows() -> None:
    rng = np.random.default_rng(0)
    scores, alone, rest = rng.random(1030), np.arange(1030), GIANT > 0
    bounded, others = mean_bounds(scores, GIANT), mean_bounds(scores[rest], GIANT[rest])
    whole = mean_bounds(scores, np.where(rest, GIANT, 801 + alone))
    assert (bounded.estimate, bounded.groups) == (pytest.approx(scores.mean()), 801)
    assert bounded.lower == min(others.lower, whole.lower)
    assert bounded.interval[1] == max(others.interval[1], whole.interval[1])
    before = (rng.random(1030) < 0.9).astype(float)
    after = before * (rng.random(1030) < 0.99)
    drop = mean_drop(before, after, GIANT.tolist(), 0.97)
    without = mean_drop(before[rest], after[rest], alone[rest].tolist(), 0.97)
    assert drop.upper is not None
    assert without.upper is not None
    assert drop.is_within(0.05)
    assert drop.upper >= without.upper
    assert (drop.n, drop.groups, drop.value) == (1030, 801, pytest.approx((before - after).mean()))
    worse = np.where(rest, after, before * (rng.random(1030) < 0.6))  # the giant group lost much
    assert mean_drop(before, worse, GIANT.tolist(), 0.97).is_within(0.05) is not True


@pytest.mark.parametrize("lost", [(0.05, 0.05), (0.18, 0.01264), (0.0, 0.06438)])
def test_a_drop_of_the_margin_is_rarely_called_within_it(lost: tuple[float, float]) -> None:
    """lost: shares of the giant group's rows and of the others', of all of them 0.05."""
    rng, within, runs = np.random.default_rng(1), 0, 60
    rates = np.where(GIANT == 0, *lost)
    for _ in range(runs):
        after = (rng.random(1030) >= rates).astype(float)
        drop = mean_drop(np.ones(1030), after, GIANT.tolist(), 0.95, scattered=True)
        within += drop.is_within(0.05) is True
    assert within <= 0.15 * runs
