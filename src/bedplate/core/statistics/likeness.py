"""How alike rows of one group are, where a row is a vector: its label as 0 and 1, or the words of its text.

The intra-class correlation of one-way ANOVA (Fisher 1925) with the sums of squares added over the numbers of a vector,
which is Anderson's (2001, Austral Ecology 26:32) split of squared distances. Its p-value is of permutations of rows
over the groups; they end early where many reach what was observed (Besag & Clifford 1991, Biometrika 78:301), so that
groups that mean nothing cost next to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bedplate.core.errors import UsageError

ENOUGH = 10
"""So many permutations that reach what was observed end the test."""


@dataclass(frozen=True)
class Likeness:
    """icc: the correlation of two rows of one group, added over the vector's numbers; nan where no group has two rows,
    or nothing varies. p_value: one-sided, that groups are no more alike than this by chance."""

    icc: float
    p_value: float
    n: int
    groups: int


def likeness(
    vectors: NDArray[np.floating], codes: NDArray[np.int64], *, permutations: int = 999, seed: int = 0
) -> Likeness:
    """Likeness of rows [n, d], with the numbers of their groups [n]. Raises UsageError where these do not fit."""
    if vectors.ndim != 2 or codes.shape != vectors.shape[:1] or not codes.size:
        raise UsageError(f"one group for each row of vectors: shapes {vectors.shape} and {codes.shape}")
    order = np.argsort(codes, kind="stable")
    _, starts, sizes = np.unique(codes[order], return_index=True, return_counts=True)
    n, groups = codes.size, sizes.size
    x = np.asarray(vectors, dtype=np.float64) - vectors.mean(axis=0)
    total = float((x**2).sum())
    if groups in (1, n) or total <= 1e-12 * n:
        return Likeness(float("nan"), 1.0, n, groups)

    def between_sum(rows: NDArray[np.float64]) -> float:
        sums = np.add.reduceat(rows, starts, axis=0)
        return float(((sums**2).sum(axis=1) / sizes).sum())

    observed = between_sum(x[order])
    rng = np.random.Generator(np.random.PCG64(seed))
    reached = trials = 0
    while trials < permutations and reached < ENOUGH:
        trials += 1
        reached += between_sum(x[rng.permutation(n)]) >= observed - 1e-9 * total
    mean_between, mean_within = observed / (groups - 1), (total - observed) / (n - groups)
    typical = (n - float((sizes**2).sum()) / n) / (groups - 1)
    icc = (mean_between - mean_within) / (mean_between + (typical - 1) * mean_within)
    p_value = reached / trials if reached >= ENOUGH else (1 + reached) / (1 + trials)
    return Likeness(icc, p_value, n, groups)
