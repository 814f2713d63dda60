"""Groups whose sizes go with their quality: the trend, and bounds where sizes are drawn as groups are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm

from bedplate.core.statistics import clusters, unequal

LEVEL = 1 - 6 * 0.05 / np.pi**2


def drawn(rng: np.random.Generator, sizes: np.ndarray, rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of groups with these sizes and rates [G], and the group of each."""
    codes = np.repeat(np.arange(sizes.size), sizes)
    return (rng.random(codes.size) < rates[codes]).astype(float), codes


def pareto(rng: np.random.Generator, count: int, shape: float = 2.0) -> np.ndarray:
    return np.floor(3 * (1 + rng.pareto(shape, count))).astype(int)


def lognormal(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.maximum(1, np.rint(4 * rng.lognormal(0, 1, count))).astype(int)


def test_the_trend_is_that_of_a_weighted_regression_on_the_logarithm_of_size() -> None:
    rng = np.random.default_rng(1)
    sizes = pareto(rng, 80).astype(float)
    means = np.clip(0.95 - 0.1 * np.log(sizes / 3) + rng.normal(0, 0.02, 80), 0, 1)
    trend = unequal.size_trend(sizes * means, sizes)
    design = sm.add_constant(np.log(sizes))
    fit: Any = sm.WLS(means, design, weights=sizes).fit(cov_type="HC0")  # pyright: ignore[reportArgumentType]
    shrunk = 1 - (fit.bse[1] / fit.params[1]) ** 2
    assert 0.5 < shrunk < 1
    assert trend.deviations == pytest.approx(shrunk * sizes * (fit.fittedvalues - np.average(means, weights=sizes)))
    assert trend.beyond < 0
    assert unequal.size_trend(sizes * (1 - means), sizes) is unequal.NO_TREND  # larger ones are better
    assert unequal.size_trend(np.full(80, 3.0), np.full(80, 4.0)) is unequal.NO_TREND  # they have one size


def test_groups_of_one_size_and_better_large_groups_have_the_bound_they_had() -> None:
    rng = np.random.default_rng(2)
    x, codes = drawn(rng, np.full(60, 10), rng.beta(9, 1, 60))
    sums = np.bincount(codes, weights=x).astype(np.float64)
    assert unequal.size_trend(sums, np.full(60, 10.0)) is unequal.NO_TREND
    up, codes = drawn(rng, np.repeat([2, 20], 40), np.repeat([0.8, 0.95], 40))
    better = clusters.effective_n_bound(up, codes)
    down, codes = drawn(rng, np.repeat([2, 20], 40), np.repeat([0.95, 0.8], 40))
    worse = clusters.effective_n_bound(down, codes)
    assert better.estimate - better.value < worse.estimate - worse.value


@pytest.mark.parametrize(("sizes_of", "groups"), [pytest.param(pareto, 300, marks=pytest.mark.slow), (lognormal, 100)])
@pytest.mark.parametrize("better", [False, True])
def test_bounds_hold_where_large_groups_are_worse_or_better(
    sizes_of: Callable[[np.random.Generator, int], np.ndarray], groups: int, better: bool
) -> None:
    """Larger groups are worse without end, by 0.05 where sizes are e-fold: without the trend 5 to 11% pass."""
    rng = np.random.default_rng([groups, better])

    def rates_of(sizes: np.ndarray) -> np.ndarray:
        rates = np.clip(0.95 - 0.05 * np.log(sizes / 3.5), 0.05, 0.99)
        return 1 - rates if better else rates

    population = sizes_of(rng, 2_000_000)
    truth = float(np.average(rates_of(population), weights=population))
    beyond = 0
    for _ in range(250):
        sizes = sizes_of(rng, groups)
        x, codes = drawn(rng, sizes, rates_of(sizes))
        bound = clusters.effective_n_bound(x, codes, LEVEL, "upper" if better else "lower", minimum_groups=2).value
        beyond += bound < truth if better else bound > truth
    assert beyond / 250 <= 0.05 + 1.5 * (0.05 * 0.95 / 250) ** 0.5
