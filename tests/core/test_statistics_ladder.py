"""The false-PASS rate of whole ladders: candidates exactly at the bar, rows in groups, nominees fixed on valid."""

from __future__ import annotations

import numpy as np
import pytest
from tests.core import grouped
from tests.core.plain_statistics import bca_cluster_bootstrap

from bedplate.core.statistics.clusters import effective_n_bound, effective_n_interval
from bedplate.core.statistics.multiplicity import holm_bounds
from bedplate.core.statistics.proportions import wilson

LADDERS, CANDIDATES, NOMINEES, BAR = 1000, 8, 3, 0.8


def outcomes(rng: np.random.Generator, groups: int, icc: float) -> tuple[np.ndarray, np.ndarray]:
    """0/1 outcomes [candidates, n] and group codes [n]; within-group correlation icc, truth = BAR for everyone."""
    sizes = rng.integers(4, 16, groups)
    rate = rng.beta(BAR * (1 / icc - 1), (1 - BAR) * (1 / icc - 1), (CANDIDATES, groups))
    rows = rng.random((CANDIDATES, sizes.sum())) < np.repeat(rate, sizes, axis=1)
    return rows.astype(float), np.repeat(np.arange(groups), sizes)


@pytest.mark.parametrize("icc", [pytest.param(0.023, marks=pytest.mark.slow), 0.1])
def test_false_pass_rate_of_a_ladder_at_the_bar(icc: float) -> None:
    """Ladders are looked at one by one where a bound by the spread of the groups alone passes: none is nearer."""
    rng = np.random.default_rng(17)
    ours = plain = 0
    drawn: list[tuple[np.ndarray, np.ndarray]] = []
    for _ in range(LADDERS):
        valid, _ = outcomes(rng, 60, icc)
        test, groups = outcomes(rng, 60, icc)
        nominees = np.argsort(-valid.mean(axis=1))[:NOMINEES]
        drawn.append((test[nominees], groups))
        naive = [lambda c, row=test[i]: wilson(row.sum(), row.size, 2 * c - 1)[0] for i in nominees]
        plain += any(b.passed for b in holm_bounds(naive, BAR))
    sums = np.array([[np.bincount(groups, row) for row in rows] for rows, groups in drawn])
    sizes = np.array([[np.bincount(groups)] * NOMINEES for _, groups in drawn])
    nearest = grouped.bounds(sums, sizes, 1 - 0.05 / NOMINEES, "lower")
    for number, ((rows, groups), limits) in enumerate(zip(drawn, nearest, strict=True)):
        if number < 10 or (limits > BAR).any():
            bounds = [lambda c, row=row, g=groups: effective_n_bound(row, g, c).value for row in rows]
            decisions = holm_bounds(bounds, BAR)
            ours += any(b.passed for b in decisions)
            assert all(bound(1 - 0.05 / NOMINEES) <= limit + 1e-9 for bound, limit in zip(bounds, limits, strict=True))
    assert ours / LADDERS <= 0.08
    assert ours / LADDERS >= 0.005  # not won by never passing anyone
    # the same ladders without regard to groups: what this guards against
    assert plain / LADDERS >= {0.023: 0.05, 0.1: 0.12}[icc]
    assert plain > 1.4 * ours


@pytest.mark.parametrize("icc", [pytest.param(0.023, marks=pytest.mark.slow), 0.1])
def test_two_sided_intervals_cover_the_truth(icc: float) -> None:
    rng = np.random.default_rng(5)
    exact = plain = 0
    for _ in range(150):
        rows, groups = outcomes(rng, 60, icc)
        for row in rows:
            low, high = effective_n_interval(row, groups)
            exact += low <= BAR <= high
            low, high = wilson(row.sum(), row.size)
            plain += low <= BAR <= high
    assert 0.94 <= exact / (150 * CANDIDATES) <= 0.985
    assert plain < exact


def test_bca_covers_the_mean_of_a_skewed_score() -> None:
    rng = np.random.default_rng(6)
    covered = 0
    for _ in range(150):
        sizes = rng.integers(1, 6, 60)
        groups = np.repeat(np.arange(60), sizes)
        level = rng.beta(6, 2, 60)
        x = np.clip(np.repeat(level, sizes) * rng.uniform(0.6, 1.0, groups.size), 0, 1)
        sums = np.bincount(groups, weights=x)
        # the same statistic by groups, so that so many bootstraps take seconds
        bootstrap = bca_cluster_bootstrap(
            lambda g, s=sums, n=sizes: float(s[g].sum() / n[g].sum()), range(60), resamples=400
        )
        covered += bootstrap.interval[0] <= 0.75 * 0.8 <= bootstrap.interval[1]
    assert covered / 150 >= 0.91
