"""What two labels of the same rows say of the best accuracy that any model can read against one of them.

Suppose that the two labels of a row are drawn alike and independently, from a distribution over K labels that is the
row's own: p. They agree with probability Σp², and no answer is right more often than max p. Averaged over rows, the
second is at least the first, and at most what Cover & Hart (1967, IEEE Transactions on Information Theory 13:21) showed
of the nearest neighbour's error: (1 + sqrt((K - 1)(KA - 1))) / K for an agreement of A, which is sqrt(A) where answers
are not one of K. That most is reached where every row is equally hard and wrong labels are spread evenly, the model of
Dawid & Skene (1979, Applied Statistics 28:20) with one rate for all. Mistakes that both make alike raise the agreement
and so the ceiling: it is never too low for them.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from bedplate.core.errors import UsageError
from bedplate.core.statistics.clusters import checked_weights, effective_n_bound, effective_n_interval
from bedplate.core.statistics.unequal import InsufficientGroups


@dataclass(frozen=True)
class Ceiling:
    """The ceiling from `n` rows with two labels. rate: the share on which they agree, with its two-sided interval.
    value: the ceiling at that rate, and its interval, from what agreement shows at the least to the ceiling at the
    most. highest: the one-sided upper bound at `confidence`; None, with the `reason`, where the groups allow none."""

    n: int
    groups: int
    rate: float
    rate_interval: tuple[float, float]
    value: float
    interval: tuple[float, float]
    highest: float | None
    confidence: float
    reason: str | None


def ceiling(agreement: float, labels: int | None) -> float:
    """The accuracy that no model exceeds against one of two labels that agree so often. labels: how many there are;
    None where answers are not one of a few."""
    if not 0 <= agreement <= 1:
        raise UsageError(f"an agreement lies between 0 and 1, not {agreement}")
    if labels is None:
        return math.sqrt(agreement)
    if labels < 2:
        raise UsageError(f"there is no agreement on {labels} labels; it takes two or more")
    return (1 + math.sqrt((labels - 1) * max(0.0, labels * agreement - 1))) / labels


def agreement_ceiling(
    agreed: ArrayLike,
    groups: Sequence[Hashable],
    labels: int | None,
    confidence: float = 0.95,
    weights: Sequence[float] | None = None,
) -> Ceiling:
    """The ceiling from 0/1 marks of agreement [n] and the group of each row; the interval is two-sided, 95%. weights:
    of the rows [n], where the metric weights them."""
    count = len(set(groups))
    low, high = 0.0, 1.0
    w = checked_weights(weights, len(groups))
    if count > 1:
        low, high = effective_n_interval(agreed, list(groups), 0.95, minimum_groups=2, weights=w)
    rate = float(np.average(np.asarray(agreed, dtype=np.float64), weights=w))
    highest, reason = None, None
    try:
        highest = ceiling(effective_n_bound(agreed, list(groups), confidence, "upper", weights=w).value, labels)
    except InsufficientGroups as error:
        reason = error.message
    interval = low, ceiling(high, labels)
    return Ceiling(len(groups), count, rate, (low, high), ceiling(rate, labels), interval, highest, confidence, reason)
