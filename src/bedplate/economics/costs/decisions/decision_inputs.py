"""All numbers that a decision rests on, one row each, so that any of them can be varied alone or drawn with the others.

Draws: a Latin hypercube (McKay, Beckman & Conover 1979), each number that has a range independently, as a triangle from
low to high with its mode at the value. Numbers without a range are the same in every draw.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import pairwise

from bedplate.core.config import key_path
from bedplate.economics.costs.decisions.decision_file import Case
from bedplate.economics.numbers.formula import ZERO, Formula, Values, call
from bedplate.economics.numbers.prices import Prices, Quantity

DAYS_PER_YEAR = 365.0
DAYS_PER_MONTH = DAYS_PER_YEAR / 12
_RESIZINGS = 4  # times over the horizon that the number of reserved machines is set, where calls grow
_NO_GROWTH = 1e-30  # added to a growth of 0, for which (e^x - 1) / x is not defined; it is lost in any other


@dataclass(frozen=True)
class Input:
    """One number. name: where it stands, as an override spells it. low, high: the stated range. search: where a
    flipping point is looked for. source: which file it is from."""

    name: str
    value: float
    low: float
    high: float
    search: tuple[float, float]
    source: str

    @property
    def exact(self) -> bool:
        """Whether no range was stated."""
        return self.low == self.high


class DecisionInputs:
    """The inputs of a case, by place and by name; adding a name again gives the input that is there."""

    def __init__(self) -> None:
        self.rows: list[Input] = []
        self._places: dict[str, int] = {}

    def place(self, name: str, quantity: Quantity, source: str) -> int:
        """The place of an input, which is added where it is new."""
        if name not in self._places:
            self._places[name] = len(self.rows)
            self.rows.append(Input(name, quantity.value, quantity.low, quantity.high, quantity.search(), source))
        return self._places[name]

    def add(self, name: str, quantity: Quantity | None, source: str) -> Formula:
        """The input as a formula. What is not stated, or is exactly zero, is a part that the case does not have."""
        if quantity is None or (quantity.exact and quantity.value == 0):
            return ZERO
        return Formula.input(self.place(name, quantity, source))

    @property
    def values(self) -> list[float]:
        """As stated."""
        return [row.value for row in self.rows]

    def draws(self, count: int, seed: int) -> list[list[float]]:
        """`count` draws. Those of an input depend on the seed and its own name and range alone, so that two cases that
        differ in one number are compared on the same draws of the others."""
        draws = [self.values for _ in range(count)]
        for place, row in enumerate(self.rows):
            if row.exact:
                continue
            rng = random.Random(f"{seed} {row.name}")
            strata = [(i + rng.random()) / count for i in range(count)]
            rng.shuffle(strata)
            for values, u in zip(draws, strata, strict=True):
                values[place] = triangle(u, row.low, row.value, row.high)
        return draws


def triangle(u: float, low: float, mode: float, high: float) -> float:
    """The inverse of the triangular distribution's function, at u from 0 to 1."""
    width = high - low
    if u * width < mode - low:
        return low + math.sqrt(u * width * (mode - low))
    return high - math.sqrt((1 - u) * width * (high - mode))


@dataclass(frozen=True)
class Ranged:
    """An input that keeps the width of its range where its value is varied."""

    place: int
    below: float
    above: float

    def low(self, v: Values) -> float:
        return v[self.place] - self.below

    def high(self, v: Values) -> float:
        return v[self.place] + self.above


class CaseInputs(DecisionInputs):
    """Every number of a case and its prices, and what all options share: calls, days and prices."""

    def __init__(self, case: Case, prices: Prices) -> None:
        super().__init__()
        self.case, self.prices = case, prices
        self.used_prices: list[tuple[str, str]] = []
        self.source = case.path.name if case.path is not None else case.case
        traffic, value, bar = case.traffic, case.value, case.bar
        self.calls_place = self.place("traffic.calls_per_day", traffic.calls_per_day, self.source)
        self.days_place = self.place("traffic.horizon_days", traffic.horizon_days, self.source)
        self.calls_per_day, self.days = Formula.input(self.calls_place), Formula.input(self.days_place)
        growth = self._add("traffic.growth_per_year", traffic.growth_per_year)
        rate = call("log1p", growth + _NO_GROWTH) / DAYS_PER_YEAR
        self.calls = self.calls_per_day * (call("expm1", rate * self.days) / rate)
        self.busiest_days = (self.calls_per_day,)
        """Calls of the busiest day in each part of the horizon for which machines are reserved."""
        if growth != ZERO:
            grown = [
                self.calls_per_day * (growth + 1.0) ** (self.days * (part / _RESIZINGS / DAYS_PER_YEAR))
                for part in range(_RESIZINGS + 1)
            ]
            self.busiest_days = tuple(call("max", begin, end) for begin, end in pairwise(grown))
        self.months = self.days / DAYS_PER_MONTH
        self.cached_share = self._add("traffic.cached_share", traffic.cached_share)
        self.waiting_share = self._add("traffic.waiting_share", traffic.waiting_share)
        self.peak = self._add("traffic.peak_to_mean", traffic.peak_to_mean)
        self.wrong_answer = self._add("value.usd_per_wrong_answer", value.usd_per_wrong_answer)
        self.revenue = ZERO
        if value.usd_per_call is not None:
            self.revenue = self._add("value.usd_per_call", value.usd_per_call) * self._add("value.margin", value.margin)
        self.bar_quality = None if bar.quality is None else self.place("bar.quality", bar.quality, self.source)
        self.bar_p95_ms = None if bar.p95_ms is None else self.place("bar.p95_ms", bar.p95_ms, self.source)

    def _add(self, name: str, quantity: Quantity | None) -> Formula:
        return self.add(name, quantity, self.source)

    def price(self, section: str, name: str, field: str, needed_by: str) -> Formula:
        """A field of the price file's entry `name`. ConfigError where there is no such entry."""
        entry = self.prices.find(section, name, needed_by)
        self.used_prices.append((section, name))
        quantity: Quantity = entry  # pyright: ignore[reportAssignmentType]
        for part in field.split("."):
            quantity = getattr(quantity, part)
        file = self.prices.path.name if self.prices.path is not None else "prices"
        return self.add(key_path(["prices", section, name, *field.split(".")]), quantity, f"{file}, {entry.as_of}")
