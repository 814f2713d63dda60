"""What nomination looks at of a candidate, the keys of the budget that it is over, and the changes of the task file's
`budget` that would let in what it kept out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bedplate.adaptation.context.outcome import RungOutcome
from bedplate.adaptation.task.spec import BudgetSpec
from bedplate.core.processor import is_busy
from bedplate.evaluation.costs import PLAIN, Scale

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
    """The variance of a row's score, for a metric that is no share."""
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


@dataclass(frozen=True)
class RequiredChange:
    """A key of `budget`, what the task file gives it, and the least round value that would do."""

    key: str
    given: float
    needed: float

    @property
    def summary(self) -> str:
        return f"{self.key}: {self.given:g} → {self.needed:g}"


@dataclass(frozen=True)
class BudgetChanges:
    """Every change of the budget that one candidate needs. estimate: on valid; None where it was not tried. load:
    processes that wanted a processor while its calls were timed, where those were more than there are."""

    rung: str
    changes: tuple[RequiredChange, ...]
    estimate: float | None = None
    load: float | None = None
    scale: Scale = PLAIN

    @property
    def summary(self) -> str:
        """`p95_ms: 500 → 640 would admit lora (0.912 on valid)`."""
        changes = " and ".join(change.summary for change in self.changes)
        estimate_note = (
            "which was not tried" if self.estimate is None else f"{self.scale.format_score(self.estimate)} on valid"
        )
        load_note = "" if self.load is None else f", timed beside other work at a load average of {self.load:.1f}"
        return f"{changes} would admit {self.rung} ({estimate_note}{load_note})"


def round_up(value: float) -> float:
    """The least number of two significant digits that is not below this."""
    if value <= 0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / step - 1e-9) * step:.12g}")


def admissions(
    candidates: Sequence[Nominable],
    outcomes: Mapping[str, RungOutcome],
    budget: BudgetSpec,
    limits: Mapping[str, float],
    scale: Scale = PLAIN,
    loads: Mapping[str, float | None] | None = None,
) -> list[BudgetChanges]:
    """The changes that would let in candidates measured to be over the budget, and rungs that a limit left out: those
    that look best first, then those that ask for the least.

    limits: what was given for keys that the command line may have set in the place of the task file. scale: says the
    candidates' estimates. loads: the load average while a candidate's calls were timed.
    """
    limits_by_key = {**{key: value for key, value in budget.model_dump().items() if value is not None}, **limits}
    proposed: list[BudgetChanges] = []
    for candidate in candidates:
        keys = over(candidate, budget)
        if keys and candidate.broken is None:
            shown = {"p95_ms": candidate.p95_ms}  # as it was measured: only its bound keeps it out
            changes = tuple(RequiredChange(key, limit, round_up(shown.get(key, value))) for key, value, limit in keys)
            timed = {key for key, *_ in keys} & {"p95_ms", "usd_per_1k_calls"}
            load = (loads or {}).get(candidate.rung) if timed else None
            busy = load if load is not None and is_busy(load) else None
            proposed.append(BudgetChanges(candidate.rung, changes, candidate.estimate, busy, scale))
    for name, outcome in outcomes.items():
        needs = {key: value for key, value in outcome.needs.items() if key in limits_by_key}
        if outcome.status == "skipped" and needs:
            changes = tuple(RequiredChange(key, limits_by_key[key], round_up(value)) for key, value in needs.items())
            proposed.append(BudgetChanges(name, changes))
    return sorted(
        proposed, key=lambda admission: (-(admission.estimate or 0.0), len(admission.changes), _growth(admission))
    )


def _growth(admission: BudgetChanges) -> float:
    return max(change.needed / change.given for change in admission.changes)
