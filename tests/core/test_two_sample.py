"""Two samples of different rows: statistics and p-values against scipy, scikit-learn and statsmodels, the rate of false
alarms where nothing differs, and how often a real shift is seen."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics.pairwise import rbf_kernel

from bedplate.core import statistics as bs
from bedplate.core.errors import UsageError

proportion = pytest.importorskip("statsmodels.stats.proportion")


def with_ones(rows: np.ndarray) -> np.ndarray:
    return np.column_stack([rows, np.ones(len(rows))])


def sums(parts: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return parts[~second].sum(0), parts[second].sum(0)


def test_the_distance_of_means_is_the_discrepancy_of_their_kernel() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((30, 3)), rng.standard_normal((20, 3)) + 0.5
    kernel = rbf_kernel(np.concatenate([x, y]), gamma=0.3)
    values, vectors = np.linalg.eigh(kernel)
    features = vectors * np.sqrt(np.maximum(values, 0))  # features @ features.T is the kernel
    second = np.arange(50) >= 30
    wanted = kernel[:30, :30].mean() + kernel[30:, 30:].mean() - 2 * kernel[:30, 30:].mean()
    assert bs.mean_distance(*sums(with_ones(features), second)) ** 2 == pytest.approx(wanted, abs=1e-9)


def test_the_distance_of_shares_is_pearsons() -> None:
    rng = np.random.default_rng(1)
    labels, second = rng.integers(0, 3, 90), np.arange(90) >= 50
    table = np.array([[((labels == label) & (second == side)).sum() for label in range(3)] for side in (False, True)])
    found = bs.share_distance(*sums(with_ones(np.eye(3)[labels]), second))
    assert found * 50 * 40 == pytest.approx(stats.chi2_contingency(table, correction=False)[0])


@pytest.mark.parametrize("shift", [0.0, 0.6])
def test_p_values_of_independent_rows_agree_with_scipy(shift: float) -> None:
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal(40), rng.standard_normal(25) + shift
    ranks, second = stats.rankdata(np.concatenate([x, y])), np.arange(65) >= 40
    found = bs.two_sample(with_ones(ranks[:, None]), second, None, bs.mean_distance, resamples=19_999)
    assert found.p_value == pytest.approx(stats.mannwhitneyu(x, y, method="exact").pvalue, abs=0.01, rel=0.15)
    drawn = stats.permutation_test(
        (ranks[:40], ranks[40:]), lambda a, b: abs(np.mean(a) - np.mean(b)), alternative="greater", n_resamples=9_999
    )
    assert found.statistic == pytest.approx(drawn.statistic)
    assert found.expected == pytest.approx(drawn.null_distribution.mean(), rel=0.15)


def test_few_rows_have_the_p_value_of_all_permutations() -> None:
    x, y = [1.0, 4.0, 2.0], [7.0, 9.0, 6.0, 11.0]
    parts, second = with_ones(np.array([*x, *y])[:, None]), np.arange(7) >= 3
    exact = stats.permutation_test((x, y), lambda a, b: abs(np.mean(a) - np.mean(b)), alternative="greater").pvalue
    found = bs.two_sample(parts, second, None, bs.mean_distance, resamples=40_000)
    assert found.least == pytest.approx(1 / 35)
    assert found.p_value == pytest.approx(exact, rel=0.15)


def test_a_test_that_finds_nothing_ends_early() -> None:
    parts, second = with_ones(np.random.default_rng(3).standard_normal((60, 2))), np.arange(60) >= 30
    found = bs.two_sample(parts, second, None, bs.mean_distance, resamples=10_000_000)
    assert found.p_value == 200 / found.resamples
    assert found.resamples < 20_000


def drawn(rng: np.random.Generator, shared: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Rows of 30 old and 20 new groups, as unlike as rows within them, and of `shared` groups with some in both."""
    sizes = [(int(rng.integers(1, 9)), 0) for _ in range(30)] + [(0, int(rng.integers(1, 9))) for _ in range(20)]
    sizes += [(int(rng.integers(4, 20)), int(rng.integers(1, 4))) for _ in range(shared)]
    values, marks, groups = [], [], []
    for group, (before, after) in enumerate(sizes):
        second = np.arange(before + after) >= before
        values.append(rng.standard_normal() + rng.standard_normal(before + after) + shift * second)
        marks.append(second)
        groups += [group] * (before + after)
    return np.concatenate(values), np.concatenate(marks), groups


def rejected(shared: int, shift: float, runs: int, *, whole: bool = True) -> float:
    rng, found = np.random.default_rng(4), 0
    for run in range(runs):
        values, second, groups = drawn(rng, shared, shift)
        parts = with_ones(values[:, None])
        given = groups if whole else None
        found += bs.two_sample(parts, second, given, bs.mean_distance, seed=run, resamples=199).p_value <= 0.05
    return found / runs


@pytest.mark.parametrize("shared", [0, 15])
def test_groups_that_are_alike_within_give_no_false_alarms(shared: int) -> None:
    # 300 runs at 5%: 1.7% to 8.3% hold 99% of what chance makes of it
    assert 0.017 <= rejected(shared, 0.0, 300) <= 0.083
    assert rejected(shared, 0.0, 100, whole=False) > 0.12  # rows taken for independent
    assert rejected(shared, 1.0, 50) > 0.6


def test_groups_in_both_samples_are_compared_within_themselves() -> None:
    """Rows of one shared group change places with each other only: 2 of its 6 rows can be new in 15 ways."""
    parts, second = with_ones(np.arange(6.0)[:, None]), np.array([0, 0, 0, 0, 1, 1], dtype=bool)
    found = bs.two_sample(parts, second, ["g"] * 6, bs.mean_distance, resamples=30_000)
    assert found.least == pytest.approx(1 / 15)
    assert found.p_value == pytest.approx(2 / 15, rel=0.15)


@pytest.mark.parametrize(
    ("second", "groups", "message"),
    [
        ([True] * 4, None, "at least one row"),
        ([False, True], None, "for each row"),
        ([False, True, True, True], ["a"], "for each row"),
    ],
)
def test_bad_samples_are_refused(second: list[bool], groups: list[str] | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bs.two_sample(np.ones((4, 2)), second, groups, bs.mean_distance)


@pytest.mark.parametrize(("a", "n", "b", "m"), [(45, 60, 30, 55), (0, 20, 3, 90), (9, 9, 80, 100)])
def test_the_difference_of_two_shares_is_newcombes(a: int, n: int, b: int, m: int) -> None:
    wanted = proportion.confint_proportions_2indep(a, n, b, m, compare="diff", method="newcomb", alpha=0.1)
    bounds = [proportion.proportion_confint(k, size, 0.1, method="wilson") for k, size in ((a, n), (b, m))]
    assert bs.independent_difference(a / n, b / m, *bounds) == pytest.approx(wanted, abs=1e-9)


def test_an_estimate_outside_its_bounds_is_refused() -> None:
    with pytest.raises(UsageError, match="between their bounds"):
        bs.independent_difference(0.5, 0.5, (0.6, 0.7), (0.4, 0.6))
