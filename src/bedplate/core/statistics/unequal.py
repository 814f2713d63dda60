"""What a cluster-robust variance is worth where groups are few or of unequal sizes.

Forty groups of which one holds a quarter of the rows are no forty. The squared residuals of groups are weighted as in
CR2 (Bell & McCaffrey 2002, Survey Methodology 28:169), and their expectation and degrees of freedom (Satterthwaite) are
those under a working model: rows of a group are equally correlated, at the correlation that was estimated (Imbens &
Kolesár 2016, Review of Economics and Statistics 98:701; for regressions Pustejovsky & Tipton 2018, JBES 36:672). With
groups of one size this is the common rule: G / (G - 1), and G - 1 degrees of freedom.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bedplate.core.errors import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
MINIMUM_GROUPS = 40
"""So many groups at least, which must be worth half as many of one size (`worth`). By simulation (benchmarks/gate.py):
with fewer groups of one size, at a bar of 0.9 and a correlation of 0.2, candidates at the bar pass in over 5%; unequal
ones are held by their degrees of freedom down to a worth of about 10, but then a handful of groups says everything."""


EQUAL_WEIGHTS = 1e-12  # what rounding makes of equal weights
FARTHEST = 3.0
"""How many times the largest group a further one may be taken to be (`size_trend`)."""


class InsufficientGroups(DataError):
    """Too few groups for a clustered bound: the verdict is INSUFFICIENT DATA, whatever the estimate. rows: where there
    are as many as groups, each row stands for itself, and the message speaks of rows."""

    code = "insufficient_groups"

    def __init__(self, groups: int, needed: int, worth: float | None = None, rows: int | None = None) -> None:
        unit, difference = ("rows", "weights") if rows == groups else ("groups", "sizes")
        more = "Label more rows" if unit == "rows" else "Label rows from more groups"
        count, least, remedy = f"{groups} {unit} are", needed, more
        if worth is not None:
            shown = f"{math.floor(10 * worth) / 10:g}"  # never rounded up to what would be enough
            count, least = f"{groups} {unit} of very unequal {difference} count as {shown} equal ones,", needed // 2
            remedy = more if unit == "rows" else f"{more}, and fewer from the largest"
        super().__init__(f"{count} too few for a confidence bound; at least {least} are needed. {remedy}")
        self.groups = groups
        self.needed = needed
        self.worth = worth


@dataclass(frozen=True)
class Robust:
    """The variance of a mean by `robust`, its degrees of freedom, and the correlation within groups that both were
    taken at."""

    variance: float
    freedom: float
    icc: float


def worth(weights: Floats) -> float:
    """How many groups of one size are as good as groups of these sizes [G], where rows of a group are alike:
    (Σm)² / Σm² (Kish 1965)."""
    return float(weights.sum() ** 2 / (weights @ weights))


def check_groups(weights: Floats, minimum: int = MINIMUM_GROUPS, rows: int | None = None) -> None:
    """Raises InsufficientGroups for fewer than `minimum` groups, or ones worth less than half of it. rows: in all of
    the groups."""
    if weights.size < max(2, minimum):
        raise InsufficientGroups(weights.size, max(2, minimum), rows=rows)
    effective_groups = worth(weights)
    if effective_groups < minimum / 2:
        raise InsufficientGroups(weights.size, minimum, effective_groups, rows)


def enough(weights: Floats) -> bool:
    """Whether groups of these sizes [G] allow a bound."""
    try:
        check_groups(weights)
    except InsufficientGroups:
        return False
    return True


def enough_groups(groups: Sequence[Hashable]) -> bool:
    """Whether rows with these groups [n] allow a bound; the few that dominate the others do not count."""
    sizes = np.array(list(Counter(groups).values()), dtype=np.float64)
    return enough(sizes[~dominating(sizes)])


DOMINANCE = 8.0
"""Groups are set apart where the others are worth so many times as many groups as all of them."""


def dominating(sizes: Floats) -> NDArray[np.bool_]:
    """The few largest groups [G], with at most half of the rows, that are worth less than nothing: without them the
    others are worth `DOMINANCE` times as many groups. None in most layouts."""
    order = np.argsort(-sizes, kind="stable")
    rows = sizes.sum() - np.cumsum(sizes[order])[:-1]
    worths = np.where(rows >= sizes.sum() / 2, rows**2 / ((sizes @ sizes) - np.cumsum(sizes[order] ** 2)[:-1]), 0.0)
    apart = np.zeros(sizes.size, dtype=bool)
    if worths.size and worths.max() >= DOMINANCE * worth(sizes):
        apart[order[: int(worths.argmax()) + 1]] = True
    return apart


def set_apart(codes: Ints, sizes: Floats, row_weights: Floats) -> tuple[NDArray[np.bool_], Ints]:
    """Which rows [n] are not of few groups that dominate, on whose variance, of which nothing tells, that of all rows
    would rest; and the groups' numbers [n] where each row of these few is a group. A bound is then the further of two:
    of the other groups, which holds if groups are drawn anew and their sizes say nothing of their rates; and of all
    rows in the second way, which holds if the few stay what they are. Rows of unequal weight are not set apart."""
    apart = dominating(sizes)[codes] & (np.abs(row_weights - 1) <= EQUAL_WEIGHTS).all()
    return ~apart, np.where(apart, sizes.size + np.arange(codes.size), codes)


def robust(residuals: Floats, weights: Floats, icc: float, squares: Floats | None = None) -> Robust:
    """Variance of Σ(sums) / Σ(weights) over groups, from `residuals` [G] = sums - mean × weights.

    weights: rows of each group (or what its rows weigh in a ratio) [G], at least two groups. icc: the correlation
    within groups, taken into 0 to 1; at 1 a group's sum varies as its weight does. Where nothing was seen to vary it
    cannot be known (nan), and 1 is taken. squares: Σw² over the rows of each group, where rows differ in weight.
    """
    rho = min(max(icc, 0.0), 1.0) if math.isfinite(icc) else 1.0
    inverse = 1 / np.maximum(1 - weights / weights.sum(), 1e-12)
    expected, freedom = moments(weights, _variances(weights, rho, squares), inverse)
    observed = float(inverse @ residuals**2) / float(weights.sum()) ** 2
    return Robust(observed / expected, freedom, rho)


def stretch(weights: Floats, icc: float, squares: Floats | None = None) -> tuple[float, float]:
    """What the standard error of a bootstrap of groups with these weights [G] is short by, as a factor, and its degrees
    of freedom. A resample's variance is that of `robust` without the division. squares: as for `robust`."""
    rho = min(max(icc, 0.0), 1.0) if math.isfinite(icc) else 1.0
    expected, freedom = moments(weights, _variances(weights, rho, squares), np.ones_like(weights))
    return 1 / math.sqrt(expected), freedom


def _variances(weights: Floats, rho: float, squares: Floats | None) -> Floats:
    """Variances of the groups' sums, up to a factor, under the working model: Σw² (1 - ρ) + (Σw)² ρ."""
    return (weights if squares is None else squares) * (1 - rho) + weights**2 * rho


def moments(weights: Floats, variances: Floats, a: Floats) -> tuple[float, float]:
    """Moments of Q = Σ a r² over groups, whose sums are independent with `variances` [G]; r is what a sum is off
    the common mean: E[Q] / Σ variances, and Satterthwaite's degrees of freedom 2 E[Q]² / Var[Q].

    r = S - share ΣS has covariance D - h v' - v h' + h h' Σv; with x = v - h Σv / 2 its part off D is -(h x' + x h').
    """
    share, total = weights / weights.sum(), float(variances.sum())
    diagonal = variances - 2 * share * variances + share**2 * total
    x = variances - share * total / 2
    rank_two_sum = 2 * float(a @ share**2) * float(a @ x**2) + 2 * float(a @ (share * x)) ** 2
    off_diagonal = rank_two_sum - float(a**2 @ (2 * share * x) ** 2)
    expected = float(a @ diagonal)
    return expected / total, expected**2 / (float(a**2 @ diagonal**2) + off_diagonal)


def heavy_jump(sizes: Floats, squares: Floats, icc: float) -> float:
    """By how much a mean moves with one more failure among the rows that make most of its variance, where rows differ
    in weight. sizes, squares: Σw and Σw² over the rows of each group [G]."""
    variances = _variances(sizes, min(max(icc, 0.0), 1.0) if math.isfinite(icc) else 1.0, squares)
    return float(variances @ (variances / sizes)) / float(variances.sum() * sizes.sum())


@dataclass(frozen=True)
class SizeTrend:
    """deviations: of the sums of groups [G] from what the mean makes of them, where larger groups are worse; beyond:
    what one more group, beyond the largest, would add to the mean, 0 or less."""

    deviations: Floats | None
    beyond: float


NO_TREND = SizeTrend(None, 0.0)


def size_trend(sums: Floats, sizes: Floats) -> SizeTrend:
    """The trend of groups' means over the logarithm of their sizes [G], where it falls; none where they have one size.

    Sizes are drawn as groups are, and the largest say most of the mean: where they are worse, a sample that has few of
    them reads too high and its spread too small. The slope is shrunk by its own error, for most samples have one by
    chance (the positive part of James and Stein's estimate, with errors robust to unequal groups). The further group
    has the size that is expected beyond the largest in a tail as heavy as that of the √G largest seems (Hill 1975,
    Annals of Statistics 3:1163), at most `FARTHEST` times.
    """
    logs, total = np.log(sizes), float(sizes.sum())
    centred = logs - float(sizes @ logs) / total
    spread = float(sizes @ centred**2)
    slope = float(centred @ sums) / spread if spread > 1e-12 * total else 0.0
    if slope >= 0:
        return NO_TREND
    residuals = sums - (float(sums.sum()) / total + slope * centred) * sizes
    slope *= max(0.0, 1 - float(centred**2 @ residuals**2) / (spread * slope) ** 2)
    if slope == 0:
        return NO_TREND
    largest = np.sort(logs)[::-1]
    tail = max(5, round(sizes.size**0.5))
    hill = float(np.mean(largest[:tail]) - largest[min(tail, sizes.size - 1)])
    factor = 1 / max(1 - hill, 1 / FARTHEST)
    next_size = float(sizes.max()) * factor
    height = float(centred.max()) + math.log(factor)
    return SizeTrend(slope * sizes * centred, next_size * slope * height / (total + next_size))


def skewness(
    sizes: Floats,
    mean: float,
    icc: float,
    squares: Floats | None = None,
    cubes: Floats | None = None,
    deviations: Floats | None = None,
) -> float:
    """Skewness of the mean of 0/1 rows in groups of these sizes [G], whose rates are Beta around `mean` so that two
    rows of a group have correlation `icc`: Σκ₃ / (Σκ₂)^1.5 (cumulants of the beta-binomial). squares, cubes: Σw² and
    Σw³ over the rows of each group, where rows differ in weight; sizes are then Σw. deviations: of the groups' sums, by
    their sizes (`size_trend`)."""
    squares, cubes = (sizes if power_sums is None else power_sums for power_sums in (squares, cubes))
    if icc <= 0 and deviations is None:
        lean = float(cubes.sum()) / float(squares.sum()) ** 1.5
        return (1 - 2 * mean) / math.sqrt(mean * (1 - mean)) * lean
    spread = 1 / max(icc, 1e-9) - 1  # the two parameters of the Beta, added
    first = mean
    second = first * (mean * spread + 1) / (spread + 1)
    third = second * (mean * spread + 2) / (spread + 2)
    within_variance = first - second  # E[R(1 - R)]
    between_variance = second - first**2
    lean = third - 3 * first * second + 2 * first**3
    k2 = squares * within_variance + sizes**2 * between_variance
    k3 = (
        cubes * (first - 3 * second + 2 * third)
        + 3 * squares * sizes * (second - third - first * within_variance)
        + sizes**3 * lean
    )
    if deviations is not None:
        k3, k2 = k3 + 3 * k2 * deviations + deviations**3, k2 + deviations**2
    return float(k3.sum()) / float(k2.sum()) ** 1.5
