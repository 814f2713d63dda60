"""What rules an option out, whatever it costs: constraints, each by a stated rule, and the bars of quality and latency.

The exceptions that favour building are constraints here, not prices. A bar is looked at with the evidence's own
uncertainty: the low end of the quality's range must clear it, the high end of the latency's must stay below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bedplate.economics.costs.decisions.case import Constraint, Option
from bedplate.economics.costs.decisions.resolved_option import Resolved
from bedplate.economics.costs.decisions.sheet import Values


@dataclass(frozen=True)
class Exclusion:
    """What a constraint rules out, in words and as a test."""

    explanation: str
    breaks: Callable[[Option], bool]


def _runs_elsewhere(option: Option) -> bool:
    return option.weights == "hosted" or (option.retrieval is not None and option.retrieval.embedder is not None)


def _gives_data_away(option: Option) -> bool:
    hosted_retrieval = option.retrieval is not None and _runs_elsewhere(option)
    return hosted_retrieval or (option.weights == "hosted" and option.tuning is not None)


RULES: Mapping[Constraint, Exclusion] = {
    "regulatory_isolation": Exclusion(
        "only weights trained here, on known data, and run here: hosted models and others' open weights are out",
        lambda option: option.weights != "own" or _runs_elsewhere(option),
    ),
    "data_may_not_leave": Exclusion(
        "no text may be sent to another's machine: hosted models and hosted embedders are out", _runs_elsewhere
    ),
    "highly_proprietary_data": Exclusion(
        "no training data and no corpus may be given to another: tuning a hosted model and retrieval that sends "
        "passages or their texts elsewhere are out",
        _gives_data_away,
    ),
    "frontier_research": Exclusion(
        "the pretraining is itself what is studied: whatever is not pretrained here is out",
        lambda option: option.weights != "own",
    ),
    "latency": Exclusion(
        "the way over a network takes too long by itself: hosted models and hosted embedders are out", _runs_elsewhere
    ),
}


def broken_constraints(option: Option, constraints: Mapping[Constraint, str]) -> tuple[Constraint, ...]:
    """Those of the case that rule the option out."""
    return tuple(name for name in constraints if RULES[name].breaks(option))


@dataclass(frozen=True)
class Shortfall:
    """A bar that is not reached. shown: whether it is sure (the whole range lies on the wrong side)."""

    bar: str
    text: str
    shown: bool


def clears_bars(option: Resolved, v: Values) -> bool:
    """At these values."""
    case = option.case
    if case.bar_quality is not None and (option.quality is None or option.quality.low(v) < v[case.bar_quality]):
        return False
    return case.bar_p95_ms is None or (option.p95_ms is not None and option.p95_ms.high(v) <= v[case.bar_p95_ms])


def shortfalls(option: Resolved, v: Values) -> list[Shortfall]:
    """Which bars are not reached, and by how much."""
    case, missed = option.case, list[Shortfall]()
    if case.bar_quality is not None and option.quality is not None and option.quality.low(v) < v[case.bar_quality]:
        low, high, bar = option.quality.low(v), option.quality.high(v), v[case.bar_quality]
        why = f"is at most {high:.3g}" if high < bar else f"is only shown to be at least {low:.3g}"
        missed.append(Shortfall("quality", f"its quality {why}; {bar:.3g} is wanted", high < bar))
    if case.bar_p95_ms is not None:
        bar = v[case.bar_p95_ms]
        if option.p95_ms is None:
            missed.append(Shortfall("latency", f"its p95_ms is not known; at most {bar:g} is wanted", False))
        elif option.p95_ms.high(v) > bar:
            why = f"its p95 latency is up to {option.p95_ms.high(v):.4g} ms; at most {bar:g} is wanted"
            missed.append(Shortfall("latency", why, option.p95_ms.low(v) > bar))
    return missed
