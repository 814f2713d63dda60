"""Two candidates on the same rows. The pair of outcomes of a row is never broken up; neither is a group of rows.
And two estimates from different rows (MOVER: Zou & Donner 2008, Statistics in Medicine 27:1693).

McNemar (1947), Psychometrika 12:153, exact form. Score interval of a difference of shares: Tango (1998), Statistics in
Medicine 17:891; t covers 0.86 where few rows differ, all of them one way (benchmarks/gate_production.py). Sign-flip:
Fisher's randomisation test on the sums of whole groups (Cameron, Gelbach & Miller 2008 for few clusters); Monte Carlo
p = (1 + count) / (1 + B), Phipson & Smyth (2010).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bedplate.core.errors import UsageError
from bedplate.core.statistics.clusters import checked_weights, group_codes, robust_mean
from bedplate.core.statistics.proportions import check_confidence
from bedplate.core.statistics.unequal import Floats

_ENUMERATE_UP_TO = 20_000
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class PairedDifference:
    """Mean of a - b over rows, with an interval for rows in groups and a p-value for 'no difference' (two-sided). The
    interval leaves 0 out only where the test does (`agreeing`)."""

    difference: float
    interval: tuple[float, float]
    p_value: float
    test: str
    n: int
    groups: int


def mcnemar_exact(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided exact p-value that two candidates are right equally often, from 0/1 outcomes [n] on the same rows."""
    from scipy.special import bdtr

    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if x.shape != y.shape or x.ndim != 1:
        raise UsageError(f"the two candidates need the same rows: shapes {x.shape} and {y.shape}")
    if not (np.isin(x, (0.0, 1.0)).all() and np.isin(y, (0.0, 1.0)).all()):
        raise UsageError("McNemar's test needs outcomes of 0 or 1")
    only_a, only_b = int((x > y).sum()), int((y > x).sum())
    if only_a + only_b == 0:
        return 1.0
    return min(1.0, 2 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


def sign_flip(differences: ArrayLike, groups: Sequence[Hashable], *, seed: int = 0, resamples: int = 20_000) -> float:
    """Two-sided p-value of mean difference zero, flipping the sign of whole groups of `differences` [n].

    Exact while 2^G ≤ 20,000 (groups whose sum is zero do not count), otherwise Monte Carlo with `seed`.
    """
    x = np.asarray(differences, dtype=float)
    if x.ndim != 1 or x.size != len(groups):
        raise UsageError(f"{x.size} differences but {len(groups)} groups: give one group for each row")
    codes, count = group_codes(groups)
    sums = np.bincount(codes, weights=x, minlength=count)
    sums = sums[np.abs(sums) > _TOLERANCE]  # flipping a zero changes nothing
    if sums.size == 0:
        return 1.0
    observed = abs(float(sums.sum())) - _TOLERANCE * float(np.abs(sums).sum())
    if 2**sums.size <= _ENUMERATE_UP_TO:
        bits = np.arange(2**sums.size)[:, None] >> np.arange(sums.size) & 1
        return float((np.abs((1.0 - 2.0 * bits) @ sums) >= observed).mean())
    rng = np.random.Generator(np.random.PCG64(seed))
    extreme = 0
    for start in range(0, resamples, 4096):  # in pieces: resamples × groups numbers need not be in memory at once
        rows = min(4096, resamples - start)
        signs = 1.0 - 2.0 * rng.integers(0, 2, (rows, sums.size))
        extreme += int((np.abs(signs @ sums) >= observed).sum())
    return (1 + extreme) / (1 + resamples)


def swap_test(
    difference: Callable[[NDArray[np.bool_]], float],
    groups: Sequence[Hashable],
    *,
    seed: int = 0,
    resamples: int = 2000,
) -> float:
    """Two-sided p-value for a statistic that is no mean of rows: swaps the two candidates in whole groups.

    `difference(swapped)` gets a bool [n], true where the outputs of a and b are exchanged; `difference(all false)` is
    the observed difference. Exact while 2^G ≤ `resamples`, otherwise Monte Carlo with `seed`.
    """
    codes, count = group_codes(groups)
    observed = abs(difference(np.zeros(codes.size, dtype=bool))) - _TOLERANCE
    if 2**count <= resamples:
        bits = (np.arange(2**count)[:, None] >> np.arange(count) & 1).astype(bool)
        return float(np.mean([abs(difference(row[codes])) >= observed for row in bits]))
    rng = np.random.Generator(np.random.PCG64(seed))
    extreme = sum(abs(difference(rng.integers(0, 2, count).astype(bool)[codes])) >= observed for _ in range(resamples))
    return (1 + extreme) / (1 + resamples)


def score_interval(only_a: float, only_b: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided interval of the difference of two shares of the same n rows, of which `only_a` were right by a alone
    and `only_b` by b alone: the differences that a score test of them does not exclude."""
    from scipy.optimize import brentq
    from scipy.special import ndtri

    check_confidence(confidence)
    z2, difference = float(ndtri(1 - (1 - confidence) / 2)) ** 2, (only_a - only_b) / n

    def excess(delta: float) -> float:
        # the share that is right by b alone, by maximum likelihood where the difference is delta
        b = (2 * n - only_a + only_b) * delta - only_a - only_b
        share = (math.sqrt(max(b * b + 8 * n * only_b * delta * (1 - delta), 0.0)) - b) / (4 * n)
        return (only_a - only_b - n * delta) ** 2 - z2 * n * max(2 * share + delta * (1 - delta), 0.0)

    def end_at(limit: float) -> float:
        if abs(limit - difference) < _TOLERANCE:
            return limit
        root: Any = brentq(excess, difference + limit * _TOLERANCE / 10, limit)
        return float(root)

    return end_at(-1.0), end_at(1.0)


def agreeing(interval: tuple[float, float], p_value: float, confidence: float) -> tuple[float, float]:
    """The interval, made in another way than the test of 0, as far as 0 where that test does not exclude 0.

    It only becomes wider, so that what it covers it still covers. Where the interval has 0 and the test excludes it, as
    a few large groups have it, it stays as it is: a claim takes both.
    """
    if p_value <= 1 - confidence:
        return interval
    return min(interval[0], 0.0), max(interval[1], 0.0)


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    groups: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    *,
    seed: int = 0,
    binary: bool | None = None,
    weights: Floats | None = None,
) -> PairedDifference:
    """Mean of a - b over the same rows, an interval and the test that fits.

    Independent 0/1 rows: score interval and exact McNemar. Otherwise a clustered t interval (`robust_mean`), and the
    clustered sign-flip. The interval reaches 0 where the test does not exclude it, and is never of zero width: where no
    row differs t's is what unseen groups could hide, 1 - (alpha/2)^(1/G), G as many as they are worth of one size.
    Scores are taken to lie in 0 to 1.
    binary: whether rows can only score 0 or 1; None says so where they all do. weights: of the rows [n], where they
    differ; the test is then the sign-flip of weighted differences.
    """
    from scipy.special import stdtrit

    check_confidence(confidence)
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if x.shape != y.shape or x.ndim != 1 or x.size == 0:
        raise UsageError(f"the two candidates need the same rows, at least one: shapes {x.shape} and {y.shape}")
    units: Sequence[Hashable] = range(x.size) if groups is None else groups
    mean = robust_mean(x - y, units, weights)
    independent = mean.groups == mean.n
    if binary is None:
        binary = bool(np.isin(x, (0.0, 1.0)).all() and np.isin(y, (0.0, 1.0)).all())
    if independent and binary and weights is None:
        test, p_value = "mcnemar_exact", mcnemar_exact(x, y)
    else:
        test, p_value = (
            "sign_flip" if independent else "clustered_sign_flip",
            sign_flip((x - y) * checked_weights(weights, x.size), units, seed=seed),
        )
    if mean.groups == 1:
        return PairedDifference(mean.mean, (-1.0, 1.0), p_value, test, mean.n, 1)
    if test == "mcnemar_exact":
        interval = score_interval(int((x > y).sum()), int((y > x).sum()), x.size, confidence)
        return PairedDifference(mean.mean, agreeing(interval, p_value, confidence), p_value, test, mean.n, mean.groups)
    tail = (1 - confidence) / 2
    half = max(
        mean.half_width(float(stdtrit(mean.freedom, 1 - tail))),
        1 - math.pow(tail, 1 / mean.worth) if mean.se <= _TOLERANCE else 0.0,
    )
    interval = agreeing((max(-1.0, mean.mean - half), min(1.0, mean.mean + half)), p_value, confidence)
    return PairedDifference(mean.mean, interval, p_value, test, mean.n, mean.groups)


def independent_difference(
    a: float, b: float, a_bounds: tuple[float, float], b_bounds: tuple[float, float]
) -> tuple[float, float]:
    """Bounds of a - b from the lower and the upper bound of each, for estimates from different rows (MOVER): at the
    same confidence as those, one-sided or two-sided."""
    (a_low, a_high), (b_low, b_high) = a_bounds, b_bounds
    if not (a_low <= a <= a_high and b_low <= b <= b_high):
        raise UsageError(f"estimates lie between their bounds: {a_low} ≤ {a} ≤ {a_high}, {b_low} ≤ {b} ≤ {b_high}")
    return a - b - math.hypot(a - a_low, b_high - b), a - b + math.hypot(a_high - a, b - b_low)
