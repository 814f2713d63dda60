"""How far apart are two estimates that were made on different rows? (MOVER: Zou & Donner 2008, Statistics in Medicine
27:1693; of proportions, Newcombe 1998.)
"""

from __future__ import annotations

import math

from bedplate.core.errors import UsageError


def independent_difference(
    a: float, b: float, a_bounds: tuple[float, float], b_bounds: tuple[float, float]
) -> tuple[float, float]:
    """Bounds of a - b from the lower and the upper bound of each, for estimates from different rows (MOVER): at the
    same confidence as those, one-sided or two-sided."""
    (a_low, a_high), (b_low, b_high) = a_bounds, b_bounds
    if not (a_low <= a <= a_high and b_low <= b <= b_high):
        raise UsageError(f"estimates lie between their bounds: {a_low} ≤ {a} ≤ {a_high}, {b_low} ≤ {b} ≤ {b_high}")
    return a - b - math.hypot(a - a_low, b_high - b), a - b + math.hypot(a_high - a, b - b_low)
