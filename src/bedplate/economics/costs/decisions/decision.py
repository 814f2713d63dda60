"""The answer to a decision file: what each option costs, which is best, why, and what would change that.

1. `option_costs.py` turns both files into inputs and one cost formula for each option.
2. `constraints.py` says which options are allowed, and which clear the bars.
3. The costs at the stated values, and at 200 draws from the stated ranges, give totals with intervals and the ranking.
4. `break_even.py` compares every pair over volumes and days, `sensitivity.py` moves each input alone.
5. `explanation.py` puts the answer into sentences and JSON.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from bedplate.core.display import Brief
from bedplate.core.errors import UsageError
from bedplate.economics.costs.decisions.break_even import BreakEvenVolume, OptionPair
from bedplate.economics.costs.decisions.case_inputs import CaseInputs
from bedplate.economics.costs.decisions.constraints import Bars, Shortfall, broken_constraints
from bedplate.economics.costs.decisions.decision_file import Case, Constraint
from bedplate.economics.costs.decisions.decision_inputs import percentile
from bedplate.economics.costs.decisions.option_costs import CostLine, OptionCosts, option_costs
from bedplate.economics.costs.decisions.sensitivity import Chooser, Sensitivity, flipping_points
from bedplate.economics.numbers.formula import Values
from bedplate.economics.numbers.prices import Prices

DRAWS = 200
INTERVAL = 0.9

Interval = tuple[float, float]


@dataclass(frozen=True)
class OptionOutcome:
    """One option at the stated values. Money is USD over the horizon; intervals hold 90% of the draws and the value.

    cost_per_right_answer is None where no quality is known. net_usd: total with what wrong answers cost, less what
    calls bring in: what options are ranked by. lines: (period, part, USD), which add up to total_usd. machines:
    reserved ones; busy: the share of their time in which they compute, over the horizon. best_in: the share of draws in
    which it is the answer. doubts: why the verdict of its report is no PASS, and why the report is used nonetheless.
    """

    name: str
    method: str
    method_in_short: str
    feasible: bool
    broken: tuple[Constraint, ...]
    short: tuple[Shortfall, ...]
    total_usd: float
    total_interval: Interval
    cost_per_call: float
    cost_per_right_answer: float | None
    net_usd: float
    net_interval: Interval
    profit_usd: float | None
    quality: float | None
    quality_interval: Interval | None
    p95_ms: float | None
    lines: tuple[tuple[str, str, float], ...]
    prompt_tokens: float
    output_tokens: float
    machines: int | None
    busy: float | None
    best_in: float
    notes: tuple[str, ...]
    doubts: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class Decision(Brief):
    """answer: the option's name, or NOTHING_FEASIBLE, NOTHING_PAYS. ranking: feasible options, best first.
    unconstrained: what the answer would be without the constraints."""

    case: Case
    answer: str
    unconstrained: str
    outcomes: tuple[OptionOutcome, ...]
    ranking: tuple[str, ...]
    calls: float
    days: float
    break_evens: tuple[BreakEvenVolume, ...]
    sensitivities: tuple[Sensitivity, ...]
    warnings: tuple[str, ...]

    def outcome(self, name: str) -> OptionOutcome:
        return next(outcome for outcome in self.outcomes if outcome.name == name)

    @property
    def chosen(self) -> OptionOutcome | None:
        """The answer's row, None where the answer is none of the options."""
        return next((outcome for outcome in self.outcomes if outcome.name == self.answer), None)

    def break_even(self, option: str, against: str) -> BreakEvenVolume | None:
        """The break-even of two options, in either order. UsageError for what is no option of the case."""
        names = [outcome.name for outcome in self.outcomes]
        for name in (option, against):
            if name not in names:
                raise UsageError(f"the case has no option {name!r}; its options are {', '.join(names)}")
        pair = {option, against}
        return next((point for point in self.break_evens if {point.option, point.against} == pair), None)


def decide(case: Case, prices: Prices, today: datetime.date | None = None) -> Decision:
    """Everything that can be said about a case at these prices. ConfigError for what is missing in either."""
    shared = CaseInputs(case, prices)
    options = option_costs(shared)
    bars = Bars(shared.bar_quality, shared.bar_p95_ms)
    v, must_pay = shared.inputs.values, case.value.usd_per_call is not None
    allowed = [option for option in options if not broken_constraints(option.option, case.constraints)]
    chooser = Chooser(allowed, bars, must_pay)

    uncertain = any(not row.exact for row in shared.inputs.rows)
    draws = shared.inputs.draws(DRAWS, case.seed) if uncertain else [v]
    # The bars have looked at the ranges already, so that a draw chooses among what is feasible as stated.
    feasible = Chooser([option for option in allowed if bars.cleared_by(option, v)], Bars(None, None), must_pay)
    winners = [feasible.choose(draw) for draw in draws]
    outcomes = tuple(
        _outcome(option, shared, bars, draws, winners.count(option.name) / len(draws)) for option in options
    )
    ranked = sorted((outcome for outcome in outcomes if outcome.feasible), key=lambda outcome: outcome.net_usd)
    places = (shared.calls_place, shared.days_place)
    pairs = [OptionPair.sorted(*pair, places, v) for pair in combinations(allowed, 2)]
    return Decision(
        case=case,
        answer=chooser.choose(v),
        unconstrained=Chooser(options, bars, must_pay).choose(v),
        outcomes=outcomes,
        ranking=tuple(outcome.name for outcome in ranked),
        calls=shared.calls.compile()(v),
        days=v[shared.days_place],
        break_evens=tuple(pair.break_even(v, draws if uncertain else (), INTERVAL) for pair in pairs),
        sensitivities=tuple(flipping_points(chooser, shared.inputs.rows, bars, v)),
        warnings=tuple(prices.warnings(shared.used_prices, today or datetime.date.today())),
    )


def _outcome(
    option: OptionCosts, shared: CaseInputs, bars: Bars, draws: Sequence[Values], best_in: float
) -> OptionOutcome:
    v, case = shared.inputs.values, shared.case
    total, net, calls = option.total_usd(v), option.net_usd(v), shared.calls.compile()(v)
    broken = broken_constraints(option.option, case.constraints)
    quality, tokens = option.quality, option.tokens.at(v)
    share = None if quality is None else v[quality.place]
    return OptionOutcome(
        name=option.name,
        method=option.method,
        method_in_short=option.method_in_short,
        feasible=not broken and bars.cleared_by(option, v),
        broken=broken,
        short=tuple(bars.shortfalls(option, v)),
        total_usd=total,
        total_interval=_interval([option.total_usd(draw) for draw in draws], total),
        cost_per_call=total / calls,
        cost_per_right_answer=total / calls / share if share else None,
        net_usd=net,
        net_interval=_interval([option.net_usd(draw) for draw in draws], net),
        profit_usd=None if case.value.usd_per_call is None else -net,
        quality=share,
        quality_interval=None if quality is None else (quality.low(v), quality.high(v)),
        p95_ms=None if option.p95_ms is None else v[option.p95_ms.place],
        lines=tuple(_amounts(option.lines, v)),
        prompt_tokens=tokens.prefix + tokens.fresh + tokens.passages,
        output_tokens=tokens.output,
        machines=None if option.machines is None else int(option.machines.compile()(v)),
        busy=None if option.busy is None else option.busy.compile()(v),
        best_in=best_in,
        notes=option.notes,
        doubts=option.doubts,
    )


def _amounts(lines: Sequence[CostLine], v: Values) -> list[tuple[str, str, float]]:
    amounts = [(line.period, line.part, line.usd.compile()(v)) for line in lines]
    return [amount for amount in amounts if amount[2]]


def _interval(drawn: list[float], value: float) -> Interval:
    """Widened to hold the stated numbers' own value."""
    drawn.sort()
    tail = (1 - INTERVAL) / 2
    return min(value, percentile(drawn, tail)), max(value, percentile(drawn, 1 - tail))
