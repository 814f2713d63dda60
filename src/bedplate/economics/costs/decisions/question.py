"""What a decision is computed from: a case and its prices as numbers and formulas, and what rules an option out.

The answer is computed from this alone (`decision.py`), here and in the page's browser, where numbers can be moved.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from bedplate.economics.costs.decisions.decision_file import Case, CaseInputs, Constraint, Input, Option
from bedplate.economics.costs.decisions.option_costs import OptionCosts
from bedplate.economics.numbers.formula import Formula, Values
from bedplate.economics.numbers.prices import Prices

DRAWS = 200
NOTHING_FEASIBLE = "nothing: no option is feasible"
NOTHING_PAYS = "nothing: no option brings in what it costs"


@dataclass(frozen=True)
class ConstraintRule:
    """What a constraint rules out, in words and as a test."""

    explanation: str
    excludes: Callable[[Option], bool]


def _runs_elsewhere(option: Option) -> bool:
    return option.weights == "hosted" or (option.retrieval is not None and option.retrieval.embedder is not None)


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
        lambda option: (
            (option.retrieval is not None and _runs_elsewhere(option))
            or (option.weights == "hosted" and option.tuning is not None)
        ),
    ),
    "frontier_research": ConstraintRule(
        "the pretraining is itself what is studied: whatever is not pretrained here is out",
        lambda option: option.weights != "own",
    ),
    "latency": ConstraintRule(
        "the way over a network takes too long by itself: hosted models and hosted embedders are out", _runs_elsewhere
    ),
}


@dataclass(frozen=True)
class StatedConstraint:
    """A constraint of the case, why it holds there, and what it rules out."""

    name: str
    because: str
    explanation: str


@dataclass(frozen=True)
class Shortfall:
    """A bar that is not reached. shown: whether it is sure (the whole range lies on the wrong side)."""

    bar: str
    text: str
    shown: bool


@dataclass(frozen=True)
class Question:
    """Inputs, formulas over them, and the places of those that are looked at by themselves: the volume, the horizon and
    the bars (None: there is no such bar). drawn: by place, the draws of each input that has a range. must_pay: where no
    option brings in what it costs, none is the answer. warnings: of the prices' age."""

    title: str
    file: str | None
    inputs: Sequence[Input]
    drawn: Mapping[int, Sequence[float]]
    calls: Formula
    calls_place: int
    days_place: int
    quality_bar: int | None
    p95_bar: int | None
    must_pay: bool
    constraints: Sequence[StatedConstraint]
    options: Sequence[OptionCosts]
    warnings: Sequence[str]

    @property
    def values(self) -> list[float]:
        return [row.value for row in self.inputs]

    @property
    def draws(self) -> list[list[float]]:
        """Draws of all inputs; none where no input has a range."""
        draws = [self.values for _ in range(DRAWS if self.drawn else 0)]
        for place, column in self.drawn.items():
            for n, value in enumerate(column):
                draws[n][place] = value
        return draws

    def moved(self, values: Mapping[str, float]) -> Question:
        """The same with other values of some inputs, by name, which are taken as exact."""
        inputs = [
            Input(row.name, values[row.name], values[row.name], values[row.name], row.search, row.source)
            if row.name in values
            else row
            for row in self.inputs
        ]
        drawn = {place: column for place, column in self.drawn.items() if self.inputs[place].name not in values}
        return replace(self, inputs=inputs, drawn=drawn)

    def low(self, place: int, v: Values) -> float:
        """The low end of an input, which keeps the width of its range where its value is varied."""
        return v[place] - (self.inputs[place].value - self.inputs[place].low)

    def high(self, place: int, v: Values) -> float:
        return v[place] + (self.inputs[place].high - self.inputs[place].value)

    def clears(self, option: OptionCosts, v: Values) -> bool:
        """Whether the option reaches the bars: the low end of its quality, the high end of its latency."""
        quality, latency = self.quality_bar, self.p95_bar
        if quality is not None and (option.quality is None or self.low(option.quality, v) < v[quality]):
            return False
        return latency is None or (option.p95_ms is not None and self.high(option.p95_ms, v) <= v[latency])

    def shortfalls(self, option: OptionCosts, v: Values) -> list[Shortfall]:
        """Which bars are not reached, and by how much."""
        shortfalls: list[Shortfall] = []
        quality, p95 = option.quality, option.p95_ms
        if self.quality_bar is not None and quality is not None and self.low(quality, v) < v[self.quality_bar]:
            low, high, bar = self.low(quality, v), self.high(quality, v), v[self.quality_bar]
            size = f"is at most {high:.3g}" if high < bar else f"may be as low as {low:.3g}"
            shortfalls.append(Shortfall("quality", f"its quality {size}, and the bar is {bar:.3g}", high < bar))
        if self.p95_bar is not None:
            bar = v[self.p95_bar]
            if p95 is None:
                shortfalls.append(Shortfall("latency", f"its p95_ms is not known, and the bar is {bar:g}", False))
            elif self.high(p95, v) > bar:
                text = f"its p95 latency is up to {self.high(p95, v):.4g} ms, and the bar is {bar:g}"
                shortfalls.append(Shortfall("latency", text, self.low(p95, v) > bar))
        return shortfalls

    def cheapest(self, options: Sequence[OptionCosts], v: Values) -> str:
        """The name of the option that costs least, or why there is none."""
        if not options:
            return NOTHING_FEASIBLE
        nets = [option.net(v) for option in options]
        least = min(nets)
        return NOTHING_PAYS if self.must_pay and least > 0 else options[nets.index(least)].name

    def choose(self, options: Sequence[OptionCosts], v: Values) -> str:
        """The best of those that clear the bars."""
        return self.cheapest([option for option in options if self.clears(option, v)], v)


def read_question(case: Case, prices: Prices, today: datetime.date | None = None) -> Question:
    """ConfigError for what is missing in either file. today: for the prices' age."""
    shared = CaseInputs(case, prices)
    broken = {
        name: tuple(rule for rule in case.constraints if RULES[rule].excludes(option))
        for name, option in case.options.items()
    }
    options = [OptionCosts(shared, name, option, broken[name]) for name, option in case.options.items()]
    return Question(
        title=case.case,
        file=None if case.path is None else str(case.path),
        inputs=tuple(shared.rows),
        drawn=shared.draws(DRAWS, case.seed),
        calls=shared.calls,
        calls_place=shared.calls_place,
        days_place=shared.days_place,
        quality_bar=shared.bar_quality,
        p95_bar=shared.bar_p95_ms,
        must_pay=case.value.usd_per_call is not None,
        constraints=tuple(
            StatedConstraint(name, because, RULES[name].explanation) for name, because in case.constraints.items()
        ),
        options=options,
        warnings=tuple(prices.warnings(shared.used_prices, today or datetime.date.today())),
    )
