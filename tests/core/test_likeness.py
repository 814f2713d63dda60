"""Rows alike within groups: the intra-class correlation, Anderson's distances, and the level of the test."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import pdist, squareform

from bedplate.core.errors import UsageError
from bedplate.core.statistics.clusters import intraclass_correlation, likeness


def grouped(seed: int, icc: float, sizes: list[int], width: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(len(sizes)), sizes)
    group_effects = rng.standard_normal((len(sizes), width))[codes]
    return np.sqrt(icc) * group_effects + np.sqrt(1 - icc) * rng.standard_normal((codes.size, width)), codes


def test_one_number_is_the_correlation_and_the_test_that_everybody_knows() -> None:
    values, codes = grouped(0, 0.02, [3, 8, 5, 12, 7, 9, 4, 6] * 3)
    shuffled = np.random.default_rng(1).permutation(codes.size)
    result = likeness(values[shuffled], codes[shuffled], permutations=4000)
    assert result.icc == pytest.approx(intraclass_correlation(values[:, 0], codes))
    expected = stats.f_oneway(*(values[codes == code, 0] for code in np.unique(codes))).pvalue
    assert result.p_value == pytest.approx(expected, abs=0.1)
    assert (result.n, result.groups) == (codes.size, 24)


def test_several_numbers_are_squared_distances() -> None:
    """Anderson (2001): sums of squares within groups are sums of squared distances over the sizes."""
    values, codes = grouped(2, 0.3, [4] * 12, width=5)
    distances = squareform(pdist(values)) ** 2
    total = distances.sum() / 2 / codes.size
    within_ss = sum(distances[np.ix_(codes == code, codes == code)].sum() / 2 / 4 for code in range(12))
    between_ms, within_ms = (total - within_ss) / 11, within_ss / (codes.size - 12)
    result = likeness(values, codes)
    assert result.icc == pytest.approx((between_ms - within_ms) / (between_ms + 3 * within_ms))
    assert result.p_value == 1 / 1000


def test_groups_that_mean_nothing_are_called_alike_as_often_as_said() -> None:
    p_values = [likeness(*grouped(seed, 0.0, [2, 3, 7, 4, 4] * 4, 3), seed=seed).p_value for seed in range(200)]
    assert stats.binomtest(sum(p <= 0.1 for p in p_values), 200, 0.1, alternative="greater").pvalue > 0.001


def test_what_cannot_be_told() -> None:
    values, _ = grouped(0, 0.0, [1] * 9)
    for codes in (np.arange(9), np.zeros(9, np.int64)):
        result = likeness(values, codes)
        assert (np.isnan(result.icc), result.p_value) == (True, 1.0)
    assert np.isnan(likeness(np.ones((9, 2)), np.arange(9) // 3).icc)
    with pytest.raises(UsageError, match="one group for each row"):
        likeness(values, np.arange(8))
