"""What groups that were missed could hide: the chance of few failures against scipy, and how often bounds hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats
from tests.core import grouped

from bedplate.core.statistics import clusters, missed, multiplicity, proportions
from bedplate.core.statistics.noninferiority import mean_drop

LEVEL = 1 - multiplicity.spent_alpha(0.05, 1)


def failures(rng: np.random.Generator, sizes: np.ndarray, truth: float, icc: float, runs: int) -> np.ndarray:
    """Of each group [runs, G], whose rates are Beta around the truth."""
    rate = rng.beta(truth * (1 / icc - 1), (1 - truth) * (1 / icc - 1), (runs, sizes.size))
    return sizes - rng.binomial(sizes, rate)


def bound(failed: np.ndarray, sizes: np.ndarray) -> clusters.Bound:
    x = np.concatenate([np.arange(m) >= k for m, k in zip(sizes, failed, strict=True)]).astype(float)
    return clusters.effective_n_bound(x, np.repeat(np.arange(sizes.size), sizes), LEVEL)


@pytest.mark.parametrize("mean", [0.9, 0.995])
def test_the_chance_of_so_few_failures_is_that_of_scipys_beta_binomials(mean: float) -> None:
    sizes = np.array([1, 1, 4, 4, 9, 30])
    failed = np.array([0, 1, 0, 0, 2, 1])
    prior = stats.beta(0.5, 5).ppf((np.arange(32) + 0.5) / 32)
    likely, tails = np.zeros(32), np.zeros(32)
    for i, spread in enumerate(1 / prior - 1):
        total = np.ones(1)
        for size, k in zip(sizes, failed, strict=True):
            beta_binomial: Any = stats.betabinom(int(size), (1 - mean) * spread, mean * spread)
            likely[i] += float(beta_binomial.logpmf(k))
            total = np.convolve(total, beta_binomial.pmf(np.arange(size + 1)))
        tails[i] = total[: failed.sum() + 1].sum()
    weight = np.exp(likely)
    few_failures = missed.FewFailures(failed, sizes)
    assert few_failures.chance(mean) == pytest.approx(weight @ tails / weight.sum(), rel=1e-9)
    low = few_failures.lower(0.999, 0.05)
    assert few_failures.chance(low) == pytest.approx(0.05, abs=1e-3)
    assert few_failures.lower(low - 0.01, 0.05) == low - 0.01  # one that is lower already is left as it is


def test_rows_that_are_their_own_groups_have_the_exact_binomial_bound() -> None:
    failed = (np.arange(200) < 3).astype(int)
    low = missed.FewFailures(failed, np.ones(200, dtype=int)).lower(0.999, 0.05)
    assert low == pytest.approx(proportions.binomial_lower(197, 200), abs=1e-5)


@pytest.mark.parametrize(("rows", "groups", "bar"), [(600, 60, 0.99), (600, 40, 0.97), (2000, 60, 0.98)])
def test_groups_that_are_nearly_always_right_do_not_pass_for_having_missed_the_others(
    rows: int, groups: int, bar: float
) -> None:
    """A correlation of 0.2: with the spread of the rows alone 5 to 8% are above the bar, at a level of 3%."""
    sizes = np.full(groups, rows // groups)
    failed = failures(np.random.default_rng([rows, groups]), sizes, bar, 0.2, 1000)
    before = grouped.bounds(sizes - failed, np.broadcast_to(sizes, failed.shape), LEVEL, "lower") > bar
    passing = sum(bound(counts, sizes).value > bar for counts in failed[before])
    assert before.mean() > 0.045
    assert passing / 1000 <= 0.035


@pytest.mark.parametrize(("groups", "truth", "bar", "icc"), [(60, 0.94, 0.9, 0.05), (300, 0.98, 0.95, 0.2)])
def test_what_groups_show_by_themselves_still_passes(groups: int, truth: float, bar: float, icc: float) -> None:
    sizes = np.full(groups, 600 // groups)
    failed = failures(np.random.default_rng(groups), sizes, truth, icc, 120)
    before = grouped.bounds(sizes - failed, np.broadcast_to(sizes, failed.shape), LEVEL, "lower") > bar
    passing = sum(bound(counts, sizes).value > bar for counts in failed[before])
    assert before.sum() > 80
    assert passing >= before.sum() - 5


def test_losses_in_few_groups_are_not_shown_to_be_small() -> None:
    """A fiftieth is lost, in groups that are alike by 0.2: a margin of as much was taken to be kept in 9 to 10%."""
    sizes, margin, false_passes = np.full(60, 10), 0.02, 0
    codes = np.repeat(np.arange(60), sizes).tolist()
    for failed in failures(np.random.default_rng(4), sizes, 1 - margin, 0.2, 120):
        after = np.concatenate([np.arange(10) >= k for k in failed]).astype(float)
        false_passes += mean_drop(np.ones(600), after, codes, LEVEL, units=600).is_within(margin) is True
    assert false_passes / 120 <= 0.05
