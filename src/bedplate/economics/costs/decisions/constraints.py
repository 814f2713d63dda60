"""What rules an option out, whatever it costs: constraints, each by a stated rule, and the bars of quality and latency.

The exceptions that favour building are constraints here, not prices. A bar is held against the evidence with its
uncertainty: the low end of the quality's range must clear it, the high end of the latency's must stay below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bedplate.economics.costs.decisions.decision_file import Constraint, Option
from bedplate.economics.costs.decisions.option_costs import OptionCosts
from bedplate.economics.numbers.formula import Values


@dataclass(frozen=True)
class ConstraintRule:
    """What a constraint rules out, in words and as a test."""

    explanation: str
    excludes: Callable[[Option], bool]


def _runs_elsewhere(option: Option) -> bool:
    return option.weights == "hosted" or (option.retrieval is not None and option.retrieval.embedder is not None)


def _gives_data_away(option: Option) -> bool:
    hosted_retrieval = option.retrieval is not None and _runs_elsewhere(option)
    return hosted_retrieval or (option.weights == "hosted" and option.tuning is not None)


RULES: Mapping[Constraint, ConstraintRule] = {
    "regulatory_isolation": ConstraintRule(
        "only weights trained here, on known data, and run here: hosted models and others' open weights are out",
        lambda option: option.weights != "own" or _runs_elsewhere(option),
    ),
    "data_may_not_leave": ConstraintRule(
        "no text may be sent to another's machine: hosted models and hosted embedders are out", _runs_elsewhere
    ),
    "highly_proprietary_data": ConstraintRule(
        "no training data and no corpus may be given to another: tuning a hosted model and retrieval that sends "
        "passages or their texts elsewhere are out",
        _gives_data_away,
    ),
    "frontier_research": ConstraintRule(
        "the pretraining is itself what is studied: whatever is not pretrained here is out",
        lambda option: option.weights != "own",
    ),
    "latency": ConstraintRule(
        "the way over a network takes too long by itself: hosted models and hosted embedders are out", _runs_elsewhere
    ),
}


def broken_constraints(option: Option, constraints: Mapping[Constraint, str]) -> tuple[Constraint, ...]:
    """Those of the case that rule the option out."""
    return tuple(name for name in constraints if RULES[name].excludes(option))


@dataclass(frozen=True)
class Shortfall:
    """A bar that is not reached. shown: whether it is sure (the whole range lies on the wrong side)."""

    bar: str
    text: str
    shown: bool


@dataclass(frozen=True)
class Bars:
    """The places of the case's bars among the inputs; None: there is no such bar."""

    quality: int | None
    p95_ms: int | None

    def cleared_by(self, option: OptionCosts, v: Values) -> bool:
        if self.quality is not None and (option.quality is None or option.quality.low(v) < v[self.quality]):
            return False
        return self.p95_ms is None or (option.p95_ms is not None and option.p95_ms.high(v) <= v[self.p95_ms])

    def shortfalls(self, option: OptionCosts, v: Values) -> list[Shortfall]:
        """Which bars are not reached, and by how much."""
        shortfalls: list[Shortfall] = []
        quality, p95 = option.quality, option.p95_ms
        if self.quality is not None and quality is not None and quality.low(v) < v[self.quality]:
            low, high, bar = quality.low(v), quality.high(v), v[self.quality]
            size = f"is at most {high:.3g}" if high < bar else f"may be as low as {low:.3g}"
            shortfalls.append(Shortfall("quality", f"its quality {size}, and the bar is {bar:.3g}", high < bar))
        if self.p95_ms is not None:
            bar = v[self.p95_ms]
            if p95 is None:
                shortfalls.append(Shortfall("latency", f"its p95_ms is not known, and the bar is {bar:g}", False))
            elif p95.high(v) > bar:
                text = f"its p95 latency is up to {p95.high(v):.4g} ms, and the bar is {bar:g}"
                shortfalls.append(Shortfall("latency", text, p95.low(v) > bar))
        return shortfalls

    def places(self, option: OptionCosts) -> frozenset[int]:
        """Places of the inputs that the option's cost or feasibility depends on."""
        ranges = [ranged.place for ranged in (option.quality, option.p95_ms) if ranged is not None]
        bars = [place for place in (self.quality, self.p95_ms) if place is not None]
        return option.net.places.union(ranges, bars)
