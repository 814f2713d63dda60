"""Rows in groups where the truth is known, for simulations of the gate: layouts of groups, right and wrong answers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtr, ndtri

SHARED = 0.6
"""Of the variance behind rates of groups and behind rows, what all candidates have in common."""
DEMO = (
    *(1, 1, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 5, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7, 7, 8, 8),
    *(8, 8, 8, 9, 9, 9, 9, 10, 10, 10, 11, 11, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15, 16, 18, 19, 24, 27, 28, 30, 39),
)
"""Sentences of each review in the test rows of examples/reviews."""
AT_ONCE = 200
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def equal(rows: int, groups: int) -> Ints:
    sizes = np.full(groups, rows // groups)
    sizes[: rows - sizes.sum()] += 1
    return sizes


def zipf(rows: int, groups: int) -> Ints:
    """Sizes as c, c/2, c/3, …, at least one row each, with the c that comes nearest to so many rows."""
    rank = np.arange(1, groups + 1)
    low, high = 0.0, float(rows)
    while high - low > 1e-6:
        middle = (low + high) / 2
        short = np.maximum(1, np.round(middle / rank)).sum() < rows
        low, high = (middle, high) if short else (low, middle)
    sizes = np.maximum(1, np.round(high / rank)).astype(np.int64)
    sizes[0] += rows - sizes.sum()
    return sizes


def layouts() -> Iterator[tuple[str, Ints]]:
    yield "singletons", equal(200, 200)
    for rows in (200, 600, 2000):
        for groups in (40, 60, 300):
            if groups < rows:
                yield "equal", equal(rows, groups)
                yield "Zipf", zipf(rows, groups)
    yield "the demo's", np.array(DEMO)


def correct(
    rng: np.random.Generator, sizes: Ints, truth: float, icc: float, runs: int, candidates: int
) -> Iterator[NDArray[np.bool_]]:
    """Right or wrong [≤ AT_ONCE, candidates, n] until there are `runs`. Rates of groups are Beta, and the normals
    behind rates and rows are shared in part by the candidates (a Gaussian copula): what is hard for one is for others.
    """
    grid = np.linspace(-6, 6, 4001)
    codes = np.repeat(np.arange(sizes.size), sizes)
    spread = 1 / icc - 1 if icc else 0.0
    table = ndtri(betaincinv(truth * spread, (1 - truth) * spread, ndtr(grid))) if icc else None

    def normals(runs: int, size: int) -> Floats:
        individual = rng.standard_normal((runs, candidates, size))
        return np.sqrt(SHARED) * rng.standard_normal((runs, 1, size)) + np.sqrt(1 - SHARED) * individual

    for first in range(0, runs, AT_ONCE):
        batch_runs = min(AT_ONCE, runs - first)
        below = ndtri(truth)
        if table is not None:
            below = np.interp(normals(batch_runs, sizes.size), grid, table)[:, :, codes]
        yield normals(batch_runs, int(sizes.sum())) < below


def scores(u: Floats, mean: float = 0.75) -> Floats:
    """Of evenly spread `u`: what is not 1 is 0 in a quarter and evenly between in the rest."""
    below_one = (1 - mean) / 0.625
    return np.where(u < below_one / 4, 0.0, np.where(u > below_one, 1.0, (u - below_one / 4) / (0.75 * below_one)))
