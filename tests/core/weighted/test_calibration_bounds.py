"""Bounds of the calibration error: by hand, and how often they hold where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from bedplate.core.statistics.noninferiority import calibration_bounds
from bedplate.core.statistics.unequal import InsufficientGroups

BINS = 10


def drawn(rng: np.random.Generator, n: int, over: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Gaps, bins, and the true error of answers whose probabilities are too high by `over` above 0.8."""
    stated = 0.5 + 0.499 * rng.beta(3, 1, n)
    chance = stated - np.where(stated > 0.8, over, 0.0)
    right = (rng.random(n) < chance).astype(float)
    return stated - right, np.ceil(stated * BINS).astype(np.int64) - 1, over * (1 - ((0.8 - 0.5) / 0.499) ** 3)


def test_the_error_is_the_one_by_hand_and_one_sign_for_each_bin_bounds_it() -> None:
    gaps = np.array([0.2, 0.2, -0.1, -0.1] * 50)
    bins = np.array([1, 1, 2, 2] * 50)
    bounds = calibration_bounds(gaps, bins, range(200))
    assert bounds.error == pytest.approx(0.5 * 0.2 + 0.5 * 0.1)
    assert bounds.lower <= bounds.error <= bounds.upper
    heavy = np.array([3.0, 3.0, 1.0, 1.0] * 50)
    assert calibration_bounds(gaps, bins, range(200), weights=heavy).error == pytest.approx(0.75 * 0.2 + 0.25 * 0.1)


def test_rows_without_a_gap_may_hide_some() -> None:
    bounds = calibration_bounds(np.zeros(100), np.zeros(100, dtype=np.int64), range(100))
    assert (bounds.error, bounds.lower) == (0.0, 0.0)
    assert bounds.upper == pytest.approx(1 - 0.05 ** (1 / 100))
    with pytest.raises(InsufficientGroups):
        calibration_bounds(np.zeros(30), np.zeros(30, dtype=np.int64), range(30))


@pytest.mark.parametrize(("n", "over"), [(200, 0.1), pytest.param(500, 0.0, marks=pytest.mark.slow)])
def test_both_bounds_hold(n: int, over: float) -> None:
    rng = np.random.default_rng(n)
    too_high = below = 0
    for _ in range(120):
        gaps, bins, truth = drawn(rng, n, over)
        bounds = calibration_bounds(gaps, bins, range(n), 0.95)
        too_high += bounds.lower > truth
        below += bounds.upper < truth
    max_rate = 0.05 + 3 * (0.05 * 0.95 / 120) ** 0.5
    assert too_high / 120 <= max_rate
    assert below / 120 <= max_rate
