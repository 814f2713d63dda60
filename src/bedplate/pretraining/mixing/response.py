"""Held-out loss as a function of the mixture: several forms, weighted by leave-one-out error, and draws from them.

exponential   L = c + exp(t · r)                   data mixing laws (https://arxiv.org/abs/2403.16952, equation 7)
power         log L = a + Σ b_k · log(r_k + ε)     a power of each share, which no share of zero makes infinite
quadratic     log L = Σ b_k r_k + Σ b_jk r_j r_k   Scheffé's polynomial of mixtures (1958, J. R. Stat. Soc. B 20:344)

Each is linear but for one number (c, ε), of which a few values are tried. Weights are pseudo-BMA (Yao et al. 2018,
https://arxiv.org/abs/1704.02030, section 3.4). Draws come from all forms with weight, in proportion, and for each from
the posterior under a flat prior and normal errors of one variance (Gelman et al., Bayesian Data Analysis, 14.2).

Shapes: N runs, K sources, P constants, B draws, C mixtures that are asked about.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
