"""Rows that come in groups (sentences of one review): the group, not the row, is what was sampled.

Clustered variance: Liang & Zeger (1986) with the G/(G-1) correction, as in statsmodels `cov_type="cluster"`.
Bounds of a proportion: Korn & Graubard (1998), Survey Methodology 24:193: the exact binomial bound at the effective
n = n / design effect, shrunk once more by (t[n-1] / t[G-1])^2 because the variance was estimated from G groups.
Few groups make that variance unreliable: under `MINIMUM_GROUPS` there is no bound (Cameron, Gelbach & Miller 2008).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bedplate.core.errors import DataError, UsageError
from bedplate.core.statistics.proportions import Side, binomial_lower, binomial_upper, check_confidence

MINIMUM_GROUPS = 40
Groups = Sequence[Hashable] | NDArray[np.generic]


class InsufficientGroups(DataError):
    """Too few groups for a clustered bound: the verdict is INSUFFICIENT DATA, whatever the estimate."""

    code = "insufficient_groups"

    def __init__(self, groups: int, needed: int) -> None:
        super().__init__(
            f"{groups} groups are too few for a bound that allows for correlation within groups; "
            f"at least {needed} are needed: label rows from more groups"
        )
        self.groups = groups
        self.needed = needed


@dataclass(frozen=True)
class ClusteredMean:
    """Mean of n rows in G groups with its cluster-robust standard error (nan when G is 1)."""

    mean: float
    se: float
    n: int
    groups: int


@dataclass(frozen=True)
class Bound:
    """A one-sided bound of a proportion. `effective_n` is what the exact binomial bound was taken at."""

    value: float
    side: Side
    confidence: float
    estimate: float
    n: int
    groups: int
    design_effect: float
    effective_n: float


def group_codes(groups: Groups) -> tuple[NDArray[np.int64], int]:
    """Groups → integer codes [n] in order of first appearance, and how many there are."""
    if isinstance(groups, np.ndarray):
        _, first, codes = np.unique(groups, return_index=True, return_inverse=True)
        place = np.empty(first.size, dtype=np.int64)
        place[np.argsort(first)] = np.arange(first.size)
        return place[codes], int(first.size)
    seen: dict[Hashable, int] = {}
    codes = np.fromiter((seen.setdefault(g, len(seen)) for g in groups), dtype=np.int64, count=len(groups))
    return codes, len(seen)


def clustered_mean(values: ArrayLike, groups: Groups) -> ClusteredMean:
    """Mean of `values` [n] and its standard error when rows of one group are correlated in any way."""
    x, codes, count = _checked(values, groups)
    mean = float(x.mean())
    if count == 1:
        return ClusteredMean(mean, math.nan, x.size, 1)
    sums = np.bincount(codes, weights=x - mean, minlength=count)
    variance = count / (count - 1) * float(sums @ sums) / x.size**2
    return ClusteredMean(mean, math.sqrt(variance), x.size, count)


def design_effect(values: ArrayLike, groups: Groups) -> float:
    """Clustered variance of the mean over the variance that independent rows would have; may be below 1.

    Where all values are equal the effect cannot be seen: the answer is then n / G, as if a group were one row.
    """
    x, _, count = _checked(values, groups)
    clustered = clustered_mean(values, groups)
    variance = float(x.var(ddof=1)) / x.size if x.size > 1 else 0.0
    if variance == 0 or count == 1:
        return x.size / count
    return clustered.se**2 / variance


def intraclass_correlation(values: ArrayLike, groups: Groups) -> float:
    """One-way ANOVA estimator of the correlation within groups (Fisher 1925); nan where it is undefined."""
    x, codes, count = _checked(values, groups)
    sizes = np.bincount(codes, minlength=count).astype(float)
    n = x.size
    if count < 2 or n == count:
        return math.nan
    means = np.bincount(codes, weights=x, minlength=count) / sizes
    between = float((sizes * (means - x.mean()) ** 2).sum()) / (count - 1)
    within = float(((x - means[codes]) ** 2).sum()) / (n - count)
    typical = (n - float((sizes**2).sum()) / n) / (count - 1)
    total = between + (typical - 1) * within
    return math.nan if total == 0 else (between - within) / total


def effective_n_bound(
    successes: ArrayLike,
    groups: Groups | None,
    confidence: float = 0.95,
    side: Side = "lower",
    *,
    minimum_groups: int = MINIMUM_GROUPS,
) -> Bound:
    """One-sided bound of a proportion from 0/1 rows [n] in groups.

    groups None, or every row its own group: rows are independent and the bound is exact binomial.
    Raises InsufficientGroups under `minimum_groups` groups. The width is never zero (20 of 20 is not certainty).
    """
    from scipy.special import stdtrit

    x = np.asarray(successes, dtype=float)
    check_confidence(confidence)
    if x.size and not np.isin(x, (0.0, 1.0)).all():
        raise UsageError("successes must be 0 or 1 for each row; use bca_cluster_bootstrap for other scores")
    if groups is None:
        groups = np.arange(x.size)
    x, _, count = _checked(x, groups)
    n = int(x.size)
    right = float(x.sum())
    if count == n:
        effect, effective = 1.0, float(n)
    else:
        if count < minimum_groups:
            raise InsufficientGroups(count, minimum_groups)
        if count < 2:
            raise InsufficientGroups(count, 2)
        effect = max(1.0, design_effect(x, groups))
        shrink = float(stdtrit(n - 1, confidence) / stdtrit(count - 1, confidence)) ** 2
        effective = n / effect * shrink
    bound = binomial_lower if side == "lower" else binomial_upper
    value = bound(right / n * effective, effective, confidence)
    return Bound(value, side, confidence, right / n, n, count, effect, effective)


def effective_n_interval(
    successes: ArrayLike, groups: Groups | None, confidence: float = 0.95, *, minimum_groups: int = MINIMUM_GROUPS
) -> tuple[float, float]:
    """Two-sided interval from the two one-sided bounds, (1 - confidence) / 2 on each side."""
    each = 1 - (1 - confidence) / 2
    low = effective_n_bound(successes, groups, each, "lower", minimum_groups=minimum_groups)
    high = effective_n_bound(successes, groups, each, "upper", minimum_groups=minimum_groups)
    return low.value, high.value


def _checked(values: ArrayLike, groups: Groups) -> tuple[NDArray[np.float64], NDArray[np.int64], int]:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0:
        raise UsageError("values must be a non-empty list of numbers")
    if not np.isfinite(x).all():
        raise UsageError(f"values must be finite; row {int(np.argmin(np.isfinite(x)))} is not")
    if len(groups) != x.size:
        raise UsageError(f"{x.size} values but {len(groups)} groups: give one group for each row")
    codes, count = group_codes(groups)
    return x, codes, count
