"""The mixture of least expected loss, its uncertainty, and the design of mixtures to try.

The design is points of a Sobol sequence spread over the simplex as by Dirichlet distributions of several
concentrations, after RegMix (https://arxiv.org/abs/2407.01492, section 3.1), but without chance: more runs later leave
the first ones as they are. The best is searched among mixtures inside the range that was tried; each draw of the
responses has a best of its own, and their spread is the interval. Errors of domains count as independent.

Shapes: K sources, N runs, D domains, C candidates, B draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bedplate.core.errors import UsageError
from bedplate.pretraining.mixing.response import Array, Draws, Response

MAX_RUNS = 1024
"""Mixtures that there are."""
_CONCENTRATIONS = (0.5, 1.0, 2.0)
"""Dirichlet concentration per source, on average: below one, most of a mixture is of a few sources."""

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


DRAWS = 500
_CANDIDATES = 2048
CONFIDENCE = 0.9


@dataclass(frozen=True)
class ValueInterval:
    """A value with the interval that holds it at CONFIDENCE."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Best:
    """shares: of each source, the best and where it may be. losses, before: of each domain, what one run of the best
    and of the first mixture is predicted to read. gain: what the best takes off the goal's loss of the first mixture,
    and `better`, how probable it is that it takes off anything."""

    shares: tuple[ValueInterval, ...]
    losses: tuple[ValueInterval, ...]
    before: tuple[ValueInterval, ...]
    gain: ValueInterval
    better: float


def best(
    tried_NK: Shares,
    first_K: Shares,
    most_K: Shares,
    responses: Sequence[Response],
    weights: Sequence[float],
    seed: int,
) -> Best:
    """weights: of each domain in the goal, which is the mean of their losses by these."""
    total = sum(weights)
    goal_D = np.array(weights) / total
    draws = [response.draws(DRAWS, seed + number) for number, response in enumerate(responses)]
    candidates = _candidates(tried_NK, first_K, most_K, seed)
    loss_CB = _goal(draws, goal_D, candidates)
    center = candidates[int(loss_CB.mean(axis=1).argmin())]
    closer = _around(center, candidates, seed)
    candidates, loss_CB = np.vstack([candidates, closer]), np.vstack([loss_CB, _goal(draws, goal_D, closer)])
    chosen_K = candidates[int(loss_CB.mean(axis=1).argmin())]
    bests_BK = candidates[loss_CB.argmin(axis=0)]
    pair = np.vstack([chosen_K, first_K])
    gain_B = np.diff(_goal(draws, goal_D, pair), axis=0)[0]
    of_one = [draw.one_run(pair) for draw in draws]
    return Best(
        tuple(_spread(float(chosen_K[k]), bests_BK[:, k]) for k in range(len(chosen_K))),
        tuple(_spread(float(r.at(pair)[0]), run_sample[0]) for r, run_sample in zip(responses, of_one, strict=True)),
        tuple(_spread(float(r.at(pair)[1]), run_sample[1]) for r, run_sample in zip(responses, of_one, strict=True)),
        _spread(float(gain_B.mean()), gain_B),
        float((gain_B > 0).mean()),
    )


def _goal(draws: Sequence[Draws], goal_D: Array, shares_CK: Shares) -> Array:
    """The goal's loss of each mixture in each draw [C, B]."""
    total = np.zeros((len(shares_CK), DRAWS))
    for draw, weight in zip(draws, goal_D.tolist(), strict=True):
        if weight:
            total += weight * draw.at(shares_CK)
    return total


def _candidates(tried_NK: Shares, first_K: Shares, most_K: Shares, seed: int) -> Shares:
    """The tried ones, mixtures between three of them, and others of the simplex; all within the shares that were
    tried."""
    draw = np.random.default_rng(seed)
    triples = draw.integers(0, len(tried_NK), (_CANDIDATES, 3))
    blends = np.einsum("cs,csk->ck", draw.dirichlet(np.ones(3), _CANDIDATES), tried_NK[triples])
    uniform = [capped(one_K, most_K) for one_K in draw.dirichlet(np.ones(len(first_K)), _CANDIDATES // 2)]
    spread = np.vstack([design(first_K, most_K, _CANDIDATES // 2, seed + 1), *uniform])
    low, high = tried_NK.min(axis=0) - 1e-12, np.minimum(tried_NK.max(axis=0), most_K) + 1e-12
    pool = np.vstack([tried_NK, blends, spread])
    return pool[((pool >= low) & (pool <= high)).all(axis=1)]


def _around(near_K: Shares, candidates_CK: Shares, seed: int) -> Shares:
    """A part of the way from one mixture to others: the region is convex."""
    draw = np.random.default_rng(seed + 2)
    towards = candidates_CK[draw.integers(0, len(candidates_CK), _CANDIDATES)]
    return near_K + np.exp(draw.uniform(np.log(0.005), np.log(0.5), (_CANDIDATES, 1))) * (towards - near_K)


def _spread(value: float, values_B: Array) -> ValueInterval:
    low, high = np.quantile(values_B, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return ValueInterval(value, float(low), float(high))
