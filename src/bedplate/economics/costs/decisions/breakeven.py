"""From which volume on the option that is dearer to start pays back, and after how many days: a number, or never.

Without reserved machines both costs are straight lines in the calls: volume = extra standing cost / saving per call.
Whole machines make steps; then every step is looked at (between two of them the cost is a straight line, with growth a
straight line and a logarithm), and the break-even is the volume from which on it stays cheaper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from bedplate.economics.costs.decisions.bill import Bill, Volume
from bedplate.economics.costs.decisions.resolved_option import Resolved
from bedplate.economics.costs.decisions.sheet import Values, percentile

_TEN_YEARS, _DAY_PLACES = 3650.0, 80
_GRID, _STEPS, _HALVINGS = 160, 300, 60
_BEYOND = 1e9  # calls a day: more than any task has
_SHARES = (0.05, 0.95)


@dataclass(frozen=True)
class BreakEvenVolume:
    """`option` costs more than `against` at no volume.

    calls_per_day: on the first day, from which on `option` stays cheaper; None is never, and `reason` says why.
    interval: 90% of the draws; None in it is never, and None instead of it that nothing was drawn. windows: volumes at
    which it is cheaper, but not for good. days: at the case's volume, until its extra cost has come back for good; None
    is never (within ten years).
    """

    option: str
    against: str
    calls_per_day: float | None
    interval: tuple[float | None, float | None] | None
    windows: tuple[tuple[float, float], ...]
    days: float | None
    reason: str | None


def cheaper_from(dear: Bill, cheap: Bill, volume: Volume) -> tuple[float | None, tuple[tuple[float, float], ...]]:
    """First-day calls from which on `dear` (at no volume) costs less than `cheap` for good, or None; and the windows
    before it in which it does so for a while."""
    extra = dear.idle_usd(volume) - cheap.idle_usd(volume)
    saving = cheap.marginal_usd() - dear.marginal_usd()
    if dear.fleet is None and cheap.fleet is None:
        return (extra / saving / volume.day_count if saving > 0 else None), ()
    slack = sum(bill.fleet.usd_per_day * volume.days * 2 for bill in (dear, cheap) if bill.fleet is not None)
    # From here on a machine more or less decides nothing any more.
    settled = (abs(extra) + slack) / abs(saving) / volume.day_count if saving else _BEYOND
    settled = min(_BEYOND, max(settled, 1e-6) * 1.01)
    points = _points(dear, cheap, volume, settled)

    def cheaper(calls: float) -> bool:
        return dear.net_at(volume, calls) < cheap.net_at(volume, calls)

    windows: list[tuple[float, float]] = []
    begin: float | None = None
    last = 0.0
    for point in points:
        if cheaper(point) != (begin is not None):
            crossing = _change(cheaper, last, point)
            if begin is None:
                begin = crossing
            else:
                windows.append((begin, crossing))
                begin = None
        last = point
    if begin is not None and saving <= 0:  # it stays cheaper nowhere: its calls cost more in the end
        windows.append((begin, settled))
        begin = None
    return begin, tuple(windows)


def _points(dear: Bill, cheap: Bill, volume: Volume, settled: float) -> list[float]:
    """Volumes between two of which the difference only rises or only falls: to both sides of every step, and where the
    straight line of the calls and the logarithm of growing machines turn. Beyond so many steps, a grid."""
    fleets = [(sign, bill.fleet) for sign, bill in ((1, dear), (-1, cheap)) if bill.fleet is not None]
    steps = sorted({step for _, fleet in fleets for step in fleet.steps(volume, settled, _STEPS)})
    points = {settled, *(step * (1 - 1e-10) for step in steps), *(step * (1 + 1e-8) for step in steps)}
    slope = (dear.net_call_usd - cheap.net_call_usd) * volume.day_count
    for low, high in pairwise([0.0, *steps, settled]):
        bend = sum(sign * fleet.bend(volume, (low + high) / 2) for sign, fleet in fleets)
        if slope and low < -bend / slope < high:
            points.add(-bend / slope)
    if steps and steps[-1] * 2 < settled:
        points |= {settled * (steps[-1] / settled) ** (i / _GRID) for i in range(_GRID)}
    return sorted(point for point in points if 0 < point <= settled)


def _change(cheaper: Callable[[float], bool], low: float, high: float) -> float:
    """Where a yes or no changes between two places, to a part in 10¹²."""
    at_high = cheaper(high)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if middle in {low, high}:
            break
        if cheaper(middle) == at_high:
            high = middle
        else:
            low = middle
    return high


def days_until_cheaper(dear: Resolved, cheap: Resolved, v: Values) -> float | None:
    """Days at the case's volume after which all that `dear` has cost is less than all that `cheap` has, and stays so
    for ten years; None is never. Looked for at places 46 days apart, then narrowed."""
    changed = list(v)

    def cheaper(days: float) -> bool:
        changed[dear.case.days] = days
        volume = dear.case.volume(changed)
        return dear.bill(changed).net_usd(volume) < cheap.bill(changed).net_usd(volume)

    places = [_TEN_YEARS * (i + 1) / _DAY_PLACES for i in range(_DAY_PLACES)]
    if not cheaper(places[-1]):
        return None
    after = places[-1]
    for place in reversed(places):
        if not cheaper(place):
            return _change(cheaper, place, after)
        after = place
    return _change(cheaper, 0.0, after) if not cheaper(1e-9) else 0.0


def drawn_interval(
    value: float | None, dear: Sequence[Bill], cheap: Sequence[Bill], volumes: Sequence[Volume]
) -> tuple[float | None, float | None]:
    """90% of the draws' break-evens, widened to hold the stated numbers' own; never counts as beyond any number."""
    crossings = sorted(_quick(d, c, volume) for d, c, volume in zip(dear, cheap, volumes, strict=True))
    stated = math.inf if value is None else value
    low, high = min(stated, percentile(crossings, _SHARES[0])), max(stated, percentile(crossings, _SHARES[1]))
    return (None if math.isinf(low) else low), (None if math.isinf(high) else high)


def _quick(dear: Bill, cheap: Bill, volume: Volume) -> float:
    """One draw's break-even, to a part in ten thousand; infinite is never. Where whole machines make it cross more than
    once, one of the crossings, which lie within a machine's step of each other."""
    extra = dear.idle_usd(volume) - cheap.idle_usd(volume)
    saving = cheap.marginal_usd() - dear.marginal_usd()
    if saving <= 0:
        return math.inf
    if dear.fleet is None and cheap.fleet is None:
        return max(0.0, extra) / saving / volume.day_count
    if extra <= 0:
        return 0.0
    slack = sum(bill.fleet.usd_per_day * volume.days * 2 for bill in (dear, cheap) if bill.fleet is not None)
    low, high = 0.0, (extra + slack) / saving / volume.day_count
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        if dear.net_at(volume, middle) < cheap.net_at(volume, middle):
            high = middle
        else:
            low = middle
    return high


def why_never(option: str, against: str, dear: Bill, cheap: Bill, saved_prompt_tokens: float) -> str:
    """Why the dearer one never pays back: what a call saves does not cover what it adds."""
    saves, adds = list[str](), list[str]()
    ours, theirs = dict(dear.per_call), dict(cheap.per_call)
    for bill, lines in ((dear, ours), (cheap, theirs)):
        if bill.fleet is not None:
            lines["machines at their fullest"] = bill.fleet.usd_per_day / bill.fleet.calls_per_day
        if bill.wrong_usd:
            lines["wrong answers"] = bill.wrong_usd
        if bill.earned_usd:
            lines["revenue"] = -bill.earned_usd
    total = 0.0
    for purpose in dict.fromkeys([*theirs, *ours]):
        difference = ours.get(purpose, 0.0) - theirs.get(purpose, 0.0)
        total += difference
        if difference:
            (adds if difference > 0 else saves).append(f"${abs(difference):.3g} on {purpose}")
    if not saves:
        comparison = "no less" if total else "the same"
        return f"{option} costs more to start than {against}, and {comparison} per call"
    tokens = (
        f" (the {saved_prompt_tokens:,.0f} prompt tokens it spares, at their price)" if saved_prompt_tokens > 0 else ""
    )
    return (
        f"a call of {option} saves {' and '.join(saves)}{tokens}, which does not cover the {' and '.join(adds)} "
        "that it adds"
    )
