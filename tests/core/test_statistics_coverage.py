"""How often nominal 95% intervals hold the truth, over a grid of true values: exactly where rows are independent, by
simulation where they come in groups, from the fewest groups up that have a bound."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.special import betaincinv, stdtrit

from bedplate.core import statistics as bs
from bedplate.core.statistics import MINIMUM_GROUPS

GRID = np.concatenate([[0.01, 0.02], np.arange(0.05, 0.96, 0.05), [0.98, 0.99]])


@pytest.mark.parametrize("n", [50, 200, 1000])
def test_independent_rows_are_covered_exactly(n: int) -> None:
    """The sum of binomial probabilities of the outcomes whose interval holds the truth: nothing is drawn."""
    ends = np.array([bs.binomial_interval(k, n) for k in range(n + 1)])
    wilson = np.array([bs.wilson(k, n) for k in range(n + 1)])
    for intervals, least in ((ends, 0.95), (wilson, 0.90)):
        covered = []
        for truth in GRID:
            inside = (intervals[:, 0] <= truth) & (truth <= intervals[:, 1])
            covered.append(float(stats.binom.pmf(np.flatnonzero(inside), n, truth).sum()))
        if least == 0.95:
            assert min(covered) >= 0.95  # exact bounds never fall short
        assert np.mean(covered) >= 0.93
        # Wilson's interval is for orientation: at the ends of the grid it may dip (Brown, Cai & DasGupta 2001)
        middle = [c for c, truth in zip(covered, GRID, strict=True) if least == 0.95 or n * min(truth, 1 - truth) >= 5]
        assert min(middle) >= 0.90


def clustered_coverage(
    truth: float, groups: int, icc: float, runs: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Share of two-sided intervals that hold `truth`, and their mean width.

    The library's own bound on every 50th sample; on all of them the same formula on arrays.
    """
    sizes = rng.integers(2, 16, (runs, groups))
    rate = rng.beta(truth * (1 / icc - 1), (1 - truth) * (1 / icc - 1), (runs, groups))
    sums = rng.binomial(sizes, rate)
    n, mean = sizes.sum(1), sums.sum(1) / sizes.sum(1)
    clustered = groups / (groups - 1) * ((sums - mean[:, None] * sizes) ** 2).sum(1) / n**2
    plain = mean * (1 - mean) / (n - 1)
    effect = np.where(plain > 0, clustered / np.where(plain > 0, plain, 1), n / groups)
    shrink = (stdtrit(n - 1, 0.975) / stdtrit(groups - 1, 0.975)) ** 2
    effective = n / np.maximum(1, effect) * shrink
    right = mean * effective
    low = np.where(mean > 0, betaincinv(np.maximum(right, 1e-12), effective - right + 1, 0.025), 0)
    high = np.where(mean < 1, betaincinv(right + 1, np.maximum(effective - right, 1e-12), 0.975), 1)
    for i in range(0, runs, 50):
        codes = np.repeat(np.arange(groups), sizes[i])
        x = np.concatenate([np.arange(size) < right for size, right in zip(sizes[i], sums[i], strict=True)])
        assert bs.effective_n_interval(x.astype(float), codes) == pytest.approx((low[i], high[i]), abs=1e-9)
    return float(((low <= truth) & (truth <= high)).mean()), float(np.mean(high - low))


@pytest.mark.parametrize("icc", [0.02, 0.1])
@pytest.mark.parametrize("groups", [MINIMUM_GROUPS, 60, 200])
def test_rows_in_groups_are_covered(groups: int, icc: float) -> None:
    rng = np.random.default_rng(groups + round(1000 * icc))
    found = [clustered_coverage(float(truth), groups, icc, 400, rng) for truth in GRID if 0.05 <= truth <= 0.95]
    covered = [one[0] for one in found]
    assert np.mean(covered) >= 0.93
    assert min(covered) >= 0.90
    assert max(one[1] for one in found) < 0.25  # and says something


@pytest.mark.parametrize("n", [50, 200, 1000])
def test_paired_differences_are_covered(n: int) -> None:
    rng = np.random.default_rng(n)
    covered = []
    for gain, loss in ((0.05, 0.05), (0.1, 0.05), (0.2, 0.05), (0.3, 0.2)):
        kinds = rng.choice([1.0, -1.0, 0.0], p=[gain, loss, 1 - gain - loss], size=(300, n))
        intervals = [bs.paired_difference(row > 0, row < 0).interval for row in kinds]
        covered.append(np.mean([low <= gain - loss <= high for low, high in intervals]))
    assert np.mean(covered) >= 0.93
    assert min(covered) >= 0.90
