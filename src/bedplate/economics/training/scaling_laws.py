"""How large a model, on how many tokens: the parametric fit of Chinchilla, and what use after training changes.

    loss(N, D) = E + A / N^α + B / D^β          N parameters, D tokens, in nats a token       (2203.15556, approach 3)

Under C = 6·N·D operations the least loss has a closed form: N = G·(C/6)^(β/(α+β)), D = C/(6·N), with
G = (α·A / (β·B))^(1/(α+β)). Where a model will also read and write T tokens in its use, the same loss costs least at
the N that minimises 6·N·D(N) + 2·N·T, D(N) being the tokens that reach the loss (Sardana et al. 2401.00448): smaller
models, trained longer. Both are of the MassiveText-like data and the tokenizer that were fitted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from bedplate.core.errors import UsageError
from bedplate.economics.numbers.bounds import at_least, positive
from bedplate.economics.numbers.formula import Number


@dataclass(frozen=True)
class ScalingFit:
    """loss = floor + a / N^alpha + b / D^beta. The ranges are of the runs that were fitted."""

    name: str
    alpha: float
    beta: float
    a: float
    b: float
    floor: float
    source: str
    parameters: tuple[float, float] = (44e6, 16e9)
    tokens: tuple[float, float] = (5e9, 500e9)

    def loss(self, parameters: Number, tokens: Number) -> Number:
        terms = parameters**-self.alpha * self.a + tokens**-self.beta * self.b
        return terms + self.floor  # pyright: ignore[reportReturnType], a power may be complex for all it knows

    def best_parameters(self, flops: Number) -> Number:
        """The size of least loss for so many training operations."""
        both = self.alpha + self.beta
        scale = (self.alpha * self.a / (self.beta * self.b)) ** (1 / both)
        return (flops / 6) ** (self.beta / both) * scale


FITS: dict[str, ScalingFit] = {
    "epoch": ScalingFit("epoch", 0.3478, 0.3658, 482.01, 2085.43, 1.8172, "Epoch AI's refit of Chinchilla, 2404.10102"),
    "hoffmann": ScalingFit("hoffmann", 0.34, 0.28, 406.4, 410.7, 1.69, "Hoffmann et al. 2203.15556, approach 3"),
}
DEFAULT_FIT = "epoch"
"""Hoffmann's constants disagree with their own other two approaches, the refit's do not (2404.10102). And theirs are
printed rounded: at Gopher's budget they give 32 B parameters, unrounded (0.3392, 0.2849) the 40 B of their paper."""


@dataclass(frozen=True)
class Optimum:
    """A size and a number of tokens. training_flops: 6·N·D. inference_flops: 2·N·T. loss: predicted, nats a token."""

    parameters: float
    tokens: float
    loss: float
    training_flops: float
    inference_flops: float
    fit: ScalingFit
    warnings: tuple[str, ...]


def find_fit(name: str | ScalingFit) -> ScalingFit:
    """A fit by name; one's own stays as it is. UsageError names those there are."""
    if isinstance(name, ScalingFit):
        return name
    if name not in FITS:
        raise UsageError(f"there is no fit {name!r}; there are {', '.join(FITS)}")
    return FITS[name]


def predicted_loss(parameters: float, tokens: float, fit: str | ScalingFit = DEFAULT_FIT) -> float:
    """Nats a token."""
    positive(parameters=parameters, tokens=tokens)
    return find_fit(fit).loss(parameters, tokens)


def compute_optimal(flops: float, fit: str | ScalingFit = DEFAULT_FIT) -> Optimum:
    """The least predicted loss for so many training operations."""
    positive(flops=flops)
    law = find_fit(fit)
    parameters = law.best_parameters(flops)
    if parameters < 1 or flops < 6 * parameters:
        raise UsageError(f"{flops:.3g} operations train no model at all: they are under one parameter or one token")
    return _optimum(parameters, flops / (6 * parameters), 0.0, law)


def flops_for_budget(
    usd: float, usd_per_hour: float, peak_flops_per_second: float, mfu: float, overhead: float = 1.0
) -> float:
    """Training operations that `usd` buy: usd / price · 3600 · peak · MFU / overhead."""
    positive(usd=usd, usd_per_hour=usd_per_hour, peak_flops_per_second=peak_flops_per_second, mfu=mfu)
    at_least(1, overhead=overhead)
    return usd / usd_per_hour * 3600 * peak_flops_per_second * mfu / overhead


def tokens_for_loss(parameters: float, loss: float, fit: str | ScalingFit = DEFAULT_FIT) -> float | None:
    """Tokens that bring a model of this size to `loss`; None where no number of tokens does."""
    positive(parameters=parameters, loss=loss)
    law = find_fit(fit)
    excess = loss - law.floor - law.a * parameters**-law.alpha
    return None if excess <= 0 else (law.b / excess) ** (1 / law.beta)


def inference_aware(loss: float, inference_tokens: float, fit: str | ScalingFit = DEFAULT_FIT) -> Optimum:
    """The size and tokens that reach `loss` with the least training and use together, by golden-section search.
    inference_tokens: read and written over the model's life. UsageError for a loss that no size reaches."""
    positive(loss=loss)
    at_least(0, inference_tokens=inference_tokens)
    law = find_fit(fit)
    if loss <= law.floor:
        raise UsageError(f"a loss of {loss:g} is not reached by any size: the fit's floor is {law.floor:g}")
    smallest = (law.a / (loss - law.floor)) ** (1 / law.alpha)

    def size(log_ratio: float) -> tuple[float, float]:
        """The size smallest · (1 + e^log_ratio), and its tokens."""
        parameters = smallest * (1 + math.exp(log_ratio))
        return parameters, tokens_for_loss(parameters, loss, fit) or math.inf

    def cost(log_ratio: float) -> float:
        parameters, tokens = size(log_ratio)
        return 6 * parameters * tokens + 2 * parameters * inference_tokens

    return _optimum(*size(_minimize(cost, -20.0, 20.0)), inference_tokens, law)


def _minimize(cost: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one valley has its floor: golden-section search."""
    ratio = (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = cost(left), cost(right)
    while high - low > 1e-7:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = cost(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = cost(right)
    return (low + high) / 2


def _optimum(parameters: float, tokens: float, inference_tokens: float, fit: ScalingFit) -> Optimum:
    checks = (("parameters", parameters, fit.parameters), ("tokens", tokens, fit.tokens))
    return Optimum(
        parameters=parameters,
        tokens=tokens,
        loss=predicted_loss(parameters, tokens, fit),
        training_flops=6 * parameters * tokens,
        inference_flops=2 * parameters * inference_tokens,
        fit=fit,
        warnings=tuple(
            f"{value:.2g} {quantity} lie outside the fitted runs ({low:.2g} to {high:.2g}): extrapolated"
            for quantity, value, (low, high) in checks
            if not low <= value <= high
        ),
    )
