"""What would change the answer: each number alone, all others as stated.

A flipping point is looked for outward from the stated value, at places spread over the searched range (evenly, or in
equal ratios where it spans a factor of two), then narrowed by bisection; a flip and a flip back between two places is
not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bedplate.economics.costs.decisions.exclusions import clears_bars
from bedplate.economics.costs.decisions.resolved_option import Resolved
from bedplate.economics.costs.decisions.sheet import Input, Values

NOTHING_FEASIBLE = "nothing: no option is feasible"
NOTHING_PAYS = "nothing: no option brings in what it costs"

_PLACES = 16
_CLOSE = 1e-9
_UNSTATED = 0.2


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
        value = self.input.value
        thresholds = [flip.at for flip in (self.below, self.above) if flip is not None]
        return min((_ratio(value, at) for at in thresholds), default=float("inf"))


@dataclass(frozen=True)
class Swing:
    """By how much the answer leads the next best (USD, net) at a number's low and high end, below 0 where it does not.
    assumed: the ends are a fifth to either side, because no range was stated."""

    input: Input
    low: float
    high: float
    lead_at_low: float
    lead_at_high: float
    assumed: bool

    @property
    def width(self) -> float:
        return abs(self.lead_at_high - self.lead_at_low)


class Chooser:
    """Which of the options that constraints allow is best at some values."""

    def __init__(self, allowed: Sequence[Resolved], must_pay: bool) -> None:
        self.allowed, self._must_pay = tuple(allowed), must_pay

    def nets(self, v: Values) -> list[float | None]:
        """Net USD of each, None where it misses a bar."""
        return [self._net(option, v) for option in self.allowed]

    def _net(self, option: Resolved, v: Values) -> float | None:
        return option.bill(v).net_usd(option.case.volume(v)) if clears_bars(option, v) else None

    def choose(self, v: Values) -> str:
        """The name of the best, or why there is none."""
        return self._best(self.nets(v))

    def _best(self, nets: Sequence[float | None]) -> str:
        best: tuple[float, str] | None = None
        for option, net in zip(self.allowed, nets, strict=True):
            if net is not None and (best is None or net < best[0]):
                best = (net, option.name)
        if best is None:
            return NOTHING_FEASIBLE
        return NOTHING_PAYS if self._must_pay and best[0] > 0 else best[1]

    def varying(self, v: Values, place: int) -> Callable[[float], str]:
        """The choice as a function of one number; options that do not depend on it are computed once."""
        base, changed = self.nets(v), list(v)
        depends = [place in option.uses for option in self.allowed]

        def choice(x: float) -> str:
            changed[place] = x
            return self._best(
                [
                    self._net(option, changed) if uses else net
                    for option, uses, net in zip(self.allowed, depends, base, strict=True)
                ]
            )

        return choice


def flipping_points(chooser: Chooser, inputs: Sequence[Input], v: Values) -> list[Sensitivity]:
    """Of every number that may vary and that an option depends on, nearest flip first, then those that do not flip."""
    answer = chooser.choose(v)
    sensitivities: list[Sensitivity] = []
    for place, factor in enumerate(inputs):
        if factor.search is None or not any(place in option.uses for option in chooser.allowed):
            continue
        choice = chooser.varying(v, place)
        low, high = factor.search
        sensitivities.append(
            Sensitivity(factor, _outward(choice, answer, factor, low), _outward(choice, answer, factor, high))
        )
    return sorted(sensitivities, key=lambda sensitivity: sensitivity.nearness)


def _outward(choice: Callable[[float], str], answer: str, factor: Input, end: float) -> Flip | None:
    inside = factor.value
    for place in _places(factor.value, end):
        if choice(place) != answer:
            outside = place
            while abs(outside - inside) > _CLOSE * max(abs(outside), abs(inside)):
                middle = (inside + outside) / 2
                if middle in {inside, outside}:
                    break
                if choice(middle) == answer:
                    inside = middle
                else:
                    outside = middle
            return Flip(outside, choice(outside), factor.low <= outside <= factor.high)
        inside = place
    return None


def _places(value: float, end: float) -> list[float]:
    if value == end:
        return []
    steps = [(i + 1) / _PLACES for i in range(_PLACES)]
    if value > 0 and end > 0 and not 0.5 < end / value < 2:
        return [value * (end / value) ** step for step in steps[:-1]] + [end]
    return [value + (end - value) * step for step in steps[:-1]] + [end]


def _ratio(value: float, at: float) -> float:
    """How far apart, as a ratio from 1 up; zero is as far as a factor of a thousand."""
    if value <= 0 or at <= 0:
        return 1000.0
    return max(value / at, at / value)


def swings(chooser: Chooser, inputs: Sequence[Input], v: Values) -> list[Swing]:
    """The data of a tornado plot, widest first; empty where fewer than two options are feasible."""
    nets = chooser.nets(v)
    ranked = sorted((net, i) for i, net in enumerate(nets) if net is not None)
    if len(ranked) < 2:
        return []
    best = ranked[0][1]
    tornado: list[Swing] = []
    for place, factor in enumerate(inputs):
        if factor.search is None or not any(place in option.uses for option in chooser.allowed):
            continue
        assumed = factor.exact
        fifth = _UNSTATED * abs(factor.value)
        low = max(factor.search[0], factor.value - fifth) if assumed else factor.low
        high = min(factor.search[1], factor.value + fifth) if assumed else factor.high
        leads = [_lead(chooser, v, place, x, best) for x in (low, high)]
        if None not in leads:
            swing = Swing(factor, low, high, leads[0] or 0.0, leads[1] or 0.0, assumed)
            if swing.width:
                tornado.append(swing)
    return sorted(tornado, key=lambda bar: -bar.width)


def _lead(chooser: Chooser, v: Values, place: int, x: float, best: int) -> float | None:
    """The best other option's net less the answer's, None where either is not feasible there."""
    changed = list(v)
    changed[place] = x
    nets = chooser.nets(changed)
    rival_nets = [net for i, net in enumerate(nets) if i != best and net is not None]
    best_net = nets[best]
    return None if best_net is None or not rival_nets else min(rival_nets) - best_net
