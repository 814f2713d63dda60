"""Mixtures to try: points of a Sobol sequence, spread over the simplex as by Dirichlet distributions.

RegMix (https://arxiv.org/abs/2407.01492, section 3.1) draws mixtures around the natural one with several
concentrations, so that some are even and some nearly of one source. The same is done here without chance, and so that
more runs later leave the first ones as they are.

Shapes: K sources, N mixtures.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bedplate.core.errors import UsageError

MAX_RUNS = 1024
"""Mixtures that there are."""
_CONCENTRATIONS = (0.5, 1.0, 2.0)
"""Of a Dirichlet distribution, for each source on average: below one most of a mixture is of a few sources."""

Shares = NDArray[np.float64]


def design(first_K: Shares, most_K: Shares, count: int, seed: int) -> Shares:
    """`first_K` and then so many less one others [N, K], each of sum 1, no share above `most_K`. UsageError for more
    than there are."""
    from scipy import stats
    from scipy.stats import qmc

    if count > MAX_RUNS:
        raise UsageError(f"{count} runs: at most {MAX_RUNS} are possible")
    sobol: Any = qmc.Sobol  # which calls the seed `rng` from some version on, and takes both
    drawn = np.clip(sobol(len(first_K) + 1, scramble=True, seed=seed).random_base2(10)[: count - 1], 1e-6, 1 - 1e-6)
    around_K = np.sqrt(np.maximum(first_K, 1e-3))  # flatter than the first: rare sources are tried, too
    around_K /= around_K.mean()
    indices = (drawn[:, 0] * len(_CONCENTRATIONS)).astype(np.int64)
    concentration = np.array(_CONCENTRATIONS)[indices][:, None] * around_K
    gamma = np.maximum(stats.gamma.ppf(drawn[:, 1:], concentration), 1e-9)
    mixtures = gamma / gamma.sum(axis=1, keepdims=True)
    return np.vstack([first_K, *(capped(one_K, most_K) for one_K in mixtures)])


def capped(shares_K: Shares, most_K: Shares) -> Shares:
    """The nearest mixture in proportion: what a source may not have goes to the others. UsageError where all together
    may not have the whole."""
    if most_K.sum() < 1 - 1e-9:
        raise UsageError(
            f"the sources may give {most_K.sum():.0%} of the tokens asked for; allow more epochs "
            "(data.mixture.epochs), or ask for fewer tokens"
        )
    mixture = shares_K / shares_K.sum()
    for _ in range(len(mixture)):
        over = mixture >= most_K
        if not (mixture > most_K + 1e-12).any():
            break
        remainder, uncapped = 1 - most_K[over].sum(), mixture[~over].sum()
        mixture = np.where(
            over, most_K, mixture * remainder / uncapped if uncapped > 0 else remainder / max(1, (~over).sum())
        )
    return mixture
