"""Rows of unequal weight: estimates and errors against statsmodels, Kish's effect, and how often bounds hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm

from bedplate.core.errors import UsageError
from bedplate.core.statistics import bootstrap, clusters, paired, unequal
from bedplate.core.statistics.noninferiority import mean_drop


def test_the_mean_and_its_error_are_those_of_a_weighted_regression_with_clustered_errors() -> None:
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(50), 4)
    weights = np.tile([0.5, 1.0, 1.0, 3.0], 50)  # groups of one weight: no correction beside G / (G - 1)
    x = (rng.random(200) < rng.beta(8, 2, 50)[groups]).astype(float)
    fit: Any = sm.WLS(x, np.ones(200), weights=weights).fit(  # pyright: ignore[reportArgumentType]
        cov_type="cluster", cov_kwds={"groups": groups}
    )
    estimate = clusters.robust_mean(x, groups, weights)
    assert (estimate.mean, estimate.se) == pytest.approx((fit.params[0], fit.bse[0]))
    drop = mean_drop(np.ones(200), x, groups.tolist(), weights=weights)
    assert (drop.value, drop.se) == pytest.approx((1 - fit.params[0], fit.bse[0]))
    difference = paired.paired_difference(x, np.ones(200), groups.tolist(), weights=weights)
    assert difference.difference == pytest.approx(fit.params[0] - 1)
    rows = weights[:, None] * np.stack([x, np.ones(200)], axis=1)
    boot = bootstrap.bca_of_sums(rows, bootstrap.mean_of_sums, groups.tolist(), weights=weights)
    assert boot.estimate == pytest.approx(fit.params[0])
    assert boot.se == pytest.approx(fit.bse[0], rel=0.1)


def test_independent_rows_are_worth_what_kish_says() -> None:
    rng = np.random.default_rng(2)
    weights = rng.choice([1.0, 2.0, 9.0], 4000)
    x = (rng.random(4000) < 0.7).astype(float)
    kish = 1 + weights.var() / weights.mean() ** 2
    assert clusters.design_effect(x, range(4000), weights) == pytest.approx(kish, rel=0.05)
    bound = clusters.effective_n_bound(x, None, weights=weights)
    assert bound.estimate == pytest.approx(np.average(x, weights=weights))
    assert bound.effective_n == pytest.approx(4000 / kish, rel=0.05)


def test_equal_weights_change_nothing() -> None:
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(60), rng.integers(1, 9, 60))
    x = (rng.random(groups.size) < 0.8).astype(float)
    equal_weights = np.full(groups.size, 2.5)
    assert clusters.effective_n_bound(x, groups, weights=equal_weights) == clusters.effective_n_bound(x, groups)
    assert clusters.effective_n_bound(x, None, weights=equal_weights) == clusters.effective_n_bound(x, None)
    assert clusters.robust_mean(x, groups, equal_weights) == clusters.robust_mean(x, groups)


def test_few_heavy_rows_allow_no_bound_and_bad_weights_are_refused() -> None:
    x = np.ones(300)
    heavy = np.where(np.arange(300) < 5, 500.0, 1.0)
    with pytest.raises(
        unequal.InsufficientGroups, match=r"300 rows of very unequal weights count as 6[.0-9]* equal ones"
    ):
        clusters.effective_n_bound(x, None, weights=heavy)
    for bad in (np.zeros(300), np.ones(299), np.full(300, np.nan)):
        with pytest.raises(UsageError, match="300 positive numbers"):
            clusters.effective_n_bound(x, None, weights=bad)


@pytest.mark.parametrize("grouped", [False, True])
def test_weighted_bounds_hold_where_heavy_rows_are_harder(grouped: bool) -> None:
    """A quarter of the rows stands for two thirds of the traffic and is wrong more often: by rows alone, candidates at
    the bar look better than they are."""
    rng = np.random.default_rng(4)
    heavy = np.arange(400) % 4 == 0
    weights = np.where(heavy, 6.0, 1.0)
    truth = np.where(heavy, 0.85, 0.96)
    bar = float(np.average(truth, weights=weights))
    codes = np.repeat(np.arange(80), 5) if grouped else None
    passed = by_rows = 0
    for _ in range(400):
        rate = truth
        if grouped:
            lift = np.repeat(rng.normal(0, 0.25, 80), 5)
            rate = np.clip(truth + lift * truth * (1 - truth), 0, 1)
        x = (rng.random(400) < rate).astype(float)
        passed += clusters.effective_n_bound(x, codes, 0.95, weights=weights).value > bar
        by_rows += clusters.effective_n_bound(x, codes, 0.95).value > bar
    assert passed / 400 <= 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5
    assert by_rows / 400 > 0.5


HEAVY = [(1000, 8, 0.5, 0.95), (1000, 50, 0.5, 0.98), (600, 30, 0.3, 0.98)]
"""Rows, those of them that are heavy, their share of the traffic, and the truth, which is the bar."""


@pytest.mark.parametrize(("n", "heavy", "share", "bar"), HEAVY)
def test_few_heavy_rows_that_are_all_right_show_nothing_of_their_traffic(
    n: int, heavy: int, share: float, bar: float
) -> None:
    """By the spread of what was seen alone 10 to 30% pass, and intervals cover 0.66 to 0.89."""
    rng = np.random.default_rng([n, heavy])
    weights = np.where(np.arange(n) < heavy, share / heavy, (1 - share) / (n - heavy))
    passed = covered = 0
    for _ in range(300):
        x = (rng.random(n) < bar).astype(float)
        low, high = clusters.effective_n_interval(x, None, 0.95, weights=weights)
        covered += low <= bar <= high
        passed += clusters.effective_n_bound(x, None, 0.97, weights=weights).value > bar
    assert passed / 300 <= 0.03 + 2 * (0.03 * 0.97 / 300) ** 0.5
    assert covered / 300 >= 0.93


def test_the_bound_of_rows_of_nearly_one_weight_is_nearly_the_exact_one() -> None:
    x = (np.arange(300) >= 24).astype(float)
    weights = np.where(np.arange(300) % 2, 1.000001, 1.0)
    weighted = clusters.effective_n_bound(x, None, weights=weights).value
    assert weighted == pytest.approx(clusters.effective_n_bound(x, None).value, abs=1e-3)


def test_heavy_rows_keep_the_power_that_their_number_has() -> None:
    """A third of the rows stands for two thirds of the traffic: worth 267 of 300, which is what is passed with."""
    rng = np.random.default_rng(5)
    weights = np.where(np.arange(300) % 3 == 0, 4.0, 1.0)
    worth = round(float(unequal.worth(weights)))
    passed = sum(
        clusters.effective_n_bound((rng.random(300) < 0.94).astype(float), None, weights=weights).value > 0.88
        for _ in range(300)
    )
    alike = sum(
        clusters.effective_n_bound((rng.random(worth) < 0.94).astype(float), None).value > 0.88 for _ in range(300)
    )
    assert passed >= 0.9 * alike


@pytest.mark.parametrize(("n", "heavy", "share", "margin"), [(600, 30, 0.3, 0.05), (600, 100, 0.5, 0.02)])
def test_heavy_rows_that_lost_nothing_do_not_show_that_little_was_lost(
    n: int, heavy: int, share: float, margin: float
) -> None:
    """A skin that has lost all of its margin: by the spread of the losses that were seen, 12 and 9% pass."""
    rng = np.random.default_rng([n, heavy])
    weights = np.where(np.arange(n) < heavy, share / heavy, (1 - share) / (n - heavy))
    passed = 0
    for _ in range(300):
        before = (rng.random(n) < 0.9).astype(float)
        after = before * (rng.random(n) >= margin / 0.9)
        units = unequal.worth(weights)
        passed += mean_drop(before, after, range(n), 0.97, units=units, weights=weights).is_within(margin) is True
    assert passed / 300 <= 0.05


def test_the_shown_difference_covers_where_few_rows_are_heavy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bedplate.core.statistics.paired.sign_flip", lambda *_, **__: 0.0)  # slow, and widens
    rng, inside = np.random.default_rng(6), 0
    weights = np.where(np.arange(600) < 30, 0.01, 0.7 / 570)
    for _ in range(300):
        change = rng.choice([1.0, -1.0, 0.0], p=[0.06, 0.01, 0.93], size=600)
        low, high = paired.paired_difference(change > 0, change < 0, weights=weights).interval
        inside += low <= 0.05 <= high
    assert inside / 300 >= 0.93
