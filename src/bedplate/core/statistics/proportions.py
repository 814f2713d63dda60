"""Bounds from the binomial distribution when rows are independent: of a proportion, and of a quantile.

Exact: Clopper & Pearson (1934), Biometrika 26:404. Wilson: Wilson (1927), JASA 22:209.
`successes` and `n` may be fractional: an effective n is (Korn & Graubard 1998, Survey Methodology 24:193).
Of a quantile by order statistics, whatever the values' distribution: of n values the number below the q-quantile is
binomial (n, q) (David & Nagaraja 2003, Order Statistics, §7.1; scipy's `quantile_test`). Values that follow each other
are worth fewer independent ones, by their autocorrelation (Geyer 1992, Statistical Science 7:473).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

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
    values: Sequence[float], quantile: float, confidence: float = 0.95, worth: float | None = None
) -> tuple[float | None, float | None]:
    """One-sided lower and upper bound of a quantile, each at `confidence`; None where there are too few values for
    it. worth: how many independent values they are worth; None for all of them."""
    from scipy.special import betainc

    check_confidence(confidence)
    if not 0 < quantile < 1:
        raise UsageError(f"a quantile lies between 0 and 1, not {quantile}")
    ordered, n = sorted(values), len(values)
    if not n:
        return None, None
    worth = n if worth is None else worth
    above, share = np.arange(n, 0, -1) * worth / n, worth / n  # as many as X(k + 1), of so many, are not below it
    # P(at most k are below), and the same of k + 1 without the share of one value
    high = np.flatnonzero(betainc(above - share + 1, worth - above + share, 1 - quantile) >= confidence)
    low = np.flatnonzero(betainc(above, worth - above + 1, 1 - quantile) <= 1 - confidence)
    lower = ordered[int(low[-1])] if low.size else None
    return lower, ordered[int(high[0])] if high.size else None


def independent_worth(values: ArrayLike) -> float:
    """How many independent values [n] in the order in which they came are worth: n over the sum of the correlations of
    their ranks at all distances, by Geyer's initial monotone sequence; n where all are alike."""
    from scipy.stats import rankdata

    ranks = rankdata(values)
    n, deviations = ranks.size, ranks - (ranks.size + 1) / 2
    power = float(deviations @ deviations)
    if power == 0:
        return float(n)
    spectrum = np.fft.rfft(deviations, 2 * n)
    correlations = np.fft.irfft(np.abs(spectrum) ** 2)[: n - n % 2] / power
    pairs = np.minimum.accumulate(correlations[0::2] + correlations[1::2])
    return n / max(1.0, 2 * float(pairs[pairs > 0].sum()) - 1)


def values_needed(quantile: float, confidence: float = 0.95) -> int:
    """The least values whose largest bounds the quantile from above: quantile^n ≤ 1 - confidence."""
    return math.ceil(math.log(1 - confidence) / math.log(quantile))
