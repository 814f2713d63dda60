"""Bounds of a mean that hold at every moment of a stream, from counts of its values.

The means that bets (`betting`) have not refuted are a confidence sequence: at every moment the mean is among them, with
the confidence that no capital reaches the inverse of the error (Waudby-Smith & Ramdas 2024, JRSS B 86:1). Each bet is a
fixed part of what is safe, and the capital their mean (as in Robbins 1970), so that the order of the values does not
enter: counts are all that has to be kept, and a look costs the same whatever has been seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from bedplate.core.errors import UsageError
from bedplate.core.statistics.betting import gains
from bedplate.core.statistics.proportions import check_confidence


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


def _arrays(counts: Mapping[float, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values = np.array(list(counts), dtype=np.float64)
    times = np.array(list(counts.values()), dtype=np.float64)
    if ((values < 0) | (values > 1)).any() or (times < 0).any():
        raise UsageError(f"values lie between 0 and 1, and come so many times: {dict(counts)}")
    return values, times
