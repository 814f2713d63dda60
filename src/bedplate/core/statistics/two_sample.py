"""Two samples of different rows: do they come from one distribution, and how far apart are two estimates?

The permutation test moves whole groups between the samples; rows of a group that has some in both change places with
each other only. That is exact where groups (with their sizes) are exchangeable, and rows within a shared group.
p = (1 + count) / (1 + B) (Phipson & Smyth 2010), or h / l where the l-th permutation is the h-th as extreme: most tests
that find nothing end early (Besag & Clifford 1991, Biometrika 78:301). Distance of samples: maximum mean discrepancy
(Gretton et al. 2012, JMLR 13:723). Difference of independent estimates: MOVER (Zou & Donner 2008, Statistics in
Medicine 27:1693; of proportions, Newcombe 1998).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bedplate.core.errors import UsageError
from bedplate.core.statistics.clusters import group_codes

Between = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
"""Sums of rows of the first and of the second sample [..., d] → the statistic [...], large where they differ."""

_TOLERANCE = 1e-10
_AT_ONCE = 1 << 20
EXTREMES = 200
"""So many permutations as extreme as the samples are enough to know a p-value (to about 7% of itself)."""


@dataclass(frozen=True)
class TwoSample:
    """`expected`: the statistic's mean over the permutations, what chance alone makes of it. least: no p-value of these
    groups can be smaller, whatever the rows are."""

    statistic: float
    expected: float
    p_value: float
    least: float
    resamples: int


def two_sample(
    parts: ArrayLike,
    second: ArrayLike,
    groups: Sequence[Hashable] | None,
    statistic: Between,
    *,
    seed: int = 0,
    resamples: int = 9_999,
    advance: Callable[[int], None] = lambda _: None,
) -> TwoSample:
    """Whether `statistic` of sums of `parts` [n, d] is larger than chance makes it, one-sided.

    second: bool [n], which sample a row is of. groups: None where every row is one of its own. advance: told after some
    permutations how many they were, at most `resamples` in all. UsageError for an empty sample, or for other lengths
    than n.
    """
    rows = np.asarray(parts, dtype=np.float64)
    mask = np.asarray(second, dtype=bool)
    if rows.ndim != 2 or mask.shape != (len(rows),) or (groups is not None and len(groups) != len(rows)):
        raise UsageError(f"{rows.shape} parts, {mask.shape} sample marks: give both, and a group, for each row")
    if mask.all() or not mask.any():
        raise UsageError("both samples need at least one row")
    strata = _strata(rows, mask, groups)
    fixed = [sum((labels.astype(float) @ units for units, labels in strata), np.zeros(rows.shape[1]))]
    total = rows.sum(0)
    observed = float(statistic(total - fixed[0], fixed[0]))
    bar = observed - _TOLERANCE * max(1.0, abs(observed))
    rng = np.random.Generator(np.random.PCG64(seed))
    step = max(1, _AT_ONCE // sum(len(labels) for _, labels in strata))
    least = math.exp(-sum(_log_ways(labels) for _, labels in strata))
    extreme = done = 0
    summed = 0.0
    while done < resamples:
        drawn = np.zeros((min(step, resamples - done), rows.shape[1]))
        for units, labels in strata:
            drawn += rng.permuted(np.tile(labels, (len(drawn), 1)), axis=1).astype(np.float64) @ units
        values = statistic(total - drawn, drawn)
        places = np.flatnonzero(values >= bar)
        summed += float(values.sum())
        if extreme + places.size >= EXTREMES:
            last = done + int(places[EXTREMES - extreme - 1]) + 1
            return TwoSample(observed, summed / (done + len(values)), EXTREMES / last, least, last)
        extreme, done = extreme + places.size, done + len(values)
        advance(len(values))
    return TwoSample(observed, summed / done, (1 + extreme) / (1 + done), least, done)


def _strata(
    rows: NDArray[np.float64], mask: NDArray[np.bool_], groups: Sequence[Hashable] | None
) -> list[tuple[NDArray[np.float64], NDArray[np.bool_]]]:
    """What changes places, [units, d] with the sample that each is of: groups of one sample, and within each group of
    both its rows."""
    if groups is None:
        return [(rows, mask)]
    codes, count = group_codes(groups)
    sizes, of_second = np.bincount(codes, minlength=count), np.bincount(codes, weights=mask, minlength=count)
    whole = (of_second == 0) | (of_second == sizes)
    sums = np.zeros((count, rows.shape[1]))
    np.add.at(sums, codes, rows)
    strata = [(sums[whole], of_second[whole] > 0)] if whole.any() else []
    members = np.split(np.argsort(codes, kind="stable"), np.cumsum(sizes)[:-1])
    return strata + [(rows[members[code]], mask[members[code]]) for code in np.flatnonzero(~whole).tolist()]


def _log_ways(labels: NDArray[np.bool_]) -> float:
    n, k = labels.size, int(labels.sum())
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


# --- statistics of sums


def mean_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance of the samples' means, from sums of features and 1 [..., d + 1]: the maximum mean discrepancy of a
    kernel whose features these are; of ranks, what Wilcoxon's test looks at."""
    apart = b[..., :-1] / b[..., -1:] - a[..., :-1] / a[..., -1:]
    return np.sqrt((apart**2).sum(-1))


def share_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson's chi-square over the product of the samples' sizes, from sums of 0/1 marks and 1 [..., d + 1]: of marks
    that exclude each other, that of their table."""
    whole = a[..., :-1] + b[..., :-1]
    apart = (b[..., :-1] / b[..., -1:] - a[..., :-1] / a[..., -1:]) ** 2
    return np.divide(apart, whole, out=np.zeros_like(apart), where=whole > 0).sum(-1)


# --- two estimates


def independent_difference(
    a: float, b: float, a_bounds: tuple[float, float], b_bounds: tuple[float, float]
) -> tuple[float, float]:
    """Bounds of a - b from the lower and the upper bound of each, for estimates from different rows (MOVER): at the
    same confidence as those, one-sided or two-sided."""
    (a_low, a_high), (b_low, b_high) = a_bounds, b_bounds
    if not (a_low <= a <= a_high and b_low <= b <= b_high):
        raise UsageError(f"estimates lie between their bounds: {a_low} ≤ {a} ≤ {a_high}, {b_low} ≤ {b} ≤ {b_high}")
    return a - b - math.hypot(a - a_low, b_high - b), a - b + math.hypot(a_high - a, b - b_low)
