"""Rows in groups where the truth is known, for simulations of the gate: layouts of groups, right and wrong answers, and
whether their bounds are beyond a bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import lru_cache, partial
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtr, ndtri

from bedplate.core.statistics import bootstrap, clusters
from bedplate.core.statistics.missed import FewFailures, missed_groups_bound
from bedplate.core.statistics.proportions import Side
from bedplate.core.statistics.unequal import MINIMUM_GROUPS, dominating

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


GIANT = np.array([200, *[1] * 800])
"""One group that dominates the others: verdicts set it apart."""


def layouts() -> Iterator[tuple[str, Ints]]:
    yield "singletons", equal(200, 200)
    for rows in (200, 600, 2000):
        for groups in (40, 60, 300):
            if groups < rows:
                yield "equal", equal(rows, groups)
                yield "Zipf", zipf(rows, groups)
    yield "the demo's", np.array(DEMO)
    yield "a giant", GIANT


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


def beyond(
    bar: float,
    answers: Floats,
    codes: Ints,
    level: float,
    side: Side = "lower",
    *,
    weights: Floats | None = None,
    minimum_groups: int = MINIMUM_GROUPS,
) -> bool:
    """Whether the bound that verdicts use is beyond the bar. That of `effective_n_bound`, which is spared looking for
    the mean at which what missed groups could hide has the error: of one mean it is asked whether it has less."""

    def decided(failures: Floats, sizes: Floats, rows: float, start: float, confidence: float) -> float:
        edge, few_failures = bar if side == "lower" else 1 - bar, list[FewFailures]()
        if start <= edge:
            return start

        def one_below(few: FewFailures, start: float, _error: float) -> float:
            few_failures.append(few)
            return start - 1

        with patch.object(FewFailures, "lower", one_below):
            part = start - missed_groups_bound(failures, sizes, rows, start, confidence)  # of what it moves the bound
        if not few_failures:
            return start
        least = start - (start - edge) / part
        return start if least <= 0 or few_failures[0].chance(least) <= 1 - confidence else edge - 1e-9

    apart = dominating(np.bincount(codes).astype(float)).any()  # then there are several bounds
    with patch.object(clusters, "missed_groups_bound", missed_groups_bound if apart else decided):
        bound = partial(clusters.effective_n_bound, answers, codes, level, side)
        value = bound(minimum_groups=minimum_groups, weights=weights).value
    return value > bar if side == "lower" else value < bar


def same_resamples() -> AbstractContextManager[object]:
    """Bootstraps of as many groups draw the same resamples; here they draw them once."""
    draw: Callable[[int, int, int], Iterator[Ints]] = vars(bootstrap)["_times_drawn"]

    @lru_cache(maxsize=2)
    def drawn(count: int, resamples: int, seed: int) -> list[Floats]:
        return [times.astype(np.float64) for times in draw(count, resamples, seed)]

    return patch.object(bootstrap, "_times_drawn", drawn)


def covers(
    bar: float,
    answers: Floats,
    codes: Ints,
    confidence: float,
    *,
    weights: Floats | None = None,
    minimum_groups: int = 2,
) -> bool:
    """Whether the two-sided interval that reports show holds the bar."""
    level = 1 - (1 - confidence) / 2
    return not any(
        beyond(bar, answers, codes, level, side, weights=weights, minimum_groups=minimum_groups)
        for side in ("lower", "upper")
    )
