"""Bounds of a drop against statsmodels, and how often they hold by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from bedplate.core.errors import UsageError
from bedplate.core.statistics.noninferiority import mean_drop, rate_rise

api = pytest.importorskip("statsmodels.api")


def rows(seed: int, groups: int = 60, size: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scores before and after, weights and group codes."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 9, groups) if size is None else np.full(groups, size)
    codes = np.repeat(np.arange(groups), sizes)
    before = (rng.random(codes.size) < 0.6).astype(float)
    after = np.where(rng.random(codes.size) < 0.1 + 0.1 * rng.random(groups)[codes], 1 - before, before)
    return before, after, rng.integers(5, 300, codes.size).astype(float), codes


@pytest.mark.parametrize("seed", range(3))
def test_mean_drop_matches_a_clustered_regression_on_a_constant(seed: int) -> None:
    before, after, _, codes = rows(seed, 300, 4)
    fit = api.OLS(before - after, np.ones(before.size)).fit(cov_type="cluster", cov_kwds={"groups": codes})
    drop = mean_drop(before, after, codes.tolist(), 0.9)
    assert drop.value == pytest.approx(fit.params[0], abs=1e-12)
    assert drop.se == pytest.approx(fit.bse[0], rel=1e-9)
    t_quantile = stats.t.ppf(0.9, 299)
    sums = np.bincount(codes, weights=fit.resid)
    lean = stats.skew(sums) / np.sqrt(300) * (2 * t_quantile**2 + 1) / 6  # sums of residuals have mean 0
    halves = [max(t_quantile, t_quantile - lean) * drop.se, max(t_quantile, t_quantile + lean) * drop.se]
    assert (drop.lower, drop.upper) == pytest.approx((drop.value - halves[0], drop.value + halves[1]))
    assert min(halves) > 1 - 0.1 ** (1 / 300)  # never nearer than what is unseen


@pytest.mark.parametrize("seed", range(3))
def test_rate_rise_matches_weighted_least_squares_with_clusters(seed: int) -> None:
    before, after, tokens, codes = rows(seed)
    worse = tokens * (3 + after), tokens * (3 + before)
    fit = api.WLS(after - before, np.ones(before.size), weights=tokens).fit(
        cov_type="cluster", cov_kwds={"groups": codes}
    )
    rise = rate_rise(worse[1], worse[0], tokens, codes.tolist())
    assert rise.value == pytest.approx(fit.params[0], abs=1e-12)
    # its residuals; the weights of CR2, and their expectation where a group's sum varies as its weight, by matrices
    sums = np.bincount(codes, weights=fit.resid * tokens)
    weight = np.bincount(codes, weights=tokens)
    centering = np.eye(weight.size) - np.outer(weight / weight.sum(), np.ones(weight.size))
    product = centering.T @ np.diag(1 / (1 - weight / weight.sum())) @ centering @ np.diag(weight**2)
    expected = np.trace(product) / (weight**2).sum()
    observed = (sums**2 / (1 - weight / weight.sum())).sum() / expected
    assert rise.se == pytest.approx(np.sqrt(observed) / weight.sum(), rel=1e-9)
    assert rise.se == pytest.approx(fit.bse[0], rel=0.02)
    freedom = np.trace(product) ** 2 / np.trace(product @ product)
    t_quantile = stats.t.ppf(0.95, freedom)
    lean = (sums**3).sum() / (sums**2).sum() ** 1.5 * (2 * t_quantile**2 + 1) / 6
    assert rise.upper == pytest.approx(rise.value + max(t_quantile, t_quantile + lean) * rise.se)
    assert rise.lower == pytest.approx(rise.value - max(t_quantile, t_quantile - lean) * rise.se)


def test_no_change_is_not_certainty_and_few_groups_decide_nothing() -> None:
    unchanged = np.ones(50)
    drop = mean_drop(unchanged, unchanged, range(50))
    assert drop.upper == pytest.approx(1 - 0.05 ** (1 / 50))
    assert drop.is_within(0.02) is None  # fifty rows without a change do not exclude a drop of two points
    assert drop.is_within(0.1) is True
    small_drop = mean_drop(unchanged[:39], unchanged[:39], range(39))
    assert (small_drop.upper, small_drop.is_within(0.5)) == (None, None)
    alone = rate_rise([1.0], [1.0], [3.0], ["a"])
    assert alone.is_within(0.5) is None


def test_a_drop_over_the_margin_is_shown_and_the_rows_that_would_decide_are_said() -> None:
    before, after = np.ones(400), np.concatenate([np.zeros(80), np.ones(320)])
    assert mean_drop(before, after, range(400)).is_within(0.1) is False
    slight_loss = np.concatenate([np.zeros(10), np.ones(390)])
    drop = mean_drop(before, slight_loss, range(400))
    assert drop.is_within(0.03) is None
    needed = drop.needed(0.03)
    assert needed is not None
    # the rows of the normal approximation, checked by hand
    z = stats.norm.ppf(0.95) + stats.norm.ppf(0.8)
    assert needed == pytest.approx((z * drop.se * 20 / 0.005) ** 2, rel=0.01)
    assert drop.needed(0.02) is None


@pytest.mark.parametrize("groups", [40, 200])
def test_the_upper_bound_holds_as_often_as_it_says(groups: int) -> None:
    """Nothing lost in truth, a tenth of the answers changed both ways, alike within groups: 95% within noise."""
    rng = np.random.default_rng(groups)
    covered, runs = 0, 300
    for _ in range(runs):
        codes = np.repeat(np.arange(groups), rng.integers(1, 6, groups))
        change = rng.beta(0.5, 4.5, groups)[codes]
        flipped = rng.random(codes.size) < change
        sign = rng.random(codes.size) < 0.5
        before, after = np.where(flipped & sign, 1.0, 0.0), np.where(flipped & ~sign, 1.0, 0.0)
        upper = mean_drop(before, after, codes.tolist()).upper
        assert upper is not None
        covered += upper > 0
    assert covered / runs >= 0.93
    assert groups == 40 or covered / runs <= 0.985  # with few groups what none of them shows is the wider bound


@pytest.mark.parametrize(
    "call",
    [
        lambda: mean_drop([1.0], [1.0, 0.0], ["a"]),
        lambda: mean_drop([2.0], [1.0], ["a"]),
        lambda: mean_drop([], [], []),
        lambda: rate_rise([1.0], [1.0], [0.0], ["a"]),
        lambda: rate_rise([float("nan")], [1.0], [1.0], ["a"]),
        lambda: mean_drop([1.0], [1.0], ["a"], 0.4),
    ],
)
def test_wrong_calls_say_so(call) -> None:
    with pytest.raises(UsageError):
        call()
