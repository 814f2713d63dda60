"""Plain forms of statistics that `bedplate.core.statistics` computes faster: what those are compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bedplate.core.statistics import bootstrap
from bedplate.core.statistics.bootstrap import Bootstrap
from bedplate.core.statistics.clusters import group_codes
from bedplate.core.statistics.proportions import binomial_lower, binomial_upper
from bedplate.core.statistics.unequal import MINIMUM_GROUPS, check_groups

_private = cast("Any", bootstrap)


def binomial_interval(successes: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Exact two-sided interval, (1 - confidence) / 2 on each side."""
    side_confidence = 1 - (1 - confidence) / 2
    return binomial_lower(successes, n, side_confidence), binomial_upper(successes, n, side_confidence)


def clustered_error(values: ArrayLike, groups: Sequence[Hashable]) -> float:
    """The standard error of a mean of rows in groups of one size (Liang & Zeger 1986), as statsmodels has it."""
    x = np.asarray(values, dtype=np.float64)
    codes, count = group_codes(groups)
    sums = np.bincount(codes, weights=x - x.mean(), minlength=count)
    return math.sqrt(count / (count - 1) * float(sums @ sums) / x.size**2)


def bca_cluster_bootstrap(
    statistic: Callable[[NDArray[np.int64]], float],
    groups: Sequence[Hashable],
    confidence: float = 0.95,
    *,
    seed: int = 0,
    resamples: int = 2000,
    minimum_groups: int = MINIMUM_GROUPS,
    icc: float = 1.0,
) -> Bootstrap:
    """Bounds of `statistic(rows)`, a function of row numbers, resampling whole groups: `bca_of_sums` for any statistic.

    icc: how alike rows of a group are, which matters where groups have different sizes.
    """
    codes, count = group_codes(groups)
    check_groups(np.bincount(codes).astype(np.float64), minimum_groups)
    members = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    everything = np.arange(codes.size)
    rng = np.random.Generator(np.random.PCG64(seed))
    draws = np.array(
        [statistic(np.concatenate([members[g] for g in rng.integers(0, count, count)])) for _ in range(resamples)]
    )
    jackknife = np.array([statistic(everything[codes != g]) for g in range(count)])
    shape = _private._shape(codes, icc, np.ones(codes.size))
    return _private._bootstrap(float(statistic(everything)), draws, jackknife, confidence, (0.0, 1.0), True, shape)
