"""Tests that may be looked at as often as one likes: by bets on rows as they come.

Of rows whose scores lie in [0, 1] it is claimed that they are at least `floor` on average, whatever came before.
Someone who doubts it bets: each unit of rows multiplies the capital by 1 + stake (floor - score), which is never
negative. Where the claim is true no way to bet makes the capital grow on average, and it ever reaches 1/α with
probability α at most (Ville 1939), so that the capital is evidence (an e-process), and its inverse a p-value, at every
look at once (Waudby-Smith & Ramdas 2024, JRSS B 86:1, for means; Shekhar & Ramdas 2023, IEEE Trans. Inf. Theory
70:1178, for two samples; Ramdas et al. 2023, Statistical Science 38:576).

The capital is spread over some stakes, for nobody knows which is right, and over the looks at which a change may begin,
1/(j(j + 1)) of it for the j-th (as in Shin, Ramdas & Rinaldo 2023, e-detectors). What a look gained is all that has to
be kept of it: a further one costs its own rows, and a few numbers for each look before.

The means that bets have not refuted are a confidence sequence, which holds at every moment of a stream. Where each bet
is a fixed part of what is safe and the capital their mean (Robbins 1970), the order of the values does not enter:
counts of them are all that has to be kept.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from bedplate.core.errors import UsageError
from bedplate.core.statistics.clusters import effective_n_interval, group_codes, robust_mean
from bedplate.core.statistics.proportions import check_confidence
from bedplate.core.statistics.unequal import Floats, InsufficientGroups, Ints

Gains = Floats
"""Logarithm of what each stake made of one unit of capital at one look [..., stakes]."""
STAKES = 0.95 * 2.0 ** -np.arange(8)
"""Shares of the largest stake that a unit of rows can never lose more than all of."""
_SURE = 1e-6


@dataclass(frozen=True)
class BettingEvidence:
    """value: the capital now, of 1 at first, against a claim: 20 is to an error of 5% what it takes. p_value: valid at
    every look together."""

    value: float
    p_value: float
    looks: int


def gains(
    scores: ArrayLike, groups: Sequence[Hashable] | None, floor: float, largest: int = 1, times: ArrayLike | None = None
) -> Gains:
    """What bets that scores [n] in [0, 1] are below `floor` on average gain on these rows [stakes].

    groups: rows of one are not independent and are one bet; None where each row stands for itself. largest: rows of a
    group that are bet on at most, the first of each: fixed before the rows are seen. times: how often each score came,
    for rows without groups that are counted by their scores. UsageError for other scores.
    """
    x = np.asarray(scores, dtype=np.float64)
    if x.ndim != 1 or (groups is not None and len(groups) != x.size):
        raise UsageError(f"{x.shape} scores and {None if groups is None else len(groups)} groups: one for each row")
    if x.size and not (x.min() >= 0 and x.max() <= 1):  # nan is neither
        raise UsageError("scores must lie between 0 and 1 to bet on")
    if largest < 1:
        raise UsageError(f"at least one row of a group is bet on, not {largest}")
    missing = floor - x
    if groups is not None:
        codes, count = group_codes(groups)
        missing = _first_of_each(missing, codes, count, largest)
    else:
        largest = 1
    room = max(1 - floor, _SURE) * largest
    won = np.log1p(np.multiply.outer(STAKES, missing) / room)
    return won.sum(1) if times is None else won @ np.asarray(times, dtype=np.float64)


def _first_of_each(values: Gains, codes: Ints, count: int, max_rows: int) -> Gains:
    """Sums over the first `max_rows` rows of each group [count]."""
    order = np.argsort(codes, kind="stable")
    sizes = np.bincount(codes, minlength=count)
    place = np.arange(codes.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    first_rows = order[place < max_rows]
    return np.asarray(np.bincount(codes[first_rows], weights=values[first_rows], minlength=count), dtype=np.float64)


def log_capital(looks: Sequence[Gains]) -> list[float]:
    """The logarithm of the capital after each of some looks, in order: of several bets at each [..., stakes], the mean
    of all. UsageError for looks that were bet on in different ways."""
    if any(look.shape != looks[0].shape for look in looks):
        raise UsageError("the looks were bet on in different ways; give those of one way")
    log_capitals: list[float] = []
    capital = np.full(looks[0].shape, -math.inf) if looks else np.zeros(0)
    for number, look in enumerate(looks, start=1):
        capital = np.logaddexp(capital, -math.log(number * (number + 1))) + look
        peak = max(0.0, float(capital.max()))
        waiting = math.exp(-peak) / (number + 1)  # what is kept for changes that have yet to begin
        log_capitals.append(peak + math.log(float(np.exp(capital - peak).mean()) + waiting))
    return log_capitals


def evidence(looks: Sequence[Gains]) -> BettingEvidence:
    """The capital after all of some looks, in order."""
    log = log_capital(looks)[-1] if looks else 0.0
    return BettingEvidence(math.exp(min(log, 700.0)), math.exp(-max(log, 0.0)), len(looks))


# --- two samples, of which the first stays as it is


def mean_bounds(scores: ArrayLike, groups: Sequence[Hashable] | None, alpha: float) -> tuple[float, float]:
    """Bounds of the mean of scores [n] in [0, 1] that both hold with probability 1 - alpha: of shares as the gate's,
    else by t with few and unequal groups in mind."""
    from scipy.special import stdtrit

    x = np.asarray(scores, dtype=np.float64)
    units: Sequence[Hashable] = range(x.size) if groups is None else groups
    if np.isin(x, (0.0, 1.0)).all():
        try:
            return effective_n_interval(x, units, 1 - alpha, minimum_groups=2)
        except InsufficientGroups:
            return 0.0, 1.0
    mean = robust_mean(x, units)
    if mean.groups < 2 or not mean.freedom > 0:
        return 0.0, 1.0
    unseen = 1 - math.pow(alpha / 2, 1 / mean.worth)
    half = mean.se * float(stdtrit(mean.freedom, 1 - alpha / 2)) if mean.se > 1e-12 else unseen
    return max(0.0, mean.mean - half), min(1.0, mean.mean + half)


def gains_apart(
    scores: Floats, groups: Sequence[Hashable] | None, bounds: Sequence[tuple[float, float]], largest: int = 1
) -> Gains:
    """What bets gain that the means of the columns of scores [n, d] lie outside of `bounds` [d], each below and above
    [2d, stakes]. Where the bounds hold what an unchanging sample's means are with probability 1 - a, evidence of these
    of 1/b has an error of a + b, at all looks together: what is not known of the first sample is paid for once."""
    side_gains: list[Gains] = []
    for column, (low, high) in zip(scores.T, bounds, strict=True):
        side_gains.append(gains(column, groups, low, largest))
        side_gains.append(gains(1 - column, groups, 1 - high, largest))
    return np.stack(side_gains)


def capital(counts: Mapping[float, int], mean: float) -> float:
    """The logarithm of what 1 has become by betting that the mean of values in [0, 1] is above `mean`, from how often
    each value came. At most log(1/alpha) at every moment, with probability 1 - alpha, if it is not."""
    values, times = _arrays(counts)
    if not 0 < mean <= 1:
        raise UsageError(f"a mean to bet against lies above 0 and up to 1, not {mean}")
    growth = gains(1 - values, None, 1 - mean, times=times)
    peak = float(growth.max())
    return peak + math.log(float(np.exp(growth - peak).mean()))


def lower_bound(counts: Mapping[float, int], confidence: float = 0.95) -> float:
    """One-sided: at every moment of the stream the mean is at least this, with this confidence."""
    check_confidence(confidence)
    values, times = _arrays(counts)
    total = float(times.sum())
    if total == 0:
        return 0.0
    threshold, low, high = -math.log(1 - confidence), 0.0, float(values @ times) / total
    if high == 0:
        return 0.0
    for _ in range(40):  # capital falls as the mean to bet against rises
        middle = (low + high) / 2
        low, high = (middle, high) if middle > 0 and capital(counts, middle) >= threshold else (low, middle)
    return low


def upper_bound(counts: Mapping[float, int], confidence: float = 0.95) -> float:
    """One-sided: at every moment of the stream the mean is at most this, with this confidence."""
    return 1 - lower_bound({1 - value: count for value, count in counts.items()}, confidence)


def _arrays(counts: Mapping[float, int]) -> tuple[Floats, Floats]:
    values = np.array(list(counts), dtype=np.float64)
    times = np.array(list(counts.values()), dtype=np.float64)
    if ((values < 0) | (values > 1)).any() or (times < 0).any():
        raise UsageError(f"values lie between 0 and 1, and come so many times: {dict(counts)}")
    return values, times
