"""The answer to a decision file: what each option costs, which is best, why, and what would change that.

1. `option_costs.py` turns both files into inputs and one cost formula for each option.
2. RULES say which options are allowed; `Bars` holds the evidence against what must be reached, with its uncertainty:
   the low end of the quality's range must clear its bar, the high end of the latency's must stay below.
3. The costs at the stated values, and at 200 draws from the stated ranges, give totals with intervals and the ranking.
4. Every pair is compared over volumes and days: at places a few percent apart, and to both sides of where a machine is
   added, then narrowed by bisection. Whole machines make costs rise in steps: an option may be cheaper in a window of
   volumes and dearer beyond it.
5. Each number is moved alone, outward from its value to where the answer flips, at places spread over the searched
   range (evenly, or in equal ratios where it spans a factor of two), then narrowed; a flip and a flip back between two
   places is not seen.
6. `explanation.py` puts the answer into sentences and JSON.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

from bedplate.core.display import Brief
from bedplate.core.errors import UsageError
from bedplate.economics.costs.decisions.decision_file import Case, CaseInputs, Constraint, Input, Option
from bedplate.economics.costs.decisions.option_costs import OptionCosts
from bedplate.economics.numbers.formula import Values
from bedplate.economics.numbers.prices import Prices
from bedplate.economics.serving.simulation import percentile

DRAWS = 200
INTERVAL = 0.9
VOLUMES = [10 ** (n / 32 - 3) for n in range(15 * 32 + 1)]
"""Calls a day that are compared: from a thousandth to the most that a file may state."""
DAYS = [1e-9, *(3650.0 * (n + 1) / 80 for n in range(80))]  # days that are compared: ten years
MACHINE_STEPS = 40
CLOSE = 1e-9
DRAW_RATIO = 1.01  # ratio of two volumes between which a draw's break-even is interpolated
SEARCHED_PLACES = 16
NOTHING_FEASIBLE = "nothing: no option is feasible"
NOTHING_PAYS = "nothing: no option brings in what it costs"

Interval = tuple[float, float]


# --- what rules an option out, whatever it costs


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


# --- from which volume on the option that is dearer to start pays back


@dataclass(frozen=True)
class BreakEvenVolume:
    """`option` costs more than `against` at no volume.

    calls_per_day: on the first day, from which on `option` stays cheaper; None is never, and `reason` says why.
    interval: 90% of the draws; None in it is never, and None instead of it that no input has a range. windows: volumes
    at which it is cheaper, but not for good. days: at the case's volume, until its extra cost has come back for good;
    None is never (within ten years).
    """

    option: str
    against: str
    calls_per_day: float | None
    interval: tuple[float | None, float | None] | None
    windows: tuple[tuple[float, float], ...]
    days: float | None
    reason: str | None


def _break_even(first: OptionCosts, second: OptionCosts, draws: Sequence[Values]) -> BreakEvenVolume:
    shared, v = first.shared, first.shared.values
    idle = [0.0 if place == shared.calls_place else value for place, value in enumerate(v)]
    dear, cheap = sorted((first, second), key=lambda option: -option.net_usd(idle))

    def difference(v: Values, place: int) -> Callable[[float], float]:
        """Net USD of `dear` less that of `cheap`, as a function of the input at `place`."""
        values = list(v)

        def compare(x: float) -> float:
            values[place] = x
            return dear.net_usd(values) - cheap.net_usd(values)

        return compare

    steps = [step for option in (dear, cheap) for step in machine_steps(option, v)]
    volumes = sorted([*VOLUMES, *(step * side for step in steps for side in (1 - CLOSE, 1 + CLOSE))])
    calls, windows = last_change(difference(v, shared.calls_place), volumes)
    ends: tuple[float | None, ...] = ()
    if draws:
        drawn = [_drawn_break_even(difference(draw, shared.calls_place)) for draw in draws]
        ends = tuple(None if math.isinf(end) else end for end in _interval(drawn, math.inf if calls is None else calls))
    return BreakEvenVolume(
        option=dear.name,
        against=cheap.name,
        calls_per_day=calls,
        interval=(ends[0], ends[1]) if ends else None,
        windows=windows,
        days=last_change(difference(v, shared.days_place), DAYS)[0],
        reason=_reason(dear, cheap, v) if calls is None else None,
    )


def _drawn_break_even(difference: Callable[[float], float]) -> float:
    """One draw's break-even; infinite is never. Of several crossings, which whole machines make, any."""
    low, high = VOLUMES[0], VOLUMES[-1]
    if difference(high) >= 0:
        return math.inf
    if difference(low) < 0:
        return 0.0
    while high / low > DRAW_RATIO:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if difference(middle) < 0 else (middle, high)
    above, below = difference(low), difference(high)
    return low + (high - low) * above / (above - below)  # between two steps both costs are straight lines


def _interval(drawn: Sequence[float], value: float) -> Interval:
    """What holds INTERVAL of the draws, widened to hold the stated numbers' own value."""
    tail = (1 - INTERVAL) / 2
    return min(value, percentile(drawn, tail)), max(value, percentile(drawn, 1 - tail))


def _reason(dear: OptionCosts, cheap: OptionCosts, v: Values) -> str:
    """What a call of the dearer one saves does not cover what it adds."""
    ours, theirs = ({part: usd.compile()(v) for part, usd in option.per_call.items()} for option in (dear, cheap))
    differences = {part: ours.get(part, 0.0) - theirs.get(part, 0.0) for part in {**theirs, **ours}}
    return why_never(dear.name, cheap.name, differences, cheap.tokens_at(v).prefix - dear.tokens_at(v).prefix)


def why_never(option: str, against: str, differences: dict[str, float], spared_tokens: float = 0.0) -> str:
    """Why the dearer option never pays back. differences: USD of a call by part, `option` less `against`."""
    saves, adds = (
        [f"${abs(usd):.3g} on {part}" for part, usd in differences.items() if sign * usd > 0] for sign in (-1, 1)
    )
    if not saves:
        less = "no less" if adds else "the same"
        return f"{option} costs more to start than {against}, and {less} per call"
    tokens = f" (its prompt is {spared_tokens:,.0f} tokens shorter)" if spared_tokens > 0 else ""
    return f"a call of {option} saves {' and '.join(saves)}{tokens}, but adds {' and '.join(adds)}"


def machine_steps(option: OptionCosts, v: Values) -> list[float]:
    """First-day calls from which on one more machine is reserved; of many machines only the first steps, because those
    beyond are a few percent apart."""
    count = MACHINE_STEPS // max(1, len(option.capacities))
    return [capacity.compile()(v) * (n + 1) for capacity in option.capacities for n in range(count)]


def last_change(
    difference: Callable[[float], float], places: Sequence[float]
) -> tuple[float | None, tuple[tuple[float, float], ...]]:
    """From where on the difference stays below 0 up to the last place (None: it is not there), and the windows before
    in which it is."""

    def holds(x: float) -> bool:
        return difference(x) < 0

    answers = [holds(place) for place in places]
    edges = [0.0] if answers[0] else list[float]()
    for (low, before), (high, after) in pairwise(zip(places, answers, strict=True)):
        if after != before:
            edges.append(narrow(holds, low, high))
    start = edges.pop() if answers[-1] else None
    return start, tuple(zip(edges[::2], edges[1::2], strict=True))


def narrow(holds: Callable[[float], bool], inside: float, outside: float) -> float:
    """Where `holds` changes between two places, as seen from the outer one."""
    beyond = holds(outside)
    while abs(outside - inside) > CLOSE * max(abs(outside), abs(inside)):
        middle = (inside + outside) / 2
        if middle in {inside, outside}:
            break
        if holds(middle) == beyond:
            outside = middle
        else:
            inside = middle
    return outside


# --- what would change the answer


@dataclass(frozen=True)
class Flip:
    """Where the answer changes as the number goes from its value to `at`: there it is `to`. within: whether `at` lies
    in the number's stated range."""

    at: float
    to: str
    within: bool


@dataclass(frozen=True)
class Sensitivity:
    """One number's flips below and above its value, None where the answer stays the same as far as searched."""

    input: Input
    below: Flip | None
    above: Flip | None

    @property
    def flips(self) -> bool:
        return self.below is not None or self.above is not None

    @property
    def nearness(self) -> float:
        """The ratio by which the number must change for the nearest flip, 1 or more; infinite without one. Zero counts
        as being a thousandfold from any other number."""
        value, flips = self.input.value, [flip.at for flip in (self.below, self.above) if flip is not None]
        ratios = [1000.0 if value <= 0 or at <= 0 else max(value / at, at / value) for at in flips]
        return min(ratios, default=math.inf)


@dataclass(frozen=True)
class Chooser:
    """Which of some options is best at some values. must_pay: where none brings in what it costs, none is."""

    options: Sequence[OptionCosts]
    bars: Bars
    must_pay: bool

    def choose(self, v: Values) -> str:
        """The name of the best, or why there is none."""
        nets = [(option.net_usd(v), option.name) for option in self.options if self.bars.cleared_by(option, v)]
        if not nets:
            return NOTHING_FEASIBLE
        net, name = min(nets, key=lambda pair: pair[0])
        return NOTHING_PAYS if self.must_pay and net > 0 else name

    def sensitivities(self, inputs: Sequence[Input], v: Values) -> list[Sensitivity]:
        """Moves every number that an option depends on: nearest flip first, then those that do not flip."""
        used = frozenset[int]().union(*(self.bars.places(option) for option in self.options))
        rows = [
            Sensitivity(inputs[place], *(self._outward(inputs[place], place, v, end) for end in inputs[place].search))
            for place in sorted(used)
        ]
        return sorted(rows, key=lambda sensitivity: sensitivity.nearness)

    def _outward(self, row: Input, place: int, v: Values, end: float) -> Flip | None:
        """The first flip from the number's value to `end`."""
        values = list(v)

        def choice(x: float) -> str:
            values[place] = x
            return self.choose(values)

        inside, answer = row.value, choice(row.value)
        for x in _searched_places(row.value, end):
            if choice(x) != answer:
                at = narrow(lambda x: choice(x) == answer, inside, x)
                return Flip(at, choice(at), row.low <= at <= row.high)
            inside = x
        return None


def _searched_places(value: float, end: float) -> list[float]:
    """From the value outward to the end: in equal ratios where that spans a factor of two, else evenly."""
    if value == end:
        return []
    shares = [(n + 1) / SEARCHED_PLACES for n in range(SEARCHED_PLACES - 1)]
    if value > 0 and end > 0 and not 0.5 < end / value < 2:
        return [*(value * (end / value) ** share for share in shares), end]
    return [*(value + (end - value) * share for share in shares), end]


# --- all of it


class OptionOutcome:
    """One option at the stated values. Money is USD over the horizon; intervals hold 90% of the draws and the value.

    cost_per_right_answer is None where no quality is known. net_usd: total with what wrong answers cost, less what
    calls bring in: what options are ranked by. lines: (period, part, USD), which add up to total_usd. machines:
    reserved ones; busy: the share of their time in which they compute, over the horizon. best_in: the share of draws in
    which it is the answer. doubts: why the verdict of its report is no PASS, and why the report is used nonetheless.
    """

    def __init__(self, option: OptionCosts, bars: Bars, draws: Sequence[Values], best_in: float) -> None:
        shared, quality, p95 = option.shared, option.quality, option.p95_ms
        v, case, tokens = shared.values, shared.case, option.tokens_at(shared.values)
        calls, amounts = shared.calls.compile()(v), [(line, line.usd.compile()(v)) for line in option.lines]
        self.name = option.name
        self.method = option.option.describe(option.method, option.retrieves)
        self.method_in_short = option.option.label(option.method, option.retrieves)
        self.broken = broken_constraints(option.option, case.constraints)
        self.feasible = not self.broken and bars.cleared_by(option, v)
        self.short = tuple(bars.shortfalls(option, v))
        self.total_usd, self.net_usd = option.total_usd(v), option.net_usd(v)
        self.total_interval = _interval([option.total_usd(draw) for draw in draws], self.total_usd)
        self.net_interval = _interval([option.net_usd(draw) for draw in draws], self.net_usd)
        self.profit_usd = None if case.value.usd_per_call is None else -self.net_usd
        self.quality = None if quality is None else v[quality.place]
        self.quality_interval = None if quality is None else (quality.low(v), quality.high(v))
        self.cost_per_call = self.total_usd / calls
        self.cost_per_right_answer = self.cost_per_call / self.quality if self.quality else None
        self.p95_ms = None if p95 is None else v[p95.place]
        self.lines = tuple((line.period, line.part, usd) for line, usd in amounts if usd)
        self.prompt_tokens, self.output_tokens = tokens.prompt, tokens.output
        self.machines = None if option.machines is None else int(option.machines.compile()(v))
        self.busy = None if option.busy is None else option.busy.compile()(v)
        self.best_in, self.notes, self.doubts = best_in, option.notes, option.doubts


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
    options = [OptionCosts(shared, name, option) for name, option in case.options.items()]
    bars = Bars(shared.bar_quality, shared.bar_p95_ms)
    v, must_pay = shared.values, case.value.usd_per_call is not None
    allowed = [option for option in options if not broken_constraints(option.option, case.constraints)]
    chooser = Chooser(allowed, bars, must_pay)

    uncertain = any(not row.exact for row in shared.rows)
    draws = shared.draws(DRAWS, case.seed) if uncertain else [v]
    # The bars have looked at the ranges already, so that a draw chooses among what is feasible as stated.
    feasible = Chooser([option for option in allowed if bars.cleared_by(option, v)], Bars(None, None), must_pay)
    winners = [feasible.choose(draw) for draw in draws]
    outcomes = tuple(OptionOutcome(option, bars, draws, winners.count(option.name) / len(draws)) for option in options)
    ranked = sorted((outcome for outcome in outcomes if outcome.feasible), key=lambda outcome: outcome.net_usd)
    return Decision(
        case=case,
        answer=chooser.choose(v),
        unconstrained=Chooser(options, bars, must_pay).choose(v),
        outcomes=outcomes,
        ranking=tuple(outcome.name for outcome in ranked),
        calls=shared.calls.compile()(v),
        days=v[shared.days_place],
        break_evens=tuple(_break_even(*pair, draws if uncertain else ()) for pair in combinations(allowed, 2)),
        sensitivities=tuple(chooser.sensitivities(shared.rows, v)),
        warnings=tuple(prices.warnings(shared.used_prices, today or datetime.date.today())),
    )
