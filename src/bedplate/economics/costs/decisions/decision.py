"""The answer to a decision file: what each option costs, which is best, why, and what would change that.

1. `read_question` turns both files into inputs, cost formulas for each option, and which constraints rule it out.
2. `solve` holds the evidence against what must be reached, with its uncertainty: the low end of the quality's range
   must clear its bar, the high end of the latency's must stay below.
3. The costs at the stated values, and at 200 draws from the stated ranges, give totals with intervals and the ranking.
4. Every pair is compared over volumes and days: at places a few percent apart, and to both sides of where a machine is
   added, then narrowed by bisection. Whole machines make costs rise in steps: an option may be cheaper in a window of
   volumes and dearer beyond it.
5. Each number is moved alone, outward from its value to where the answer flips, at places spread over the searched
   range (evenly, or in equal ratios where it spans a factor of two), then narrowed; a flip and a flip back between two
   places is not seen.
6. `explanation.py` puts the answer into sentences and JSON.

From `solve` on all of it is translated for the page (numbers/javascript.py), which answers what its sliders ask.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bedplate.core.display import Brief
from bedplate.core.errors import UsageError
from bedplate.economics.costs.decisions.decision_file import Case, Input
from bedplate.economics.costs.decisions.option_costs import OptionCosts
from bedplate.economics.costs.decisions.question import Question, read_question
from bedplate.economics.numbers.formula import Values
from bedplate.economics.numbers.prices import Prices
from bedplate.economics.serving.simulation import percentile

INTERVAL = 0.9
VOLUMES = [10 ** (n / 32 - 3) for n in range(15 * 32 + 1)]
"""Calls a day that are compared: from a thousandth to the most that a file may state."""
DAYS = [1e-9, *(3650.0 * (n + 1) / 80 for n in range(80))]  # days that are compared: ten years
MACHINE_STEPS = 40
CLOSE = 1e-9
DRAW_RATIO = 1.01  # ratio of two volumes between which a draw's break-even is interpolated
SEARCHED_PLACES = 16

Interval = tuple[float, float]


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


def _break_even(
    question: Question, first: OptionCosts, second: OptionCosts, draws: Sequence[Values]
) -> BreakEvenVolume:
    v, calls_place = question.values, question.calls_place
    idle = list(v)
    idle[calls_place] = 0.0
    dear, cheap = (second, first) if second.net(idle) > first.net(idle) else (first, second)

    def difference(v: Values, place: int) -> Callable[[float], float]:
        """Net USD of `dear` less that of `cheap`, as a function of the input at `place`."""
        values = list(v)

        def compare(x: float) -> float:
            values[place] = x
            return dear.net(values) - cheap.net(values)

        return compare

    steps = machine_steps(dear, v) + machine_steps(cheap, v)
    volumes = sorted([*VOLUMES, *(step * side for step in steps for side in (1 - CLOSE, 1 + CLOSE))])
    calls, windows = last_change(difference(v, calls_place), volumes)
    interval = None
    if draws:
        drawn = [_drawn_break_even(difference(draw, calls_place)) for draw in draws]
        low, high = _interval(drawn, math.inf if calls is None else calls)
        interval = (None if low == math.inf else low, None if high == math.inf else high)
    return BreakEvenVolume(
        option=dear.name,
        against=cheap.name,
        calls_per_day=calls,
        interval=interval,
        windows=windows,
        days=last_change(difference(v, question.days_place), DAYS)[0],
        reason=_reason(dear, cheap, v, idle) if calls is None else None,
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


def _reason(dear: OptionCosts, cheap: OptionCosts, v: Values, idle: Values) -> str:
    """What a call of the dearer one saves does not cover what it adds. idle: the values at no volume."""
    ours, theirs = ({part: usd(v) for part, usd in option.per_call.items()} for option in (dear, cheap))
    differences = {part: ours.get(part, 0.0) - theirs.get(part, 0.0) for part in [*theirs, *ours]}
    spared = cheap.prefix_tokens(v) - dear.prefix_tokens(v)
    return why_never(dear.name, cheap.name, differences, spared, same_start=dear.net(idle) == cheap.net(idle))


def why_never(
    option: str,
    against: str,
    differences: dict[str, float],
    spared_tokens: float = 0.0,
    same_start: bool = False,
) -> str:
    """Why the dearer option never pays back. differences: USD of a call by part, `option` less `against`. same_start:
    whether both cost the same at no volume."""
    saves, adds = (
        [f"${abs(usd):.3g} on {part}" for part, usd in differences.items() if sign * usd > 0] for sign in (-1, 1)
    )
    if not saves:
        more, less = "as much as" if same_start else "more than", "more" if adds else "the same"
        return f"{option} costs {more} {against} at no volume, and {less} per call"
    tokens = f" (its prompt is {spared_tokens:,.0f} tokens shorter)" if spared_tokens > 0 else ""
    return f"a call of {option} saves {' and '.join(saves)}{tokens}, but adds {' and '.join(adds)}"


def machine_steps(option: OptionCosts, v: Values) -> list[float]:
    """First-day calls from which on one more machine is reserved; of many machines only the first steps, because those
    beyond are a few percent apart."""
    count = math.floor(MACHINE_STEPS / max(1, len(option.capacities)))
    return [capacity(v) * (n + 1) for capacity in option.capacities for n in range(count)]


def last_change(
    difference: Callable[[float], float], places: Sequence[float]
) -> tuple[float | None, tuple[tuple[float, float], ...]]:
    """From where on the difference stays below 0 up to the last place (None: it is not there), and the windows before
    in which it is."""

    def holds(x: float) -> bool:
        return difference(x) < 0

    answers = [holds(place) for place in places]
    edges = [0.0] if answers[0] else list[float]()
    for n in range(1, len(places)):
        if answers[n] != answers[n - 1]:
            edges.append(narrow(holds, places[n - 1], places[n]))
    start = edges.pop() if answers[-1] else None
    return start, tuple((edges[n], edges[n + 1]) for n in range(0, len(edges), 2))


def narrow(holds: Callable[[float], bool], inside: float, outside: float) -> float:
    """Where `holds` changes between two places, as seen from the outer one."""
    beyond = holds(outside)
    while abs(outside - inside) > CLOSE * max(abs(outside), abs(inside)):
        middle = (inside + outside) / 2
        if middle in (inside, outside):
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


def _sensitivities(question: Question, options: Sequence[OptionCosts]) -> list[Sensitivity]:
    """Moves every number that an option depends on: nearest flip first, then those that do not flip."""
    used = sorted({place for option in options for place in option.places})
    rows: list[Sensitivity] = []
    for place in used:
        below, above = (_outward(question, options, place, end) for end in question.inputs[place].search)
        rows.append(Sensitivity(question.inputs[place], below, above))
    return sorted(rows, key=lambda row: row.nearness)


def _outward(question: Question, options: Sequence[OptionCosts], place: int, end: float) -> Flip | None:
    """The first flip from the number's value to `end`."""
    row, values = question.inputs[place], question.values

    def choice(x: float) -> str:
        values[place] = x
        return question.choose(options, values)

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
    reserved ones; busy: the share of what they can do that the calls take, over the horizon. best_in: the share of
    draws in which it is the answer. padding_tokens: of a call, on average, beside those of the text. doubts: why the
    verdict of its report is no PASS, and why the report is used nonetheless.
    """

    def __init__(self, question: Question, option: OptionCosts, draws: Sequence[Values], best_in: float) -> None:
        v, quality, p95 = question.values, option.quality, option.p95_ms
        self.name, self.method, self.method_in_short = option.name, option.method, option.method_in_short
        self.broken, self.feasible = option.broken, not option.broken and question.clears(option, v)
        self.short = question.shortfalls(option, v)
        self.total_usd, self.net_usd = option.total(v), option.net(v)
        self.total_interval = _interval([option.total(draw) for draw in draws], self.total_usd)
        self.net_interval = _interval([option.net(draw) for draw in draws], self.net_usd)
        self.profit_usd = -self.net_usd if question.must_pay else None
        self.quality = None if quality is None else v[quality]
        self.quality_interval = None if quality is None else (question.low(quality, v), question.high(quality, v))
        self.cost_per_call = self.total_usd / question.calls(v)
        self.cost_per_right_answer = self.cost_per_call / self.quality if self.quality else None
        self.p95_ms = None if p95 is None else v[p95]
        self.lines = [(line.period, line.part, line.usd(v)) for line in option.lines if line.usd(v)]
        self.prompt_tokens, self.output_tokens = option.prompt_tokens(v), option.output_tokens(v)
        self.padding_tokens, self.padding_saves_usd = option.padding(v), option.padding_saves(v)
        self.billed_prompt_tokens = self.prompt_tokens + self.padding_tokens
        self.machines = None if option.machines is None else int(option.machines(v))
        self.busy = None if option.busy is None else option.busy(v)
        self.best_in, self.notes, self.doubts = best_in, option.notes, option.doubts


@dataclass(frozen=True, repr=False)
class Decision(Brief):
    """answer: the option's name, or NOTHING_FEASIBLE, NOTHING_PAYS. ranking: feasible options, best first.
    unconstrained: what the answer would be without the constraints."""

    question: Question
    answer: str
    unconstrained: str
    outcomes: Sequence[OptionOutcome]
    ranking: Sequence[str]
    calls: float
    days: float
    break_evens: Sequence[BreakEvenVolume]
    sensitivities: Sequence[Sensitivity]

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
                raise UsageError(f"the case has no option '{name}'; its options are {', '.join(names)}")
        pair = (option, against)
        return next((point for point in self.break_evens if point.option in pair and point.against in pair), None)


def decide(case: Case, prices: Prices, today: datetime.date | None = None) -> Decision:
    """Everything that can be said about a case at these prices. ConfigError for what is missing in either."""
    return solve(read_question(case, prices, today))


def solve(question: Question) -> Decision:
    """The answer at the question's values, and what would change it."""
    v, draws = question.values, question.draws
    allowed = [option for option in question.options if not option.broken]
    # The bars have looked at the ranges already, so that a draw chooses among what is feasible as stated.
    feasible = [option for option in allowed if question.clears(option, v)]
    winners = [question.cheapest(feasible, draw) for draw in draws or [v]]
    outcomes = [
        OptionOutcome(question, option, draws or [v], winners.count(option.name) / len(winners))
        for option in question.options
    ]
    ranked = sorted([outcome for outcome in outcomes if outcome.feasible], key=lambda outcome: outcome.net_usd)
    return Decision(
        question=question,
        answer=question.choose(allowed, v),
        unconstrained=question.choose(question.options, v),
        outcomes=outcomes,
        ranking=tuple(outcome.name for outcome in ranked),
        calls=question.calls(v),
        days=v[question.days_place],
        break_evens=[
            _break_even(question, first, second, draws)
            for n, first in enumerate(allowed)
            for second in allowed[n + 1 :]
        ],
        sensitivities=_sensitivities(question, allowed),
    )
