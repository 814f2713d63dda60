"""All numbers that a decision rests on, flat: one row each, so that any of them can be varied alone or drawn together.

Draws: a Latin hypercube (McKay, Beckman & Conover 1979), each number that has a range independently, as a triangle from
low to high with its mode at the value. Numbers without a range are the same in every draw.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from bedplate.economics.numbers.quantities import Quantity

Values = Sequence[float]
"""One number for each row of a sheet."""


@dataclass(frozen=True)
class Input:
    """name: where it stands, as an override spells it. low, high: the stated range. search: where a flipping point is
    looked for, None where there is nothing to vary (a zero). source: which file it is from."""

    name: str
    value: float
    low: float
    high: float
    search: tuple[float, float] | None
    source: str

    @property
    def exact(self) -> bool:
        """Whether no range was stated."""
        return self.low == self.high


class Sheet:
    """Rows by name; a row is added once."""

    def __init__(self) -> None:
        self.inputs: list[Input] = []
        self._places: dict[str, int] = {}
        self.touched: set[int] = set()
        """Rows that were asked for since this was last cleared."""

    def add(self, name: str, quantity: Quantity, source: str) -> int:
        """The row's place."""
        place = self._places.get(name)
        if place is None:
            place = self._places[name] = len(self.inputs)
            search = None if quantity.exact and quantity.value == 0 else quantity.search()
            self.inputs.append(Input(name, quantity.value, quantity.low, quantity.high, search, source))
        self.touched.add(place)
        return place

    def place(self, name: str) -> int:
        """Of a row that is there."""
        return self._places[name]

    @property
    def values(self) -> list[float]:
        """As stated."""
        return [factor.value for factor in self.inputs]

    def draws(self, count: int, seed: int) -> list[list[float]]:
        """`count` draws. A row's depend on the seed and its own name and range alone, so that two cases that differ in
        one number are compared on the same draws of the others."""
        drawn = [self.values for _ in range(count)]
        for place, factor in enumerate(self.inputs):
            if factor.exact:
                continue
            rng = random.Random(f"{seed} {factor.name}")
            strata = [(i + rng.random()) / count for i in range(count)]
            rng.shuffle(strata)
            for values, u in zip(drawn, strata, strict=True):
                values[place] = triangle(u, factor.low, factor.value, factor.high)
        return drawn


def triangle(u: float, low: float, mode: float, high: float) -> float:
    """The inverse of the triangular distribution's function, at u from 0 to 1."""
    width = high - low
    if u * width < mode - low:
        return low + math.sqrt(u * width * (mode - low))
    return high - math.sqrt((1 - u) * width * (high - mode))


def percentile(ordered: Sequence[float], share: float) -> float:
    """Linear between the order statistics; `ordered` may end in infinities."""
    at = share * (len(ordered) - 1)
    below = math.floor(at)
    low, high = ordered[below], ordered[min(below + 1, len(ordered) - 1)]
    if low == high or math.isinf(high):
        return low if at == below else high
    return low + (at - below) * (high - low)
