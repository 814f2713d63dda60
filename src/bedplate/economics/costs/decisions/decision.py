"""The answer to a decision file: what each option costs, which is best, why, and what would change that."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from bedplate.core.display import Brief
from bedplate.core.errors import UsageError
from bedplate.economics.costs.decisions.bill import DAYS_PER_YEAR, Bill, Volume
from bedplate.economics.costs.decisions.breakeven import (
    BreakEvenVolume,
    cheaper_from,
    days_until_cheaper,
    drawn_interval,
    why_never,
)
from bedplate.economics.costs.decisions.case import Case, Constraint
from bedplate.economics.costs.decisions.exclusions import Shortfall, broken_constraints, clears_bars, shortfalls
from bedplate.economics.costs.decisions.resolve import Resolver
from bedplate.economics.costs.decisions.resolved_option import Resolved
from bedplate.economics.costs.decisions.sensitivity import Chooser, Sensitivity, Swing, flipping_points, swings
from bedplate.economics.costs.decisions.sheet import Values, percentile
from bedplate.economics.numbers.prices import Prices

DRAWS = 200
INTERVAL = 0.9

Interval = tuple[float, float]


@dataclass(frozen=True)
class OptionOutcome:
    """One option at the stated values. Money is USD over the horizon; intervals hold 90% of the draws and the value.

    cost_per_right_answer is None where no quality is known. net_usd: total with what wrong answers cost, less what
    calls bring in: what options are ranked by. lines: (when, what, USD), which add up to total_usd. machines: reserved
    on the busiest day; busy: the share of their time in which they compute, over the horizon. best_in: the share of
    draws in which it is the answer. doubts: why the verdict of its report is no PASS, and why it is used all the same.
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
    tornado: tuple[Swing, ...]
    warnings: tuple[str, ...]

    def outcome(self, name: str) -> OptionOutcome:
        return next(outcome for outcome in self.outcomes if outcome.name == name)

    @property
    def chosen(self) -> OptionOutcome | None:
        """The answer's row, None where the answer is none of the options."""
        return next((outcome for outcome in self.outcomes if outcome.name == self.answer), None)

    def break_even(self, option: str, against: str) -> BreakEvenVolume | None:
        """Of two options, whichever of them is the dearer to start. UsageError for what is no option of the case."""
        option_names = [outcome.name for outcome in self.outcomes]
        for name in (option, against):
            if name not in option_names:
                raise UsageError(f"the case has no option {name!r}; its options are {', '.join(option_names)}")
        pair = {option, against}
        return next(
            (break_even for break_even in self.break_evens if {break_even.option, break_even.against} == pair), None
        )


def decide(case: Case, prices: Prices, today: datetime.date | None = None) -> Decision:
    """Everything that can be said about a case at these prices. ConfigError for what is missing in either."""
    resolver = Resolver(case, prices)
    options = resolver.options()
    v = resolver.sheet.values
    allowed = [option for option in options if not broken_constraints(option.option, case.constraints)]
    must_pay = case.value.usd_per_call is not None
    chooser = Chooser(allowed, must_pay)
    draws = resolver.sheet.draws(DRAWS, case.seed)
    drawn = [[option.bill(draw) for draw in draws] for option in options]
    volumes = [resolver.shared.volume(draw) for draw in draws]
    winners = [_winner(options, drawn, volumes, i, chooser, must_pay, v) for i in range(len(draws))]
    outcomes = tuple(
        _outcome(option, v, case, drawn[i], volumes, winners.count(option.name) / len(draws))
        for i, option in enumerate(options)
    )
    feasible = sorted((outcome for outcome in outcomes if outcome.feasible), key=lambda outcome: outcome.net_usd)
    volume = resolver.shared.volume(v)
    return Decision(
        case=case,
        answer=chooser.choose(v),
        unconstrained=Chooser(options, must_pay).choose(v),
        outcomes=outcomes,
        ranking=tuple(outcome.name for outcome in feasible),
        calls=volume.calls,
        days=volume.days,
        break_evens=_break_evens(options, allowed, v, drawn, volumes, any(not i.exact for i in resolver.sheet.inputs)),
        sensitivities=tuple(flipping_points(chooser, resolver.sheet.inputs, v)),
        tornado=tuple(swings(chooser, resolver.sheet.inputs, v)),
        warnings=tuple(prices.warnings(resolver.used_prices, today or datetime.date.today())),
    )


def _winner(
    options: Sequence[Resolved],
    drawn: Sequence[Sequence[Bill]],
    volumes: Sequence[Volume],
    draw: int,
    chooser: Chooser,
    must_pay: bool,
    v: Values,
) -> str | None:
    """The best in one draw of those that are feasible as stated: the bars have looked at the ranges already."""
    best: tuple[float, str] | None = None
    for option, bills in zip(options, drawn, strict=True):
        if option in chooser.allowed and clears_bars(option, v):
            net = bills[draw].net_usd(volumes[draw])
            if best is None or net < best[0]:
                best = (net, option.name)
    return None if best is None or (must_pay and best[0] > 0) else best[1]


def _outcome(
    option: Resolved, v: Values, case: Case, drawn: Sequence[Bill], volumes: Sequence[Volume], best_in: float
) -> OptionOutcome:
    bill, volume, tokens = option.bill(v), option.case.volume(v), option.tokens.of(v)
    total, net, quality = bill.total_usd(volume), bill.net_usd(volume), option.quality
    broken = broken_constraints(option.option, case.constraints)
    growth = (1 + volume.growth_per_year) ** (volume.days / DAYS_PER_YEAR)
    busiest = volume.calls_per_day * max(1.0, growth)
    return OptionOutcome(
        name=option.name,
        method=option.method,
        method_in_short=option.method_in_short,
        feasible=not broken and clears_bars(option, v),
        broken=broken,
        short=tuple(shortfalls(option, v)),
        total_usd=total,
        total_interval=_interval([b.total_usd(at) for b, at in zip(drawn, volumes, strict=True)], total),
        cost_per_call=total / volume.calls,
        cost_per_right_answer=None if not bill.quality else total / volume.calls / bill.quality,
        net_usd=net,
        net_interval=_interval([b.net_usd(at) for b, at in zip(drawn, volumes, strict=True)], net),
        profit_usd=None if case.value.usd_per_call is None else -net,
        quality=bill.quality,
        quality_interval=None if quality is None else (quality.low(v), quality.high(v)),
        p95_ms=None if option.p95_ms is None else v[option.p95_ms.place],
        lines=tuple(bill.lines(volume)),
        prompt_tokens=tokens.prefix + tokens.fresh + tokens.passages,
        output_tokens=tokens.output,
        machines=None if bill.fleet is None else bill.fleet.machines(busiest),
        busy=option.busy_share(v),
        best_in=best_in,
        notes=option.notes,
        doubts=option.doubts,
    )


def _interval(drawn: list[float], value: float) -> Interval:
    drawn.sort()
    tail = (1 - INTERVAL) / 2
    return min(value, percentile(drawn, tail)), max(value, percentile(drawn, 1 - tail))


def _break_evens(
    options: Sequence[Resolved],
    allowed: Sequence[Resolved],
    v: Values,
    drawn: Sequence[Sequence[Bill]],
    volumes: Sequence[Volume],
    uncertain: bool,
) -> tuple[BreakEvenVolume, ...]:
    """Of every pair that the constraints allow."""
    places = [i for i, option in enumerate(options) if option in allowed]
    break_evens: list[BreakEvenVolume] = []
    for i, j in combinations(places, 2):
        volume = options[i].case.volume(v)
        dear, cheap = sorted((i, j), key=lambda k: -options[k].bill(v).idle_usd(volume))
        break_evens.append(
            _pair(options[dear], options[cheap], v, drawn[dear], drawn[cheap], volumes if uncertain else ())
        )
    return tuple(break_evens)


def _pair(
    dear: Resolved,
    cheap: Resolved,
    v: Values,
    dear_drawn: Sequence[Bill],
    cheap_drawn: Sequence[Bill],
    volumes: Sequence[Volume],
) -> BreakEvenVolume:
    ours, theirs = dear.bill(v), cheap.bill(v)
    calls, windows = cheaper_from(ours, theirs, dear.case.volume(v))
    reason = None
    if calls is None:
        spared = cheap.tokens.of(v).prefix - dear.tokens.of(v).prefix
        reason = why_never(dear.name, cheap.name, ours, theirs, spared)
    return BreakEvenVolume(
        option=dear.name,
        against=cheap.name,
        calls_per_day=calls,
        interval=drawn_interval(calls, dear_drawn, cheap_drawn, volumes) if volumes else None,
        windows=windows,
        days=days_until_cheaper(dear, cheap, v),
        reason=reason,
    )
