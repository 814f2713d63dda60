"""What an option costs as a function of volume: paid once, paid over the horizon, paid per call, and in whole machines.

Calls grow continuously: calls_per_day · (1 + growth)^(day / 365). Reserved machines are a step function of the calls of
the moment, paid day and night: total = fixed + recurring + per_call · calls + usd_per_day · machine days, where
machine days are the integral of max(at_least, ⌈calls of the day / calls that one machine can do in a day⌉).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

DAYS_PER_YEAR = 365.0
DAYS_PER_MONTH = DAYS_PER_YEAR / 12
_SLACK = 1e-9  # a demand that fills its machines exactly needs no further one for a rounding error

Line = tuple[str, float]
"""What it is for, and USD."""


@dataclass(frozen=True)
class Volume:
    """calls_per_day on the first day, growth_per_year (0.5: half as many again), days.

    rate: the growth's exponent per day. day_count: the days, each counted with its calls over the first one's.
    """

    calls_per_day: float
    growth_per_year: float
    days: float
    rate: float = field(init=False)
    day_count: float = field(init=False)

    def __post_init__(self) -> None:
        rate = math.log1p(self.growth_per_year) / DAYS_PER_YEAR
        object.__setattr__(self, "rate", rate)
        object.__setattr__(self, "day_count", self.days if rate == 0 else math.expm1(rate * self.days) / rate)

    @property
    def calls(self) -> float:
        """Over all days."""
        return self.calls_per_day * self.day_count


@dataclass(frozen=True)
class Fleet:
    """Reserved machines: what one costs in a day, the calls that one can do in a day (its utilisation and the peak are
    in that), and how many there are at the least."""

    usd_per_day: float
    calls_per_day: float
    at_least: float

    def machines(self, calls_per_day: float) -> int:
        """How many a day's calls want."""
        return math.ceil(max(self.at_least, calls_per_day / self.calls_per_day) - _SLACK)

    def machine_days(self, volume: Volume, calls_per_day: float) -> float:
        """Of a demand that begins with calls_per_day and grows as the volume's. Exact: it passes j machines at
        t_j = ln(j / first) / rate, and pays one more from then on."""
        rate, first, days = volume.rate, calls_per_day, volume.days
        if rate == 0:
            return self.machines(first) * days
        if rate < 0:  # a shrinking demand is a growing one, run backwards
            first, rate = first * math.exp(rate * days), -rate
        begin, end = self.machines(first), self.machines(first * math.exp(rate * days))
        if begin == end:
            return begin * days
        logs = math.lgamma(end) - math.lgamma(begin)  # Σ ln j over j = begin … end − 1
        passed = (logs + (end - begin) * math.log(self.calls_per_day / first)) / rate
        return begin * days + (end - begin) * days - passed

    def steps(self, volume: Volume, up_to: float, max_steps: int) -> list[float]:
        """First-day calls at which a machine is added on the first or on the last day; at most `max_steps` of each."""
        ends = {1.0, math.exp(volume.rate * volume.days)}
        begin = self.machines(0.0)
        return [
            j * self.calls_per_day / grown
            for grown in ends
            for j in range(begin, begin + max_steps)
            if j * self.calls_per_day / grown <= up_to
        ]

    def bend(self, volume: Volume, calls_per_day: float) -> float:
        """USD by which the machines' cost rises per unit of ln(calls) around there: between two steps it is linear in
        that, because a greater demand passes each count of machines earlier."""
        if volume.rate == 0:
            return 0.0
        first, last = (self.machines(calls_per_day * end) for end in (1.0, math.exp(volume.rate * volume.days)))
        return self.usd_per_day * abs(last - first) / abs(volume.rate)


@dataclass(frozen=True)
class Bill:
    """Of one option over one horizon. fixed: once; recurring: over the horizon, whatever the volume; per_call: USD of
    one call. wrong_usd, earned_usd: of one call on average, what its wrong answers cost and what it brings in.

    standing_usd: fixed and recurring, without machines. call_usd: what one call adds, without machines; net_call_usd:
    with what wrong answers cost, less what calls bring in.
    """

    fixed: tuple[Line, ...]
    recurring: tuple[Line, ...]
    per_call: tuple[Line, ...]
    fleet: Fleet | None = None
    quality: float | None = None
    wrong_usd: float = 0.0
    earned_usd: float = 0.0

    standing_usd: float = field(init=False)
    call_usd: float = field(init=False)
    net_call_usd: float = field(init=False)

    def __post_init__(self) -> None:
        standing = sum(usd for _, usd in self.fixed) + sum(usd for _, usd in self.recurring)
        call = sum(usd for _, usd in self.per_call)
        object.__setattr__(self, "standing_usd", standing)
        object.__setattr__(self, "call_usd", call)
        object.__setattr__(self, "net_call_usd", call + self.wrong_usd - self.earned_usd)

    def machines_usd(self, volume: Volume) -> float:
        fleet = self.fleet
        return 0.0 if fleet is None else fleet.usd_per_day * fleet.machine_days(volume, volume.calls_per_day)

    def total_usd(self, volume: Volume) -> float:
        """All that is spent over the horizon."""
        return self.standing_usd + self.call_usd * volume.calls + self.machines_usd(volume)

    def net_usd(self, volume: Volume) -> float:
        """What options are ranked by: spent, with what wrong answers cost, less what calls bring in."""
        return self.net_at(volume, volume.calls_per_day)

    def net_at(self, volume: Volume, calls_per_day: float) -> float:
        """net_usd at another first day's calls."""
        net = self.standing_usd + self.net_call_usd * calls_per_day * volume.day_count
        if self.fleet is not None:
            net += self.fleet.usd_per_day * self.fleet.machine_days(volume, calls_per_day)
        return net

    def idle_usd(self, volume: Volume) -> float:
        """The standing cost at no volume: with the machines that are there at the least."""
        idle_fleet_usd = 0.0 if self.fleet is None else self.fleet.usd_per_day * self.fleet.machines(0.0) * volume.days
        return self.standing_usd + idle_fleet_usd

    def marginal_usd(self) -> float:
        """Net USD of one call more at great volume, where machines are as full as they may be."""
        machine = 0.0 if self.fleet is None else self.fleet.usd_per_day / self.fleet.calls_per_day
        return self.net_call_usd + machine

    def lines(self, volume: Volume) -> list[tuple[str, str, float]]:
        """(once | over time | calls | machines, what for, USD): they add up to total_usd."""
        calls = volume.calls
        bill_lines = [("once", purpose, usd) for purpose, usd in self.fixed]
        bill_lines += [("over time", purpose, usd) for purpose, usd in self.recurring]
        bill_lines += [("calls", purpose, usd * calls) for purpose, usd in self.per_call]
        if self.fleet is not None:
            bill_lines.append(("machines", "reserved machines", self.machines_usd(volume)))
        return [line for line in bill_lines if line[2]]


def merged(lines: Sequence[Line]) -> tuple[Line, ...]:
    """Without zeros, in order."""
    return tuple(line for line in lines if line[1])
