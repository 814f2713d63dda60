"""Bounds of the expected calibration error: Σ |mean of (confidence - right) in a bin|, each times the bin's share.

It is the largest of the means of ±(confidence - right) over all choices of one sign for each bin. One choice is that of
the truth, so that the largest of the choices' one-sided upper bounds is an upper bound at the same confidence, without
any correction; that the estimate reads high (a bin's noise has no sign) makes it wider, never short. From below, bins
are bounded one by one and share the error (Bonferroni). Bins are fixed beforehand (Naeini, Cooper & Hauskrecht 2015).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from bedplate.core.statistics.clusters import checked_weights, group_codes, group_sums
from bedplate.core.statistics.noninferiority import bounded_change, hidden
from bedplate.core.statistics.unequal import check_groups, worth


@dataclass(frozen=True)
class CalibrationBounds:
    """The error of these bins, and its one-sided bounds, each at `confidence`."""

    error: float
    lower: float
    upper: float
    confidence: float


def calibration_bounds(
    gaps: NDArray[np.float64],
    bins: NDArray[np.int64],
    groups: Sequence[Hashable],
    confidence: float = 0.95,
    *,
    weights: NDArray[np.float64] | None = None,
) -> CalibrationBounds:
    """Bounds from rows [n] with `gaps` confidence - right, in these bins (at most ten have rows, or it takes long).

    Bounds are those of a drop (`noninferiority`), and the upper one is never nearer than what rows of a kind that was
    not seen could make it.
    Raises InsufficientGroups as bounds of a mean do.
    """
    codes, count = group_codes(groups)
    w = checked_weights(weights, gaps.size)
    sizes = group_sums(w, codes, count)
    check_groups(sizes)
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
