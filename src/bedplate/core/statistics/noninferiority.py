"""How much worse something may have become: one-sided bounds of a paired drop, with whole groups as the units.

Non-inferiority by the bound of the difference (Blackwelder 1982, Controlled Clinical Trials 3:345). Several guards that
must all hold need no correction: each is tested at the full level (intersection-union, Berger 1982, Technometrics
24:295).

The expected calibration error is bounded by the same drops: it is the largest of the means of ±(confidence - right)
over all choices of one sign for each bin. One choice is that of the truth, so that the largest of their one-sided upper
bounds is one at the same confidence, without any correction. From below, bins are bounded one by one and share the
error (Bonferroni). Bins are fixed beforehand (Naeini, Cooper & Hauskrecht 2015).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import numpy as np
from numpy.typing import ArrayLike

from bedplate.core.errors import UsageError
from bedplate.core.statistics.clusters import checked_weights, group_codes, group_sums, intraclass_correlation
from bedplate.core.statistics.missed import missed_groups_bound
from bedplate.core.statistics.proportions import check_confidence
from bedplate.core.statistics.unequal import Floats, Ints, check_groups, enough, heavy_jump, robust, set_apart, worth


@dataclass(frozen=True)
class Drop:
    """`value` = before - after (or after - before for a loss: what has become worse); its one-sided bounds, None with
    too few groups; se: of the value."""

    value: float
    lower: float | None
    upper: float | None
    se: float
    confidence: float
    n: int
    groups: int

    def is_within(self, margin: float) -> bool | None:
        """True: shown to be under the margin. False: shown to be above it. None: undecided."""
        if self.upper is None or self.lower is None:
            return None
        return True if self.upper < margin else False if self.lower > margin else None

    def needed(self, margin: float, power: float = 0.8) -> int | None:
        """Rows for this power to show that the drop is under the margin, if it is what it reads; None: no n would do,
        or the spread cannot be seen from so few rows."""
        from scipy.special import ndtri

        if self.value >= margin or not self.se > 0:
            return None
        ratio = (float(ndtri(self.confidence)) + float(ndtri(power))) * self.se / (margin - self.value)
        return math.ceil(self.n * max(ratio**2, 1 / self.n))


def mean_drop(
    before: ArrayLike,
    after: ArrayLike,
    groups: Sequence[Hashable],
    confidence: float = 0.95,
    *,
    units: float | None = None,
    weights: Floats | None = None,
    scattered: bool = False,
) -> Drop:
    """Mean of before - after over the same rows [n], scores from 0 to 1.

    t on the cluster-robust error, both as `unequal` has them, further out on the side to which the changes lean
    (Johnson 1978, JASA 73:536): that few were lost is also what few rows of a child that lost more would show. The
    bounds are never nearer than `hidden` of the units: by default as many as the groups are worth, as if a whole group
    changed together or not at all; where rows of a group are known to be nearly independent, their effective number.
    Nor are they nearer than what groups that were missed could hide of the rows that lost something, or gained
    (`missed`), where few groups hold any, unless changes are known to be `scattered` over the groups, as those are that
    come of rounding. weights: of the rows [n], where they differ; bounds are then as far as one more changed row among
    the heavy ones makes them. Few groups that dominate are `set_apart`. No bounds where there are too few groups.
    """
    x, y, codes, count = _pair(before, after, groups, confidence)
    if not ((x >= 0) & (x <= 1) & (y >= 0) & (y <= 1)).all():
        raise UsageError("scores must lie between 0 and 1")
    w = checked_weights(weights, x.size)
    sizes = group_sums(w, codes, count)
    rest, alone = set_apart(codes, sizes, w)
    if not rest.all():
        bounds = partial(mean_drop, confidence=confidence, scattered=scattered)
        rest_units = None if units is None else units * float(rest.mean())
        others = bounds(x[rest], y[rest], codes[rest].tolist(), units=rest_units)
        whole = bounds(x, y, alone.tolist(), units=units)
        if others.lower is None or others.upper is None or whole.lower is None or whole.upper is None:
            return replace(whole, lower=None, upper=None, groups=count)
        lower, upper = min(others.lower, whole.lower), max(others.upper, whole.upper)
        return replace(whole, lower=lower, upper=upper, groups=count)
    unseen = hidden(worth(sizes) if units is None else units, confidence)
    drop = bounded_change(x - y, codes, confidence, unseen, weights)
    if scattered or drop.lower is None or drop.upper is None:
        return drop
    lost, gained = (group_sums(w * change, codes, count) for change in (np.maximum(x - y, 0.0), np.maximum(y - x, 0.0)))
    worse, better = (group_sums(w * mask, codes, count) for mask in (x > y, y > x))
    rows = float(x.size**2 / (w @ w))
    upper = _not_nearer(drop.upper, (worse, lost, gained), sizes, rows, confidence)
    lower = -_not_nearer(-drop.lower, (better, gained, lost), sizes, rows, confidence)
    return replace(drop, lower=lower, upper=upper)


def _not_nearer(
    upper: float, of: tuple[Floats, Floats, Floats], sizes: Floats, rows: float, confidence: float
) -> float:
    """An upper bound of the mean of losses less gains. of: weights of the rows of each group that lost something, what
    they lost, and what others gained [G]."""
    worse, lost, gained = of
    mean_loss = float(lost.sum() / worse.sum()) if worse.any() else 1.0
    gain = float(gained.sum() / sizes.sum())
    share = (upper + gain) / mean_loss
    if not 0 <= share < 1:
        return upper
    return (1 - missed_groups_bound(worse, sizes, rows, 1 - share, confidence)) * mean_loss - gain


def bounded_change(
    change: Floats, groups: Ints, confidence: float, unseen: float, weights: Floats | None = None
) -> Drop:
    """The mean of `change` [n] as `mean_drop` bounds that of a drop; the bounds are never nearer than `unseen`."""
    codes, count = group_codes(groups)
    w = checked_weights(weights, change.size)
    icc, squares = intraclass_correlation(change, codes), group_sums(w**2, codes, count)
    jump = 0.0
    if np.ptp(w) > 1e-12:
        jump = heavy_jump(group_sums(w, codes, count), squares, 0.0 if count == w.size else icc)
    return _drop(w * change, w, codes, count, confidence, unseen, icc, squares, jump)


def hidden(units: float, confidence: float) -> float:
    """The share of changes that so many independent units without any could hide: 1 - alpha^(1/units)."""
    return 1 - (1 - confidence) ** (1 / units)


def units_needed(margin: float, confidence: float) -> int:
    """The least independent units that, without any change, show a share of changes to be under the margin."""
    return math.floor(math.log(1 - confidence) / math.log(1 - margin)) + 1


def rate_rise(
    before: ArrayLike, after: ArrayLike, weights: ArrayLike, groups: Sequence[Hashable], confidence: float = 0.95
) -> Drop:
    """Rise of a rate: (sum of after - sum of before) / sum of weights, from totals and weights of rows [n].

    The ratio estimator (Cochran 1977, Sampling Techniques, ch. 6), linearised, with whole groups as units: what a
    weighted least squares mean with cluster-robust errors gives, corrected as `unequal` has it (what is added to a
    row's total is taken to grow with its weight). Losses per token: totals are sums over the tokens.
    """
    x, y, codes, count = _pair(before, after, groups, confidence)
    w = np.asarray(weights, dtype=float)
    if w.shape != x.shape or not (w >= 0).all() or w.sum() == 0:
        raise UsageError("weights must be one for each row, not negative, and not all zero")
    return _drop(y - x, w, codes, count, confidence, 0.0, 1.0)


def _pair(
    before: ArrayLike, after: ArrayLike, groups: Sequence[Hashable], confidence: float
) -> tuple[Floats, Floats, Ints, int]:
    check_confidence(confidence)
    x, y = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    if x.shape != y.shape or x.ndim != 1 or x.size == 0 or len(groups) != x.size:
        raise UsageError(f"needs the same rows twice and a group for each: {x.shape}, {y.shape}, {len(groups)} groups")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise UsageError("values must be finite")
    return x, y, *group_codes(groups)


def _drop(
    change: Floats,
    weights: Floats,
    codes: Ints,
    count: int,
    confidence: float,
    unseen: float,
    icc: float,
    squares: Floats | None = None,
    jump: float = 0.0,
) -> Drop:
    from scipy.special import stdtrit

    total = float(weights.sum())
    value = float(change.sum()) / total
    sizes = group_sums(weights, codes, count)
    weighted_groups = np.flatnonzero(sizes > 0)  # a group without weight adds nothing, and is not counted
    if weighted_groups.size < 2:
        return Drop(value, None, None, math.nan, confidence, change.size, count)
    residuals = group_sums(change - value * weights, codes, count)[weighted_groups]
    robust_fit = robust(residuals, sizes[weighted_groups], icc, None if squares is None else squares[weighted_groups])
    se = math.sqrt(robust_fit.variance)
    if not enough(sizes[weighted_groups]):
        return Drop(value, None, None, se, confidence, change.size, count)
    t_quantile = float(stdtrit(robust_fit.freedom, confidence))
    # changes of one kind only lean, and t with them: where hardly any were seen their spread reads too small as well
    scale = float(residuals @ residuals) ** 1.5
    lean = (float((residuals**3).sum()) / scale if scale > 0 else 0.0) * (2 * t_quantile**2 + 1) / 6
    spread = math.hypot(se, jump)  # as if one more of the heavy rows had changed
    below, above = (max(unseen, jump + max(t_quantile, t_quantile + extra) * spread) for extra in (-lean, lean))
    return Drop(value, value - below, value + above, se, confidence, change.size, count)


@dataclass(frozen=True)
class CalibrationBounds:
    """The error of these bins, and its one-sided bounds, each at `confidence`."""

    error: float
    lower: float
    upper: float
    confidence: float


def calibration_bounds(
    gaps: Floats, bins: Ints, groups: Sequence[Hashable], confidence: float = 0.95, *, weights: Floats | None = None
) -> CalibrationBounds:
    """Bounds from rows [n] with `gaps` confidence - right, in these bins (at most ten have rows, or it takes long).

    Bounds are those of a drop (`noninferiority`), and the upper one is never nearer than what rows of a kind that was
    not seen could make it.
    Raises InsufficientGroups as bounds of a mean do.
    """
    codes, count = group_codes(groups)
    w = checked_weights(weights, gaps.size)
    sizes = group_sums(w, codes, count)
    check_groups(sizes, rows=gaps.size)
    unseen = hidden(worth(sizes), confidence)
    used, place = np.unique(bins, return_inverse=True)
    error = sum(abs(float((w * gaps)[place == bin_index].sum())) for bin_index in range(used.size)) / gaps.size
    upper = 0.0
    for signs in product((-1.0, 1.0), repeat=used.size):
        signed = bounded_change(np.array(signs)[place] * gaps, codes, confidence, unseen, weights)
        assert signed.upper is not None
        upper = max(upper, signed.upper)
    lower, bin_confidence = 0.0, 1 - (1 - confidence) / (2 * used.size)
    for bin_index in range(used.size):
        bin_bounds = bounded_change(np.where(place == bin_index, gaps, 0.0), codes, bin_confidence, 0.0, weights)
        assert bin_bounds.lower is not None
        assert bin_bounds.upper is not None
        lower += max(0.0, bin_bounds.lower, -bin_bounds.upper)
    return CalibrationBounds(error, lower, min(1.0, upper), confidence)
