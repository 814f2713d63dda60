"""Do 95% intervals cover the truth? Exactly where outcomes can be enumerated, by simulation with fixed seeds elsewhere.

Over each grid of truths the mean coverage must be at least 93% and the least at least 90%.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from tests.core import grouped
from tests.core.plain_statistics import bca_cluster_bootstrap, binomial_interval

from bedplate.core.statistics import bootstrap, clusters, paired, proportions, unequal

SIZES = (50, 200, 1000)
TRUTHS = [float(truth) for truth in np.arange(0.05, 0.96, 0.05).round(2)]
Floats = NDArray[np.float64]


def check(covered: list[float]) -> None:
    assert np.mean(covered) >= 0.93
    assert min(covered) >= 0.90


def too_low_or_too_high(intervals: list[tuple[float, float]], truth: float) -> tuple[float, float]:
    """Shares of intervals that lie above the truth (their lower bound was too high), and below it."""
    low, high = np.array(intervals).T
    return float((low > truth).mean()), float((high < truth).mean())


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("interval", [binomial_interval, proportions.wilson])
def test_proportions_of_independent_rows_cover_exactly(interval: Callable, n: int) -> None:
    """The sum of binomial probabilities of the outcomes whose interval holds the truth: nothing is drawn."""
    ends = np.array([interval(k, n) for k in range(n + 1)])
    truths = np.linspace(0.01, 0.99, 99)
    inside = (ends[:, :1] <= truths) & (truths <= ends[:, 1:])
    covered = (stats.binom.pmf(np.arange(n + 1)[:, None], n, truths) * inside).sum(0)
    assert covered.mean() >= 0.93
    if interval is binomial_interval:
        assert covered.min() >= 0.95  # Clopper and Pearson's is never short, and this is the one that verdicts use
        for k in (0, n // 3, n):
            assert clusters.effective_n_interval(np.arange(n) < k, None) == pytest.approx(tuple(ends[k]))
    else:  # for orientation: at the ends of the grid it may dip (Brown, Cai & DasGupta 2001)
        assert covered[n * np.minimum(truths, 1 - truths) >= 2.5].min() >= 0.90


def grouped_coverage(truth: float, groups: int, icc: float, runs: int, rng: np.random.Generator) -> tuple[float, float]:
    """Share of two-sided intervals that hold `truth`, and their mean width, for 0/1 rows in groups of 1 to 15 whose
    rates are beta-distributed around it.

    The library's own bound on every 50th sample, which is no nearer; on all of them its formula on arrays, without what
    missed groups could hide.
    """
    sizes = rng.integers(1, 16, (runs, groups))
    rate: Floats = np.full((runs, groups), truth)
    if icc > 0:
        rate = rng.beta(truth * (1 / icc - 1), (1 - truth) * (1 / icc - 1), (runs, groups))
    sums = rng.binomial(sizes, rate)
    low, high = (grouped.bounds(sums, sizes, 0.975, side) for side in ("lower", "upper"))
    for i in range(0, runs, 50):
        codes = np.repeat(np.arange(groups), sizes[i])
        x = np.concatenate([np.arange(size) < right for size, right in zip(sizes[i], sums[i], strict=True)])
        interval = clusters.effective_n_interval(x.astype(float), codes)
        assert interval[0] < low[i] + 1e-9
        assert interval[1] > high[i] - 1e-9
        if groups >= 200 and 0.4 <= truth <= 0.6:
            assert interval == pytest.approx((low[i], high[i]), abs=1e-9)
    return float(((low <= truth) & (truth <= high)).mean()), float(np.mean(high - low))


def check_grouped(groups: int, icc: float, runs: int) -> None:
    rng = np.random.default_rng([groups, round(1000 * icc)])
    coverages = [grouped_coverage(truth, groups, icc, runs, rng) for truth in TRUTHS]
    check([coverage[0] for coverage in coverages])
    assert max(coverage[1] for coverage in coverages) < 0.3  # and says something


@pytest.mark.parametrize(("groups", "icc"), [(unequal.MINIMUM_GROUPS, 0.3), (60, 0.02)])
def test_proportions_of_grouped_rows_cover(groups: int, icc: float) -> None:
    check_grouped(groups, icc, 400)


@pytest.mark.slow
@pytest.mark.parametrize("icc", [0.0, 0.02, 0.1, 0.3])
@pytest.mark.parametrize("groups", [unequal.MINIMUM_GROUPS, 60, 100, 300])
def test_proportions_of_grouped_rows_cover_in_full(groups: int, icc: float) -> None:
    check_grouped(groups, icc, 4000)


def smooth(rng: np.random.Generator, truth: float, n: int) -> tuple[Floats, float]:
    """Scores spread around the truth, as chrF or ROUGE give them."""
    return rng.beta(8 * truth, 8 * (1 - truth), n), truth


def inflated(rng: np.random.Generator, truth: float, n: int) -> tuple[Floats, float]:
    """Mostly all or nothing, with some in between, as word F1 gives them."""
    middle_mass = 0.4 * min(truth, 1 - truth)
    u = rng.random(n)
    middle = np.where(u < truth + middle_mass / 2, rng.random(n), 0.0)
    return np.where(u < truth - middle_mass / 2, 1.0, middle), truth


def rare(rng: np.random.Generator, truth: float, n: int) -> tuple[Floats, float]:
    """A share `truth` of nearly perfect rows and a few bad ones: what a plain bootstrap is worst at."""
    good = rng.random(n) < truth
    return np.where(good, 1 - 0.1 * rng.random(n), 0.3 * rng.random(n)), 0.95 * truth + 0.15 * (1 - truth)


SHAPES = (smooth, inflated, rare)


def mean_interval(
    scores: Floats, codes: NDArray[np.int64], resamples: int, confidence: float = 0.95
) -> bootstrap.Bootstrap:
    rows = np.stack([scores, np.ones(scores.size)], axis=1)
    return bootstrap.bca_of_sums(rows, bootstrap.mean_of_sums, codes.tolist(), confidence, resamples=resamples)


def _score_coverage(
    n: int, times: int, resamples: int, truths: Sequence[float] = (0.05, 0.2, 0.5, 0.8, 0.9, 0.95)
) -> tuple[list[float], list[float]]:
    """Coverage, and how often the lower end is too high, over shapes and truths."""
    covered: list[float] = []
    low: list[float] = []
    for number, shape in enumerate(SHAPES):
        for truth in truths:
            rng = np.random.default_rng([n, number, int(100 * truth)])
            drawn = [shape(rng, truth, n) for _ in range(times)]
            intervals = [mean_interval(x, np.arange(n), resamples).interval for x, _ in drawn]
            lower_misses, below = too_low_or_too_high(intervals, drawn[0][1])
            covered.append(1 - lower_misses - below)
            low.append(lower_misses)
    return covered, low


@pytest.mark.parametrize(
    ("n", "times", "resamples"),
    [*(pytest.param(*row, marks=pytest.mark.slow) for row in ((50, 150, 600), (200, 60, 600))), (1000, 8, 400)],
)
def test_means_of_scores_cover(n: int, times: int, resamples: int) -> None:
    covered, low = _score_coverage(n, times, resamples, (0.05, 0.5, 0.95))
    assert np.mean(covered) >= 0.93
    assert np.mean(low) <= 0.035
    if times >= 100:  # of a few dozen samples the least says little
        assert min(covered) >= 0.90
        assert max(low) <= 0.07  # a PASS rests on the lower end alone; without the two corrections it is 0.09


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("n", SIZES)
def test_means_of_scores_cover_in_full(n: int) -> None:
    covered, low = _score_coverage(n, 1000, 1000)
    check(covered)
    assert max(low) <= 0.06


def grouped_scores(
    rng: np.random.Generator, groups: int, truth: float, icc: float
) -> tuple[Floats, NDArray[np.int64], float]:
    """Scores in groups of 1 to 12 whose levels differ; the truth is the mean of a row."""
    sizes = rng.integers(1, 13, groups)
    codes = np.repeat(np.arange(groups), sizes)
    level = rng.beta(truth * (1 / icc - 1), (1 - truth) * (1 / icc - 1), groups)[codes]
    return np.clip(level, 1e-3, 1 - 1e-3) * rng.uniform(0.5, 1.0, codes.size), codes, 0.75 * truth


def _grouped_score_coverage(groups: int, times: int, resamples: int) -> list[float]:
    covered: list[float] = []
    for icc in (0.05, 0.3):
        for truth in (0.1, 0.3, 0.6, 0.9):
            rng = np.random.default_rng([groups, int(100 * icc), int(100 * truth)])
            drawn = [grouped_scores(rng, groups, truth, icc) for _ in range(times)]
            intervals = [mean_interval(x, codes, resamples).interval for x, codes, _ in drawn]
            covered.append(1 - sum(too_low_or_too_high(intervals, drawn[0][2])))
    return covered


@pytest.mark.parametrize("groups", [unequal.MINIMUM_GROUPS, pytest.param(100, marks=pytest.mark.slow)])
def test_means_of_grouped_scores_cover(groups: int) -> None:
    check(_grouped_score_coverage(groups, 150, 600))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("groups", [unequal.MINIMUM_GROUPS, 60, 100, 300])
def test_means_of_grouped_scores_cover_in_full(groups: int) -> None:
    check(_grouped_score_coverage(groups, 1500, 1000))


@pytest.mark.parametrize("n", SIZES)
def test_paired_differences_of_proportions_cover(n: int) -> None:
    rng = np.random.default_rng(n)
    covered: list[float] = []
    for gain, loss in ((0.05, 0.05), (0.1, 0.05), (0.2, 0.05), (0.3, 0.2)):
        changes = rng.choice([1.0, -1.0, 0.0], p=[gain, loss, 1 - gain - loss], size=(300, n))
        intervals = [paired.paired_difference(row > 0, row < 0).interval for row in changes]
        covered.append(1 - sum(too_low_or_too_high(intervals, gain - loss)))
    check(covered)


def test_paired_differences_of_scores_cover(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "bedplate.core.statistics.paired.sign_flip", lambda *_, **__: 0.0
    )  # the p-value: slow, and where it is large the interval is wider
    covered: list[float] = []
    for groups in (unequal.MINIMUM_GROUPS, 100):
        for truth in (0.2, 0.5, 0.8):
            rng = np.random.default_rng([groups, int(100 * truth)])
            intervals: list[tuple[float, float]] = []
            for _ in range(200):
                x, codes, _ = grouped_scores(rng, groups, truth, 0.2)
                y = np.clip(x + rng.uniform(-0.2, 0.1, x.size), -1, 1)  # worse by 0.05 on the whole
                intervals.append(paired.paired_difference(x, y, codes.tolist(), binary=False).interval)
            covered.append(1 - sum(too_low_or_too_high(intervals, 0.05)))
    check(covered)


def _f1(sums: Floats) -> Floats:
    """Macro-F1 of three labels from what was right, wanted and given."""
    right, actual, predicted = np.split(sums, 3, axis=-1)
    return (2 * right / np.maximum(actual + predicted, 1)).mean(-1)


def test_macro_f1_of_grouped_rows_covers() -> None:
    """The truth is that of a very large sample from the same distribution."""
    covered: list[float] = []
    for right in (0.6, 0.85):
        rng = np.random.default_rng(int(100 * right))

        def sample(groups: int, rng: np.random.Generator = rng, right: float = right) -> tuple[Floats, list[int]]:
            codes = np.repeat(np.arange(groups), 5)
            skill = rng.beta(10 * right, 10 * (1 - right), groups)[codes]
            labels = rng.choice(3, codes.size, p=[0.6, 0.3, 0.1])
            answers = np.where(rng.random(codes.size) < skill, labels, rng.integers(0, 3, codes.size))
            one_hot = np.eye(3)
            return np.concatenate(
                [one_hot[labels] * one_hot[answers], one_hot[labels], one_hot[answers]], axis=1
            ), codes.tolist()

        truth = float(_f1(sample(100_000)[0].sum(0)))
        intervals = [bootstrap.bca_of_sums(*_with(_f1, *sample(60)), resamples=600).interval for _ in range(200)]
        covered.append(1 - sum(too_low_or_too_high(intervals, truth)))
    check(covered)


def _with(statistic: Callable, rows: Floats, groups: list[int]) -> tuple[Floats, Callable, list[int]]:
    return rows, statistic, groups


@pytest.mark.parametrize("seed", range(3))
def test_sums_give_the_same_bootstrap_as_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, codes, _ = grouped_scores(rng, 50, 0.6, 0.2)
    icc = clusters.intraclass_correlation(x, codes)
    plain = bca_cluster_bootstrap(lambda rows: float(x[rows].mean()), codes.tolist(), seed=seed, resamples=500, icc=icc)
    quick = bootstrap.bca_of_sums(
        np.stack([x, np.ones(x.size)], axis=1), bootstrap.mean_of_sums, codes.tolist(), seed=seed, resamples=500
    )
    for name in ("estimate", "interval", "lower", "upper", "se"):
        assert getattr(quick, name) == pytest.approx(getattr(plain, name), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_bca_is_scipys_at_the_level_that_t_asks_for(seed: int) -> None:
    x = np.random.default_rng(seed).beta(5, 2, 45)
    t_quantile = math.sqrt(45 / 44) * float(stats.t.ppf(0.95, 44))
    peer = stats.bootstrap(
        (x,),
        np.mean,
        confidence_level=2 * float(stats.norm.cdf(t_quantile)) - 1,
        n_resamples=20_000,
        method="BCa",
        rng=seed,
    ).confidence_interval
    ours = bootstrap.bca_of_sums(
        np.stack([x, np.ones(45)], axis=1), bootstrap.mean_of_sums, range(45), 0.9, resamples=20_000, unseen=False
    )
    assert ours.interval == pytest.approx((peer.low, peer.high), abs=2e-3)


def test_no_bound_is_nearer_than_unseen_groups_allow() -> None:
    x = np.full(60, 0.7)
    x[0] = 0.70001
    close = mean_interval(x, np.arange(60), 500)
    share = 1 - 0.05 ** (1 / 60)
    assert close.lower == pytest.approx(0.7 * (1 - share), abs=1e-4)
    assert close.upper == pytest.approx(0.7 + 0.3 * share, abs=1e-4)
    equal = mean_interval(np.full(60, 0.7), np.arange(60), 500)  # 0.7 sixty times is not quite 42
    assert (equal.lower, equal.upper) == pytest.approx((close.lower, close.upper), abs=1e-4)


def test_strict_levels_get_as_many_resamples_as_they_need() -> None:
    rows = np.stack([np.random.default_rng(0).random(50), np.ones(50)], axis=1)
    levels = (0.9, 0.95, 0.99, 0.999)
    bounds = [bootstrap.bca_of_sums(rows, bootstrap.mean_of_sums, range(50), level) for level in levels]
    assert [bound.resamples for bound in bounds] == [2000, 2000, 4000, 40_000]
    assert [bound.lower for bound in bounds] == sorted((bound.lower for bound in bounds), reverse=True)


def test_rows_that_add_nothing_are_no_groups() -> None:
    """A ratio over 50 of 500 groups is as sure as one over 50, and over 12 it has no bound."""
    rng = np.random.default_rng(0)
    rows = np.stack([(rng.random(50) < 0.9).astype(float), np.ones(50)], axis=1)
    padded = np.concatenate([rows, np.zeros((450, 2))])
    assert bootstrap.bca_of_sums(padded, bootstrap.mean_of_sums, range(500)) == bootstrap.bca_of_sums(
        rows, bootstrap.mean_of_sums, range(50)
    )
    with pytest.raises(unequal.InsufficientGroups, match="12 rows are too few"):
        bootstrap.bca_of_sums(padded[38:], bootstrap.mean_of_sums, range(462))


def test_further_ends_of_what_was_not_seen_are_kept() -> None:
    rows = np.stack([np.random.default_rng(0).random(50), np.ones(50)], axis=1)
    plain = bootstrap.bca_of_sums(rows, bootstrap.mean_of_sums, range(50))
    widened = bootstrap.bca_of_sums(rows, bootstrap.mean_of_sums, range(50), unseen=lambda a: (a, 1 - a))
    assert (widened.lower, widened.upper) == pytest.approx((0.05, 0.95))
    assert widened.interval == pytest.approx((0.025, 0.975))
    unchanged = bootstrap.bca_of_sums(
        rows, bootstrap.mean_of_sums, range(50), unseen=lambda _: (plain.estimate, plain.estimate)
    )
    assert unchanged == plain
