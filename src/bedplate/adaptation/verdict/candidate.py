"""What nomination looks at of a candidate, and the keys of the budget that it is over."""

from __future__ import annotations

from dataclasses import dataclass

from bedplate.adaptation.task.spec import BudgetSpec

_SHAPES = {
    "p95_ms": ("p95 latency", "{:.0f} ms"),
    "usd_per_1k_calls": ("price", "${:.4f} per 1,000 calls"),
    "max_prompt_tokens": ("longest prompt", "{:.0f} tokens"),
}


@dataclass(frozen=True)
class Nominable:
    """A skin's numbers on valid, and its measured cost."""

    rung: str
    estimate: float
    design_effect: float
    usd_per_1k_calls: float
    p95_ms: float
    prompt_tokens: int
    broken: str | None = None
    """The guard that it was shown to break before test was opened, and why."""
    row_variance: float | None = None
    """Of a metric that is no share."""
    p95_least_ms: float | None = None
    """Its lower bound: what was not shown to be over the budget may be shown on test not to be. None: `p95_ms`."""
    short: tuple[str, ...] = ()
    """Requirements of the target that its estimates on valid do not meet."""


def over(candidate: Nominable, budget: BudgetSpec) -> list[tuple[str, float, float]]:
    """The keys of the budget that a candidate is over, each with its own value and the limit."""
    values = {
        "p95_ms": (candidate.p95_ms if candidate.p95_least_ms is None else candidate.p95_least_ms, budget.p95_ms),
        "usd_per_1k_calls": (candidate.usd_per_1k_calls, budget.usd_per_1k_calls),
        "max_prompt_tokens": (candidate.prompt_tokens, budget.max_prompt_tokens),
    }
    return [(key, value, limit) for key, (value, limit) in values.items() if limit is not None and value > limit]


def infeasible(candidate: Nominable, budget: BudgetSpec) -> str | None:
    """Why a candidate does not fit the budget or breaks a guard, or None where it does neither."""
    if candidate.broken is not None:
        return candidate.broken
    for key, value, limit in over(candidate, budget):
        name, shape = _SHAPES[key]
        return f"{name} {shape.format(value)} is over the budget of {shape.format(limit)}"
    return None
