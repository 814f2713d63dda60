"""How large a model, on how many tokens: the parametric fit of Chinchilla, and what use after training changes.

    loss(N, D) = E + A / N^α + B / D^β          N parameters, D tokens, in nats a token       (2203.15556, approach 3)

Under C = 6·N·D operations the least loss has a closed form: N = G·(C/6)^(β/(α+β)), D = C/(6·N), with
G = (α·A / (β·B))^(1/(α+β)). Where a model will also read and write T tokens in its use, the same loss costs least at
the N that minimises 6·N·D(N) + 2·N·T, D(N) being the tokens that reach the loss (Sardana et al. 2401.00448): smaller
models, trained longer. Both are of the MassiveText-like data and the tokenizer that were fitted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from bedplate.core.errors import UsageError
from bedplate.economics.numbers.formula import at_least, positive


@dataclass(frozen=True)
class ScalingFit:
    """loss = floor + a / N^alpha + b / D^beta. The ranges are of the runs that were fitted."""

    alpha: float
    beta: float
    a: float
    b: float
    floor: float
    source: str
    parameters: tuple[float, float] = (44e6, 16e9)
    tokens: tuple[float, float] = (5e9, 500e9)

    def loss(self, parameters: float, tokens: float) -> float:
        return self.floor + self.a / parameters**self.alpha + self.b / tokens**self.beta

    def best_parameters(self, flops: float) -> float:
        """The size of least loss for so many training operations."""
        both = self.alpha + self.beta
        scale = (self.alpha * self.a / (self.beta * self.b)) ** (1 / both)
        return (flops / 6) ** (self.beta / both) * scale

    def tokens_for(self, parameters: float, loss: float) -> float:
        """Tokens that bring a model of this size to `loss`; infinite where no number of tokens does."""
        excess = loss - self.floor - self.a * parameters**-self.alpha
        return math.inf if excess <= 0 else (self.b / excess) ** (1 / self.beta)


EPOCH = ScalingFit(0.3478, 0.3658, 482.01, 2085.43, 1.8172, "Epoch AI's refit of Chinchilla, 2404.10102")
"""The constants of the paper itself disagree with its own other two approaches, the refit's do not (2404.10102)."""


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


def compute_optimal(flops: float, fit: ScalingFit = EPOCH) -> Optimum:
    """The least predicted loss for so many training operations."""
    positive(flops=flops)
    parameters = fit.best_parameters(flops)
    if parameters < 1 or flops < 6 * parameters:
        raise UsageError(f"{flops:.3g} operations train no model at all: they are under one parameter or one token")
    return _optimum(parameters, flops / (6 * parameters), 0.0, fit)


def inference_aware(loss: float, inference_tokens: float, fit: ScalingFit = EPOCH) -> Optimum:
    """The size and tokens that reach `loss` with the least training and use together. inference_tokens: read and
    written over the model's life. UsageError for a loss that no size reaches."""
    from scipy.optimize import minimize_scalar

    positive(loss=loss)
    at_least(0, inference_tokens=inference_tokens)
    if loss <= fit.floor:
        raise UsageError(f"a loss of {loss:g} is not reached by any size: the fit's floor is {fit.floor:g}")
    smallest = (fit.a / (loss - fit.floor)) ** (1 / fit.alpha)

    def size(log_ratio: float) -> tuple[float, float]:
        """The size smallest · (1 + e^log_ratio), and its tokens."""
        parameters = smallest * (1 + math.exp(log_ratio))
        return parameters, fit.tokens_for(parameters, loss)

    def cost(log_ratio: float) -> float:
        parameters, tokens = size(log_ratio)
        return 6 * parameters * tokens + 2 * parameters * inference_tokens

    least: Any = minimize_scalar(cost, bounds=(-20.0, 20.0), method="bounded", options={"xatol": 1e-9})
    return _optimum(*size(least.x), inference_tokens, fit)


def _optimum(parameters: float, tokens: float, inference_tokens: float, fit: ScalingFit) -> Optimum:
    checks = (("parameters", parameters, fit.parameters), ("tokens", tokens, fit.tokens))
    warnings = tuple(
        f"{value:.2g} {quantity} lie outside the fitted runs ({low:.2g} to {high:.2g}): extrapolated"
        for quantity, value, (low, high) in checks
        if not low <= value <= high
    )
    flops = 6 * parameters * tokens, 2 * parameters * inference_tokens
    return Optimum(parameters, tokens, fit.loss(parameters, tokens), *flops, fit, warnings)
