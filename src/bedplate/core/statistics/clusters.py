"""Rows that come in groups (sentences of one review): the group, not the row, is what was sampled.

Clustered variance: Liang & Zeger (1986) with the G/(G-1) correction, as in statsmodels `cov_type="cluster"`; for bounds
and tests as `unequal` corrects it for groups of different sizes. Bounds of a proportion: Korn & Graubard (1998), Survey
Methodology 24:193: the exact binomial bound at the effective n = n / design effect, shrunk once more by
(t[n-1] / t[f])^2 because the variance was estimated, with f degrees of freedom. Skewness of the groups' rates beyond
that of a binomial: as Johnson (1978), JASA 73:536, in t.
Few groups make all of it unreliable: under `MINIMUM_GROUPS` there is no bound (Cameron, Gelbach & Miller 2008).

`likeness` is the intra-class correlation of rows that are vectors, with the sums of squares added over their numbers:
Anderson's (2001, Austral Ecology 26:32) split of squared distances. Its p-value is of permutations of rows over the
groups; they end early where many reach what was observed (Besag & Clifford 1991, Biometrika 78:301).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bedplate.core.errors import UsageError
from bedplate.core.statistics.missed import missed_groups_bound
from bedplate.core.statistics.proportions import Side, binomial_lower, binomial_upper, check_confidence, values_needed
from bedplate.core.statistics.unequal import (
    EQUAL_WEIGHTS,
    MINIMUM_GROUPS,
    NO_TREND,
    Floats,
    Ints,
    check_groups,
    heavy_jump,
    robust,
    set_apart,
    size_trend,
    skewness,
    worth,
)

SKEWNESS_SHARE = 0.75
"""The share of the correction for skewness that is made. Whole, it costs 3.4 points of power where 60 equal groups have
a correlation of 0.2; without it, candidates at a bar of 0.9 pass in over 5% with 40 of them (benchmarks/gate.py)."""
Groups = Sequence[Hashable] | NDArray[np.generic]


@dataclass(frozen=True)
class RobustMean:
    """Mean of n rows in G groups, with its standard error and degrees of freedom for groups of any sizes; worth: how
    many groups of one size they are as good as; jump: what one more heavy row would move it by, 0 where rows have one
    weight."""

    mean: float
    se: float
    freedom: float
    n: int
    groups: int
    worth: float
    jump: float = 0.0

    def half_width(self, quantile: float) -> float:
        """The half-width of an interval with this quantile of t. It allows for what heavy rows that did not fail could
        hide, by the mean and the variance that one more of them would add (Fay & Feuer 1997)."""
        return self.jump + quantile * math.hypot(self.se, self.jump)


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


def group_codes(groups: Groups) -> tuple[Ints, int]:
    """Groups → integer codes [n] in order of first appearance, and how many there are."""
    if isinstance(groups, np.ndarray):
        if groups.size and groups.dtype.kind == "i":
            codes = groups.astype(np.int64, copy=False)
            highest = np.maximum.accumulate(codes)
            if codes[0] == 0 <= codes.min() and (np.diff(highest) <= 1).all():
                return codes, int(highest[-1]) + 1  # they are such codes: nothing is sorted
        _, first, codes = np.unique(groups, return_index=True, return_inverse=True)
        place = np.empty(first.size, dtype=np.int64)
        place[np.argsort(first)] = np.arange(first.size)
        return place[codes], int(first.size)
    code_by_group: dict[Hashable, int] = {}
    numbered = (code_by_group.setdefault(group, len(code_by_group)) for group in groups)
    codes = np.fromiter(numbered, dtype=np.int64, count=len(groups))
    return codes, len(code_by_group)


def group_sums(values: Floats, codes: Ints, count: int) -> Floats:
    """Sums of `values` [n] over the rows of each group [G]."""
    return np.asarray(np.bincount(codes, weights=values, minlength=count), dtype=np.float64)


def robust_mean(values: ArrayLike, groups: Groups, weights: Floats | None = None) -> RobustMean:
    """Mean of `values` [n] for t intervals, whatever the sizes of the groups (`unequal`). Nothing is known of the
    spread where there is one group: se is nan. weights: of the rows [n], where they differ."""
    x, codes, count = _checked(values, groups)
    w = checked_weights(weights, x.size)
    sizes, squares = group_sums(w, codes, count), group_sums(w**2, codes, count)
    mean = float(w @ x) / float(w.sum())
    if count == 1:
        return RobustMean(mean, math.nan, 0.0, x.size, 1, 1.0)
    icc = _correlation(x, codes, count)
    robust_fit = robust(group_sums(w * (x - mean), codes, count), sizes, icc, squares)
    jump = heavy_jump(sizes, squares, 0.0 if count == x.size else icc) if np.ptp(w) > EQUAL_WEIGHTS else 0.0
    return RobustMean(mean, math.sqrt(robust_fit.variance), robust_fit.freedom, x.size, count, worth(sizes), jump)


def checked_weights(weights: ArrayLike | None, n: int) -> Floats:
    """The weights of n rows, 1 on average; all 1 where there are none. UsageError for what are no weights of them."""
    if weights is None:
        return np.ones(n)
    w = np.asarray(weights, dtype=np.float64)
    if w.shape != (n,) or not (np.isfinite(w).all() and (w > 0).all()):
        raise UsageError(f"weights must be {n} positive numbers, one for each row")
    return w / w.mean()


def design_effect(values: ArrayLike, groups: Groups, weights: Floats | None = None) -> float:
    """Variance of the mean of rows in groups over the variance that independent rows of one weight would have; may be
    below 1.

    Where all values are equal the effect cannot be seen: the answer is then Σm² / n, as if a group were one row.
    """
    x, codes, count = _checked(values, groups)
    w = checked_weights(weights, x.size)
    variance = float(w @ (x - float(w @ x) / x.size) ** 2) / x.size / (x.size - 1) if x.size > 1 else 0.0
    if variance == 0 or count == 1:
        return x.size / worth(group_sums(w, codes, count))
    return robust_mean(x, codes, weights).se ** 2 / variance


def intraclass_correlation(values: ArrayLike, groups: Groups) -> float:
    """One-way ANOVA estimator of the correlation within groups (Fisher 1925); nan where it is undefined."""
    return _correlation(*_checked(values, groups))


def _correlation(x: Floats, codes: Ints, count: int) -> float:
    sizes = np.bincount(codes, minlength=count).astype(float)
    n = x.size
    if count < 2 or n == count:
        return math.nan
    means = np.bincount(codes, weights=x, minlength=count) / sizes
    between_variance = float((sizes * (means - x.mean()) ** 2).sum()) / (count - 1)
    within_variance = float(((x - means[codes]) ** 2).sum()) / (n - count)
    typical = (n - float((sizes**2).sum()) / n) / (count - 1)
    total = between_variance + (typical - 1) * within_variance
    return math.nan if total == 0 else (between_variance - within_variance) / total


def effective_n_bound(
    successes: ArrayLike,
    groups: Groups | None,
    confidence: float = 0.95,
    side: Side = "lower",
    *,
    minimum_groups: int = MINIMUM_GROUPS,
    weights: Floats | None = None,
) -> Bound:
    """One-sided bound of a proportion from 0/1 rows [n] in groups.

    groups None, or every row its own group: rows are independent and the bound is exact binomial. weights: of the rows
    [n], where they differ; the proportion is then Σwx / Σw, and rows without groups are groups of one.
    Raises InsufficientGroups under `minimum_groups` groups, or where they are worth less than half of that; the few
    that dominate the others (`set_apart`) do not count. The width is never zero (20 of 20 is not certainty).
    """
    x = np.asarray(successes, dtype=float)
    check_confidence(confidence)
    if x.size and not np.isin(x, (0.0, 1.0)).all():
        raise UsageError("successes must be 0 or 1 for each row; use bca_cluster_bootstrap for other scores")
    if groups is None:
        groups = np.arange(x.size)
    x, codes, count = _checked(x, groups)
    w = checked_weights(weights, x.size)
    n, share = int(x.size), min(float(w @ x) / x.size, 1.0)  # what rounding adds to a sum of weights is no success
    if count == n and np.ptp(w) <= EQUAL_WEIGHTS:
        value = (binomial_lower if side == "lower" else binomial_upper)(float(x.sum()), n, confidence)
        return Bound(value, side, confidence, share, n, count, 1.0, float(n))
    sizes = group_sums(w, codes, count)
    rest, alone = set_apart(codes, sizes, w)
    check_groups(sizes[np.unique(codes[rest])], minimum_groups, n)
    if not rest.all():
        bound = partial(effective_n_bound, confidence=confidence, side=side, minimum_groups=minimum_groups)
        others, whole = bound(x[rest], codes[rest]), bound(x, alone)
        value, effect = (min if side == "lower" else max)(others.value, whole.value), n / others.effective_n
        return Bound(value, side, confidence, share, n, count, max(1.0, effect), others.effective_n)
    value, effect, effective = _lower(x if side == "lower" else 1 - x, codes, count, w, confidence)
    return Bound(value if side == "lower" else 1 - value, side, confidence, share, n, count, effect, effective)


def _lower(x: Floats, codes: Ints, count: int, w: Floats, confidence: float) -> tuple[float, float, float]:
    """The lower bound of a share of weighted rows in groups, with its design effect and its effective n."""
    from scipy.special import stdtrit

    n, share = x.size, min(float(w @ x) / x.size, 1.0)
    sizes, squares, cubes = (group_sums(w**power, codes, count) for power in (1, 2, 3))
    sums, weighted = group_sums(w * x, codes, count), bool(np.ptp(w) > EQUAL_WEIGHTS)
    icc = _correlation(x, codes, count) if count < n else 0.0
    robust_fit = robust(sums - share * sizes, sizes, icc, squares)
    plain = share * (1 - share) / (n - 1)
    effect = max(1.0, robust_fit.variance / plain if plain > 0 else n / worth(sizes))
    normal, t_quantile = (float(stdtrit(freedom, confidence)) for freedom in (n - 1, robust_fit.freedom))

    def at(quantile: float) -> tuple[float, float]:
        effective = n / effect * (normal / quantile) ** 2
        return binomial_lower(share * effective, effective, confidence), effective

    trend = size_trend(sums, sizes) if count < n else NO_TREND
    variances = squares * (1 - robust_fit.icc) + sizes**2 * robust_fit.icc
    value, effective = at(t_quantile)
    if 0 < value < 1 and (robust_fit.icc > 0 or weighted or trend.beyond < 0) and plain > 0:
        # t leans as the mean does: -(2t² + 1)/6 of its skewness. That of a binomial is in the bound already.
        binomial = skewness(np.full(1, n**2 / float(variances.sum())), value, 0.0)
        beyond = binomial - skewness(sizes, value, robust_fit.icc, squares, cubes, trend.deviations)
        if beyond > 0:
            value, effective = at(t_quantile + SKEWNESS_SHARE * beyond * (2 * t_quantile**2 + 1) / 6)
    if weighted and value > 0:
        value = min(value, _heavy_failure(share, robust_fit.variance, heavy_jump(sizes, squares, icc), confidence))
    value = max(value + trend.beyond, 0.0)
    if count < n:
        value = missed_groups_bound(sizes - sums, sizes, n / float(w @ w / n), value, confidence)
    return value, effect, effective


def _heavy_failure(share: float, variance: float, jump: float, confidence: float) -> float:
    """The lower bound of a share where one more failure would be one of the heavy rows.

    A weighted sum of failures is bounded by a gamma of the same mean and variance, with one more failure of the largest
    weight (Fay & Feuer 1997, Statistics in Medicine 16:791); here by the beta of which Clopper and Pearson's bound is
    the case of one weight, and the further failure has the weight that makes most of the variance (`heavy_jump`).
    """
    from scipy.special import betaincinv

    effective = (1 - share + jump) / (variance / share + jump**2)
    return 1 - float(betaincinv(effective * (1 - share + jump), effective * share, confidence))


def groups_needed(bar: float, confidence: float) -> int:
    """The least groups, of ten rows each, that have their lower bound above `bar` (over 0, under 1) where no row is a
    failure."""
    count = max(MINIMUM_GROUPS, math.floor(math.log(1 - confidence) / math.log(bar)) + 1)
    while effective_n_bound(np.ones(10 * count), np.repeat(np.arange(count), 10), confidence).value <= bar:
        count += max(1, count // 100)
    return count


def units_to_show(bar: float, confidence: float, *, grouped: bool) -> int:
    """The least rows, or where these are grouped the least groups, that show `bar` where none is a failure."""
    return groups_needed(bar, confidence) if grouped else values_needed(bar, confidence)


def effective_n_interval(
    successes: ArrayLike,
    groups: Groups | None,
    confidence: float = 0.95,
    *,
    minimum_groups: int = MINIMUM_GROUPS,
    weights: Floats | None = None,
) -> tuple[float, float]:
    """Two-sided interval from the two one-sided bounds, (1 - confidence) / 2 on each side."""
    side_confidence = 1 - (1 - confidence) / 2
    low = effective_n_bound(successes, groups, side_confidence, "lower", minimum_groups=minimum_groups, weights=weights)
    high = effective_n_bound(
        successes, groups, side_confidence, "upper", minimum_groups=minimum_groups, weights=weights
    )
    return low.value, high.value


def _checked(values: ArrayLike, groups: Groups) -> tuple[Floats, Ints, int]:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0:
        raise UsageError("values must be a non-empty list of numbers")
    if not np.isfinite(x).all():
        raise UsageError(f"values must be finite; row {int(np.argmin(np.isfinite(x)))} is not")
    if len(groups) != x.size:
        raise UsageError(f"{x.size} values but {len(groups)} groups: give one group for each row")
    codes, count = group_codes(groups)
    return x, codes, count


ENOUGH = 10
"""So many permutations that reach what was observed end the test."""


@dataclass(frozen=True)
class Likeness:
    """icc: the correlation of two rows of one group, added over the vector's numbers; nan where no group has two rows,
    or nothing varies. p_value: one-sided, that groups are no more alike than this by chance."""

    icc: float
    p_value: float
    n: int
    groups: int


def likeness(vectors: NDArray[np.floating], codes: Ints, *, permutations: int = 999, seed: int = 0) -> Likeness:
    """Likeness of rows [n, d], with the numbers of their groups [n]. Raises UsageError where these do not fit."""
    if vectors.ndim != 2 or codes.shape != vectors.shape[:1] or not codes.size:
        raise UsageError(f"one group for each row of vectors: shapes {vectors.shape} and {codes.shape}")
    order = np.argsort(codes, kind="stable")
    _, starts, sizes = np.unique(codes[order], return_index=True, return_counts=True)
    n, groups = codes.size, sizes.size
    x = np.asarray(vectors, dtype=np.float64) - vectors.mean(axis=0)
    total = float((x**2).sum())
    if groups in (1, n) or total <= 1e-12 * n:
        return Likeness(float("nan"), 1.0, n, groups)

    def between_sum(rows: Floats) -> float:
        sums = np.add.reduceat(rows, starts, axis=0)
        return float(((sums**2).sum(axis=1) / sizes).sum())

    observed = between_sum(x[order])
    rng = np.random.Generator(np.random.PCG64(seed))
    reached = trials = 0
    while trials < permutations and reached < ENOUGH:
        trials += 1
        reached += between_sum(x[rng.permutation(n)]) >= observed - 1e-9 * total
    mean_between, mean_within = observed / (groups - 1), (total - observed) / (n - groups)
    typical = (n - float((sizes**2).sum()) / n) / (groups - 1)
    icc = (mean_between - mean_within) / (mean_between + (typical - 1) * mean_within)
    p_value = reached / trials if reached >= ENOUGH else (1 + reached) / (1 + trials)
    return Likeness(icc, p_value, n, groups)
