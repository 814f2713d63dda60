"""Bounds from the binomial distribution when rows are independent: of a proportion, and of a quantile.

Exact: Clopper & Pearson (1934), Biometrika 26:404. Wilson: Wilson (1927), JASA 22:209.
`successes` and `n` may be fractional: an effective n is (Korn & Graubard 1998, Survey Methodology 24:193).
Of a quantile by order statistics, whatever the values' distribution: of n values the number below the q-quantile is
binomial (n, q) (David & Nagaraja 2003, Order Statistics, §7.1; scipy's `quantile_test`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from bedplate.core.errors import UsageError

Side = Literal["lower", "upper"]


def binomial_lower(successes: float, n: float, confidence: float = 0.95) -> float:
    """Exact one-sided lower bound: the p at which `successes` or more of `n` has probability 1 - confidence."""
    from scipy.special import betaincinv

    _check(successes, n, confidence)
    if successes == 0:
        return 0.0
    return float(betaincinv(successes, n - successes + 1, 1 - confidence))


def binomial_upper(successes: float, n: float, confidence: float = 0.95) -> float:
    """Exact one-sided upper bound: the p at which `successes` or fewer of `n` has probability 1 - confidence."""
    from scipy.special import betaincinv

    _check(successes, n, confidence)
    if successes == n:
        return 1.0
    return float(betaincinv(successes + 1, n - successes, confidence))


def wilson(successes: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval, two-sided. One-sided bound at level c: the end of the interval at 2c - 1."""
    from scipy.special import ndtri

    _check(successes, n, confidence)
    z = float(ndtri(1 - (1 - confidence) / 2))
    p = successes / n
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = 0.0 if successes == 0 else (centre - spread) / scale
    high = 1.0 if successes == n else (centre + spread) / scale
    return low, high


def _check(successes: float, n: float, confidence: float) -> None:
    if not (math.isfinite(n) and n > 0):
        raise UsageError(f"a proportion needs at least one row; n is {n}")
    if not 0 <= successes <= n:
        raise UsageError(f"successes must be between 0 and n = {n}, not {successes}")
    check_confidence(confidence)


def check_confidence(confidence: float) -> None:
    """Raise UsageError unless 0.5 < confidence < 1 (below one half a 'bound' would lie past the estimate)."""
    if not 0.5 < confidence < 1:
        raise UsageError(f"confidence must be above 0.5 and below 1, not {confidence}")


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
