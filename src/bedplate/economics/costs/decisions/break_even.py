"""From which volume on the option that is dearer to start pays back, and after how many days: a number, or never.

Volumes are compared at places a few percent apart, and to both sides of where a machine is added, then narrowed by
bisection where the cheaper option changes. Whole machines make costs rise in steps: an option may be cheaper in a
window of volumes and dearer beyond it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from bedplate.economics.costs.decisions.decision_inputs import percentile
from bedplate.economics.costs.decisions.option_costs import OptionCosts
from bedplate.economics.numbers.formula import Values

VOLUMES = [10 ** (n / 32 - 3) for n in range(15 * 32 + 1)]
"""Calls a day that are compared: from a thousandth to the most that a file may state."""
DAYS = [1e-9, *(3650.0 * (n + 1) / 80 for n in range(80))]
"""Days that are compared: ten years."""
MACHINE_STEPS = 40
CLOSE = 1e-9
DRAW_RATIO = 1.01
"""Ratio of two volumes between which a draw's break-even is interpolated."""


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


@dataclass(frozen=True)
class OptionPair:
    """Two options of a case, `dear` being the one that costs more at no volume."""

    dear: OptionCosts
    cheap: OptionCosts
    calls_place: int
    days_place: int

    @classmethod
    def sorted(cls, first: OptionCosts, second: OptionCosts, places: tuple[int, int], v: Values) -> OptionPair:
        idle = list(v)
        idle[places[0]] = 0.0
        dear, cheap = sorted((first, second), key=lambda option: -option.net_usd(idle))
        return cls(dear, cheap, *places)

    def difference(self, v: Values, place: int) -> Callable[[float], float]:
        """Net USD of `dear` less that of `cheap`, as a function of the input at `place`."""
        values, dear, cheap = list(v), self.dear.net_usd, self.cheap.net_usd

        def compare(x: float) -> float:
            values[place] = x
            return dear(values) - cheap(values)

        return compare

    def break_even(self, v: Values, draws: Sequence[Values], share: float) -> BreakEvenVolume:
        """share: of the draws, which the interval holds."""
        steps = [step for option in (self.dear, self.cheap) for step in machine_steps(option, v)]
        volumes = sorted([*VOLUMES, *(step * side for step in steps for side in (1 - CLOSE, 1 + CLOSE))])
        calls, windows = last_change(self.difference(v, self.calls_place), volumes)
        interval = None
        if draws:
            tail = (1 - share) / 2
            drawn = sorted(self._of_draw(draw) for draw in draws)
            stated = math.inf if calls is None else calls
            low, high = min(stated, percentile(drawn, tail)), max(stated, percentile(drawn, 1 - tail))
            interval = (_finite(low), _finite(high))
        return BreakEvenVolume(
            option=self.dear.name,
            against=self.cheap.name,
            calls_per_day=calls,
            interval=interval,
            windows=windows,
            days=last_change(self.difference(v, self.days_place), DAYS)[0],
            reason=self._why_never(v) if calls is None else None,
        )

    def _of_draw(self, draw: Values) -> float:
        """One draw's break-even; infinite is never. Of several crossings, which whole machines make, any."""
        difference = self.difference(draw, self.calls_place)
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

    def _why_never(self, v: Values) -> str:
        """What a call of the dearer one saves does not cover what it adds."""
        dear, cheap = (
            {part: usd.compile()(v) for part, usd in option.per_call.items()} for option in (self.dear, self.cheap)
        )
        differences = {part: dear.get(part, 0.0) - cheap.get(part, 0.0) for part in {**cheap, **dear}}
        spared = self.cheap.tokens.at(v).prefix - self.dear.tokens.at(v).prefix
        return why_never(self.dear.name, self.cheap.name, differences, spared)


def machine_steps(option: OptionCosts, v: Values) -> list[float]:
    """First-day calls from which on one more machine is reserved; of many machines only the first steps, because those
    beyond are a few percent apart."""
    count = MACHINE_STEPS // max(1, len(option.capacities))
    return [capacity.compile()(v) * (n + 1) for capacity in option.capacities for n in range(count)]


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


def last_change(
    difference: Callable[[float], float], places: Sequence[float]
) -> tuple[float | None, tuple[tuple[float, float], ...]]:
    """From where on the difference stays below 0 up to the last place (None: it is not there), and the windows before
    in which it is."""

    def holds(x: float) -> bool:
        return difference(x) < 0

    edges = [0.0] if holds(places[0]) else list[float]()
    before = bool(edges)
    for low, high in pairwise(places):
        after = holds(high)
        if after != before:
            edges.append(narrow(holds, low, high))
        before = after
    start = edges.pop() if before else None
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


def _finite(value: float) -> float | None:
    return None if math.isinf(value) else value
