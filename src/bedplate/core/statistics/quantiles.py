"""Bounds of a quantile by order statistics: nothing is supposed of how the values are spread.

Of n independent values the number below the q-quantile is binomial (n, q): David & Nagaraja (2003), Order Statistics,
§7.1; as scipy's `quantile_test` has them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bedplate.core.errors import UsageError
from bedplate.core.statistics.proportions import check_confidence


def quantile_bounds(
    values: Sequence[float], quantile: float, confidence: float = 0.95
) -> tuple[float | None, float | None]:
    """One-sided lower and upper bound of a quantile, each at `confidence`; None where there are too few values for
    it."""
    from scipy.special import bdtr

    check_confidence(confidence)
    if not 0 < quantile < 1:
        raise UsageError(f"a quantile lies between 0 and 1, not {quantile}")
    ordered, n = sorted(values), len(values)
    if not n:
        return None, None
    at_most = np.asarray(bdtr(np.arange(n), n, quantile))  # P(so many of them are below, or fewer)
    high = np.flatnonzero(at_most >= confidence)  # X(k + 1) is above where at most k are below
    low = np.flatnonzero(1 - at_most >= confidence)  # X(k + 1) is below where more than k are
    lower = ordered[int(low[-1])] if low.size else None
    return lower, ordered[int(high[0])] if high.size else None


def values_needed(quantile: float, confidence: float = 0.95) -> int:
    """The least values whose largest bounds the quantile from above: quantile^n ≤ 1 - confidence."""
    return math.ceil(math.log(1 - confidence) / math.log(quantile))
