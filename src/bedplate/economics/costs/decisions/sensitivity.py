"""What would change the answer: each number alone, all others as stated.

A flipping point is looked for outward from the stated value, at places spread over the searched range (evenly, or in
equal ratios where it spans a factor of two), then narrowed by bisection; a flip and a flip back between two places is
not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bedplate.economics.costs.decisions.break_even import narrow
from bedplate.economics.costs.decisions.constraints import Bars
from bedplate.economics.costs.decisions.decision_inputs import Input
from bedplate.economics.costs.decisions.option_costs import OptionCosts
from bedplate.economics.numbers.formula import Values

NOTHING_FEASIBLE = "nothing: no option is feasible"
NOTHING_PAYS = "nothing: no option brings in what it costs"

SEARCHED_PLACES = 16
_ZERO_RATIO = 1000.0  # how far zero counts as being from any other number


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
        """The ratio by which the number must change for the nearest flip, 1 or more; infinite without one."""
        flips = [flip.at for flip in (self.below, self.above) if flip is not None]
        return min((_ratio(self.input.value, at) for at in flips), default=float("inf"))


class Chooser:
    """Which of some options is best at some values. must_pay: where none brings in what it costs, none is."""

    def __init__(self, options: Sequence[OptionCosts], bars: Bars, must_pay: bool) -> None:
        self.options, self._bars, self._must_pay = tuple(options), bars, must_pay

    def nets(self, v: Values) -> list[float | None]:
        """Net USD of each, None where it misses a bar."""
        return [self._net(option, v) for option in self.options]

    def _net(self, option: OptionCosts, v: Values) -> float | None:
        return option.net_usd(v) if self._bars.cleared_by(option, v) else None

    def choose(self, v: Values) -> str:
        """The name of the best, or why there is none."""
        return self.best(self.nets(v))

    def best(self, nets: Sequence[float | None]) -> str:
        feasible = [(net, place) for place, net in enumerate(nets) if net is not None]
        if not feasible:
            return NOTHING_FEASIBLE
        net, place = min(feasible)
        return NOTHING_PAYS if self._must_pay and net > 0 else self.options[place].name

    def varying(self, v: Values, place: int) -> Callable[[float], str]:
        """The choice as a function of one number; options that do not depend on it are computed once."""
        nets, values = self.nets(v), list(v)
        depends = [place in self._bars.places(option) for option in self.options]

        def choice(x: float) -> str:
            values[place] = x
            current = [
                self._net(option, values) if varies else net
                for option, varies, net in zip(self.options, depends, nets, strict=True)
            ]
            return self.best(current)

        return choice


def flipping_points(chooser: Chooser, inputs: Sequence[Input], bars: Bars, v: Values) -> list[Sensitivity]:
    """Moves every number that an option depends on: nearest flip first, then those that do not flip."""
    used = frozenset[int]().union(*(bars.places(option) for option in chooser.options))
    results: list[Sensitivity] = []
    for place in sorted(used):
        row, choice = inputs[place], chooser.varying(v, place)
        below, above = (_outward(choice, row, end) for end in row.search)
        results.append(Sensitivity(row, below, above))
    return sorted(results, key=lambda sensitivity: sensitivity.nearness)


def _outward(choice: Callable[[float], str], row: Input, end: float) -> Flip | None:
    inside, answer = row.value, choice(row.value)
    for place in searched_places(row.value, end):
        if choice(place) != answer:
            at = narrow(lambda x: choice(x) == answer, inside, place)
            return Flip(at, choice(at), row.low <= at <= row.high)
        inside = place
    return None


def searched_places(value: float, end: float) -> list[float]:
    """From the value outward to the end: in equal ratios where that spans a factor of two, else evenly."""
    if value == end:
        return []
    shares = [(n + 1) / SEARCHED_PLACES for n in range(SEARCHED_PLACES - 1)]
    if value > 0 and end > 0 and not 0.5 < end / value < 2:
        return [*(value * (end / value) ** share for share in shares), end]
    return [*(value + (end - value) * share for share in shares), end]


def _ratio(value: float, at: float) -> float:
    return _ZERO_RATIO if value <= 0 or at <= 0 else max(value / at, at / value)
