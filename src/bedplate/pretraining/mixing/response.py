"""Held-out loss as a function of the mixture: several forms, weighted by leave-one-out error, and draws from them; the
mixture of least expected loss, its uncertainty, and the design of mixtures to try.

exponential   L = c + exp(t · r)                   data mixing laws (https://arxiv.org/abs/2403.16952, equation 7)
power         log L = a + Σ b_k · log(r_k + ε)     a power of each share, which no share of zero makes infinite
quadratic     log L = Σ b_k r_k + Σ b_jk r_j r_k   Scheffé's polynomial of mixtures (1958, J. R. Stat. Soc. B 20:344)

Each is linear but for one number (c, ε), of which a few values are tried. Weights are pseudo-BMA (Yao et al. 2018,
https://arxiv.org/abs/1704.02030, section 3.4). Draws come from all forms with weight, in proportion, and for each from
the posterior under a flat prior and normal errors of one variance (Gelman et al., Bayesian Data Analysis, 14.2).

The design is points of a Sobol sequence spread over the simplex as by Dirichlet distributions of several
concentrations, after RegMix (https://arxiv.org/abs/2407.01492, section 3.1), but without chance: more runs later leave
the first ones as they are. The best is searched among mixtures inside the range that was tried; each draw of the
responses has a best of its own, and their spread is the interval. Errors of domains count as independent.

Shapes: N runs, K sources, D domains, P constants, B draws, C mixtures that are asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bedplate.core.errors import UsageError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Form:
    """features: of mixtures [N, K] and the number that is not linear, [N, P]. numbers: its values. floor: whether that
    is what no mixture removes, as a share of the least loss seen."""

    features: Callable[[Array, float], Array]
    numbers: tuple[float, ...]
    floor: bool


def _pairs(shares_NK: Array, _: float) -> Array:
    left, right = np.triu_indices(shares_NK.shape[1], 1)
    return np.hstack([shares_NK, shares_NK[:, left] * shares_NK[:, right]])


FORMS: dict[str, Form] = {
    "exponential": Form(lambda shares, _: shares, (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98), True),
    "power": Form(
        lambda shares, floor: np.hstack([np.ones((len(shares), 1)), np.log(shares + floor)]),
        (0.003, 0.01, 0.03, 0.1),
        False,
    ),
    "quadratic": Form(_pairs, (0.0,), False),
}


@dataclass(frozen=True)
class ResponseFit:
    """One form with its number. error: of predicting each run from the others, root mean square of log losses."""

    form: str
    number: float
    error: float
    constants: Array
    scatter: float
    degrees: int
    floor: float
    root_PP: Array

    def at(self, shares_CK: Array, constants: Array, noise: Array | float = 0.0) -> Array:
        """The loss of mixtures [C, …] with some constants [P, …]."""
        return self.floor + np.exp(FORMS[self.form].features(shares_CK, self.number) @ constants + noise)


@dataclass(frozen=True)
class Response:
    """One domain's loss. fits: those that weigh something, the heaviest first. explained: share of the runs' variance
    (of log losses) that the first predicts of each run from the others; where it is not above zero, the runs say
    nothing of the mixture."""

    fits: tuple[ResponseFit, ...]
    weights: tuple[float, ...]
    explained: float

    def draws(self, count: int, seed: int) -> Draws:
        """So many functions that it may be."""
        draw = np.random.default_rng(seed)
        groups: list[tuple[ResponseFit, Array, Array]] = []
        for fit, fit_count in zip(self.fits, draw.multinomial(count, self.weights).tolist(), strict=True):
            scatter_B = fit.scatter * np.sqrt(fit.degrees / draw.chisquare(fit.degrees, fit_count))
            normal = draw.standard_normal((fit_count, len(fit.constants)))
            constants_BP = fit.constants + scatter_B[:, None] * (normal @ fit.root_PP.T)
            groups.append((fit, constants_BP.T, scatter_B * draw.standard_normal(fit_count)))
        return Draws(tuple(groups), draw.permutation(count))

    def at(self, shares_CK: Array) -> Array:
        """The loss [C] that the fits give together."""
        weighted = zip(self.fits, self.weights, strict=True)
        return np.sum([weight * fit.at(shares_CK, fit.constants) for fit, weight in weighted], axis=0)


@dataclass(frozen=True)
class Draws:
    """Functions that a response may be. groups: fits, each with constants [P, b] and the noise of one run [b]; order:
    in which they stand, so that one domain's do not go with another's of the same form."""

    groups: tuple[tuple[ResponseFit, Array, Array], ...]
    order: NDArray[np.int64]

    def at(self, shares_CK: Array) -> Array:
        """The loss expected of mixtures [C, B]."""
        return np.hstack([fit.at(shares_CK, constants) for fit, constants, _ in self.groups])[:, self.order]

    def one_run(self, shares_CK: Array) -> Array:
        """The loss of one run of each [C, B]."""
        return np.hstack([fit.at(shares_CK, constants, noise) for fit, constants, noise in self.groups])[:, self.order]


def fit(shares_NK: Array, losses_N: Array) -> Response:
    """Fits a response to runs' shares and losses. UsageError for fewer than three runs more than sources, or mixtures
    that do not differ."""
    count, sources = shares_NK.shape
    if count < sources + 3:
        raise UsageError(f"{count} runs: at least {sources + 3} are needed to fit a response to {sources} sources")
    fits = [
        candidate
        for name, form in FORMS.items()
        for number in form.numbers
        if (candidate := _fitted(name, number, shares_NK, losses_N)) is not None
    ]
    if not fits:
        raise UsageError("the mixtures that were tried do not differ enough to fit a response to them")
    fits.sort(key=lambda ranked: ranked.error)
    lowest_error = max(fits[0].error, 1e-12)
    weights = np.array([(lowest_error / max(fitted.error, 1e-12)) ** count for fitted in fits])
    relevant = weights > 0.01
    weights = weights[relevant] / weights[relevant].sum()
    logs_N = np.log(losses_N)
    alone = float(np.sqrt(np.mean(((logs_N - logs_N.mean()) * count / (count - 1)) ** 2)))
    explained = 1 - (fits[0].error / alone) ** 2 if alone > 0 else 0.0
    return Response(tuple(fits[: len(weights)]), tuple(weights.tolist()), explained)


def _fitted(name: str, number: float, shares_NK: Array, losses_N: Array) -> ResponseFit | None:
    """None where there are too few runs for it, or their mixtures do not tell its constants apart."""
    form = FORMS[name]
    floor = number * float(losses_N.min()) if form.floor else 0.0
    x_NP, y_N = form.features(shares_NK, number), np.log(losses_N - floor)
    count, constants = x_NP.shape
    if count < constants + 2 or np.linalg.cond(x_NP) > 1e8:
        return None
    q, r = np.linalg.qr(x_NP)
    fitted_P = np.linalg.solve(r, q.T @ y_N)
    left_N, leverage_N = y_N - x_NP @ fitted_P, (q**2).sum(axis=1)
    if leverage_N.max() > 1 - 1e-9:
        return None  # a constant that one run alone decides predicts nothing of it
    predicted_N = np.log(floor + np.exp(y_N - left_N / (1 - leverage_N)))
    error = float(np.sqrt(np.mean((np.log(losses_N) - predicted_N) ** 2)))
    degrees = count - constants
    scatter = float(np.sqrt(left_N @ left_N / degrees))
    return ResponseFit(name, number, error, fitted_P, scatter, degrees, floor, np.linalg.inv(r))


# --- the best mixture

MAX_RUNS = 1024
"""Mixtures that there are."""
_CONCENTRATIONS = (0.5, 1.0, 2.0)
"""Dirichlet concentration per source, on average: below one, most of a mixture is of a few sources."""


def design(first_K: Array, most_K: Array, count: int, seed: int) -> Array:
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


def capped(shares_K: Array, most_K: Array) -> Array:
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
        grown = mixture * remainder / uncapped if uncapped > 0 else remainder / max(1, (~over).sum())
        mixture = np.where(over, most_K, grown)
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
    tried_NK: Array, first_K: Array, most_K: Array, responses: Sequence[Response], weights: Sequence[float], seed: int
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


def _goal(draws: Sequence[Draws], goal_D: Array, shares_CK: Array) -> Array:
    """The goal's loss of each mixture in each draw [C, B]."""
    total = np.zeros((len(shares_CK), DRAWS))
    for draw, weight in zip(draws, goal_D.tolist(), strict=True):
        if weight:
            total += weight * draw.at(shares_CK)
    return total


def _candidates(tried_NK: Array, first_K: Array, most_K: Array, seed: int) -> Array:
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


def _around(near_K: Array, candidates_CK: Array, seed: int) -> Array:
    """A part of the way from one mixture to others: the region is convex."""
    draw = np.random.default_rng(seed + 2)
    towards = candidates_CK[draw.integers(0, len(candidates_CK), _CANDIDATES)]
    return near_K + np.exp(draw.uniform(np.log(0.005), np.log(0.5), (_CANDIDATES, 1))) * (towards - near_K)


def _spread(value: float, values_B: Array) -> ValueInterval:
    low, high = np.quantile(values_B, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return ValueInterval(value, float(low), float(high))
