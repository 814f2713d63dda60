"""Groups of unequal sizes: the formulas against dense algebra and scipy, and how often bounds hold, by simulation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import linalg, special, stats
from tests.core import grouped

from bedplate.core.statistics import bootstrap, clusters, multiplicity, paired, unequal
from bedplate.core.statistics.clusters import SKEWNESS_SHARE

CONFIDENCE = 1 - multiplicity.spent_alpha(0.05, 1) / 3  # of three nominees at a first verdict


def zipf(rows: int, groups: int) -> np.ndarray:
    """Sizes as 1, 1/2, 1/3, …, at least 1, that sum to `rows`."""
    weights = 1 / np.arange(1, groups + 1)
    sizes = np.maximum(1, np.floor(rows * weights / weights.sum())).astype(int)
    sizes[0] += rows - sizes.sum()
    return sizes


def dense(y: np.ndarray, codes: np.ndarray, icc: float) -> tuple[float, float]:
    """Variance and degrees of freedom of a mean, row by row: CR2 of an intercept (Pustejovsky & Tipton 2018, eq. 5 with
    an identity for the working covariance), its bias and Satterthwaite's degrees of freedom (eq. 11) under rows that
    are equally correlated within groups (Imbens & Kolesár 2016)."""
    n = y.size
    hat = np.full((n, n), 1 / n)
    centering = np.eye(n) - hat
    quadratic = np.zeros((n, n))
    for g in range(codes.max() + 1):
        members = np.flatnonzero(codes == g)
        adjust: Any = linalg.sqrtm(linalg.inv(np.eye(members.size) - hat[np.ix_(members, members)]))
        row = (np.ones(members.size) @ adjust.real @ centering[members]) / n
        quadratic += np.outer(row, row)
    working = np.where(codes[:, None] == codes[None], icc, 0.0) + (1 - icc) * np.eye(n)
    observed = float(y @ quadratic @ y)
    product = quadratic @ working
    expected, truth = float(np.trace(product)), float(working.sum()) / n**2
    return observed * truth / expected, expected**2 / float(np.trace(product @ product))


@pytest.mark.parametrize("icc", [0.0, 0.08, 0.5, 1.0])
def test_variance_and_freedom_are_those_of_the_dense_formulas(icc: float) -> None:
    rng = np.random.default_rng(3)
    sizes = np.array([1, 1, 2, 3, 5, 8, 13, 30])
    codes = np.repeat(np.arange(sizes.size), sizes)
    y = rng.normal(size=codes.size) + rng.normal(size=sizes.size)[codes]
    residuals = np.bincount(codes, weights=y - y.mean())
    estimate = unequal.robust(residuals, sizes.astype(float), icc)
    assert (estimate.variance, estimate.freedom) == pytest.approx(dense(y, codes, icc), rel=1e-9)
    plain, _ = dense(y, codes, 0.0)
    assert plain == pytest.approx(float((residuals**2 / (1 - sizes / sizes.sum())).sum()) / sizes.sum() ** 2)


def test_a_mean_uses_the_correlation_that_it_reads() -> None:
    rng = np.random.default_rng(5)
    codes = np.repeat(np.arange(20), zipf(150, 20))
    y = rng.normal(size=codes.size) + rng.normal(size=20)[codes]
    estimate = clusters.robust_mean(y, codes)
    variance, freedom = dense(y, codes, clusters.intraclass_correlation(y, codes))
    assert (estimate.se**2, estimate.freedom) == pytest.approx((variance, freedom), rel=1e-9)
    assert estimate.worth == pytest.approx(150**2 / (np.bincount(codes) ** 2).sum())
    assert clusters.design_effect(y, codes) == pytest.approx(variance / (y.var(ddof=1) / 150))


def test_groups_of_one_size_are_as_ever() -> None:
    api = pytest.importorskip("statsmodels.api")
    rng = np.random.default_rng(4)
    codes = np.repeat(np.arange(45), 6)
    y = rng.normal(size=codes.size) + rng.normal(size=45)[codes]
    fit = api.OLS(y, np.ones(y.size)).fit(cov_type="cluster", cov_kwds={"groups": codes})
    estimate = clusters.robust_mean(y, codes)
    small = (y.size - 1) / y.size  # what statsmodels adds for its one coefficient, (n - 1) / (n - k), is 1
    assert estimate.se == pytest.approx(fit.bse[0], rel=1e-9)
    assert small < 1
    assert estimate.freedom == pytest.approx(44)
    assert unequal.stretch(np.full(45, 6.0), 0.3) == pytest.approx((np.sqrt(45 / 44), 44))


@pytest.mark.parametrize(("mean", "icc"), [(0.8, 0.05), (0.9, 0.2), (0.3, 0.5), (0.97, 0.01)])
def test_skewness_is_that_of_scipys_beta_binomial(mean: float, icc: float) -> None:
    sizes = np.array([1, 4, 9, 40])
    spread = 1 / icc - 1
    k2 = k3 = 0.0
    for size in sizes.tolist():
        moments: Any = stats.betabinom.stats(size, mean * spread, (1 - mean) * spread, moments="vs")
        variance, skew = (float(moment) for moment in moments)
        k2, k3 = k2 + variance, k3 + skew * variance**1.5
    assert unequal.skewness(sizes.astype(float), mean, icc) == pytest.approx(k3 / k2**1.5, rel=1e-6)
    alone: Any = stats.binom.stats(54, mean, moments="s")
    assert unequal.skewness(sizes.astype(float), mean, 0.0) == pytest.approx(float(alone))


def test_few_large_groups_are_refused_by_what_they_are_worth() -> None:
    sizes = zipf(600, 60)
    codes = np.repeat(np.arange(60), sizes)
    right = (np.random.default_rng(0).random(600) < 0.9).astype(float)
    with pytest.raises(
        unequal.InsufficientGroups, match=r"60 groups of very unequal sizes count as 10\.5 equal ones.*at least 20"
    ) as caught:
        clusters.effective_n_bound(right, codes)
    assert caught.value.worth == pytest.approx(unequal.worth(sizes.astype(float)))
    assert not unequal.enough_groups(codes.tolist())
    assert unequal.enough_groups(np.repeat(np.arange(40), 15).tolist())
    assert not unequal.enough_groups(np.repeat(np.arange(39), 15).tolist())
    rows = np.stack([right, np.ones(600)], axis=1)
    with pytest.raises(unequal.InsufficientGroups, match=r"count as 10\.5"):
        bootstrap.bca_of_sums(rows, bootstrap.mean_of_sums, codes.tolist())
    perfect = clusters.effective_n_bound(np.ones(600), codes, minimum_groups=2)
    assert perfect.effective_n < unequal.worth(sizes.astype(float))  # all right: a group is then as one row


def draw(rng: np.random.Generator, sizes: np.ndarray, truth: float, icc: float, shape: tuple[int, ...]) -> np.ndarray:
    """Right answers of each group [*shape, G], whose rates are Beta around the truth."""
    rate = np.full((*shape, sizes.size), truth)
    if icc:
        rate = rng.beta(truth * (1 / icc - 1), (1 - truth) * (1 / icc - 1), rate.shape)
    return rng.binomial(sizes, rate)


CELLS = [(600, 40, "zipf"), (600, 300, "zipf"), (2000, 40, "zipf"), (2000, 40, "equal"), (600, 60, "equal")]


@pytest.mark.parametrize("icc", [0.0, pytest.param(0.05, marks=pytest.mark.slow), 0.2])
@pytest.mark.parametrize(("rows", "groups", "sizing"), CELLS)
def test_no_more_pass_at_the_bar_than_allowed_and_intervals_cover(
    rows: int, groups: int, sizing: str, icc: float
) -> None:
    """Three independent nominees at the bar of 0.9. With every group counted alike: up to 0.14, and 0.88 covered."""
    sizes = zipf(rows, groups) if sizing == "zipf" else np.full(groups, rows // groups)
    rng = np.random.default_rng([rows, groups, int(100 * icc)])
    right = draw(rng, sizes, 0.9, icc, (500 if groups == 300 else 1500, 3))
    lower = grouped.bounds(right, sizes, CONFIDENCE, "lower")
    low, high = (grouped.bounds(right, sizes, 0.975, side) for side in ("lower", "upper"))
    assert (lower > 0.9).any(axis=1).mean() <= 0.05
    assert ((low <= 0.9) & (high >= 0.9)).mean() >= 0.94
    codes = np.repeat(np.arange(sizes.size), sizes)
    for i in range(3):
        x = np.concatenate([np.arange(size) < r for size, r in zip(sizes, right[i, 0], strict=True)]).astype(float)
        ours = [
            clusters.effective_n_bound(x, codes, 0.975, side, minimum_groups=2).value for side in ("lower", "upper")
        ]
        assert ours[0] < low[i, 0] + 1e-9  # no nearer, for what missed groups could hide
        assert ours == pytest.approx([low[i, 0], high[i, 0]], abs=1e-9 if groups == 300 and sizing == "equal" else 0.03)


@pytest.mark.parametrize("icc", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("rows", [600, 2000])
def test_groups_of_one_size_lose_at_most_three_points_of_power(rows: int, icc: float) -> None:
    """Against the same bound without the correction for skewness, which is what it was: truth 0.85, bar 0.8."""
    sizes = np.full(60, rows // 60)
    right = draw(np.random.default_rng(rows), sizes, 0.85, icc, (6000,))
    level = 1 - multiplicity.spent_alpha(0.05, 1)
    current, before = (
        float((grouped.bounds(right, sizes, level, "lower", s) > 0.8).mean()) for s in (SKEWNESS_SHARE, 0.0)
    )
    assert before - 0.03 <= current <= before


def scores(u: np.ndarray) -> np.ndarray:
    """Of 0 in a tenth, 1 in six tenths, and evenly between: mean 0.75."""
    return np.where(u < 0.1, 0.0, np.where(u > 0.4, 1.0, (u - 0.1) / 0.3))


@pytest.mark.parametrize("icc", [0.0, 0.3])
def test_scores_between_0_and_1_are_bounded_in_unequal_groups(icc: float) -> None:
    """300 groups worth 49: 0.14 of lower bounds were above the mean, and 0.85 of intervals held it."""
    sizes = zipf(600, 300)
    codes = np.repeat(np.arange(300), sizes)
    rng = np.random.default_rng(int(10 * icc))
    too_high = inside = 0
    for _ in range(150):
        normal = np.sqrt(icc) * rng.standard_normal(300)[codes] + np.sqrt(1 - icc) * rng.standard_normal(600)
        rows = np.stack([scores(special.ndtr(normal)), np.ones(600)], axis=1)
        bounds = bootstrap.bca_of_sums(rows, bootstrap.mean_of_sums, codes.tolist(), resamples=400)
        too_high += bounds.lower > 0.75
        inside += bounds.interval[0] <= 0.75 <= bounds.interval[1]
    assert too_high / 150 <= 0.08
    assert inside / 150 >= 0.93


def test_paired_differences_cover_in_unequal_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bedplate.core.statistics.paired.sign_flip", lambda *_, **__: 0.0)  # slow, and widens
    sizes = zipf(600, 40)
    codes = np.repeat(np.arange(40), sizes)
    rng = np.random.default_rng(8)
    inside = 0
    for _ in range(300):
        rate = rng.beta(0.8, 7.2, 40)[codes]  # a tenth of the rows change, alike within groups, both ways
        change = np.where(rng.random(600) < rate, np.sign(rng.random(40)[codes] - 0.5), 0.0)
        low, high = paired.paired_difference(change > 0, change < 0, codes).interval
        inside += low <= 0 <= high
    assert inside / 300 >= 0.93
