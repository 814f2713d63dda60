"""All numbers that a decision rests on, one row each, so that any of them can be varied alone or drawn with the others.

Draws: a Latin hypercube (McKay, Beckman & Conover 1979), each number that has a range independently, as a triangle from
low to high with its mode at the value. Numbers without a range are the same in every draw.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from bedplate.economics.numbers.formula import ZERO, Formula, Values
from bedplate.economics.numbers.ranged_quantities import Quantity


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

    def add(self, name: str, quantity: Quantity, source: str) -> Formula:
        """The input as a formula. An exact zero is a part that the case does not have, and no input."""
        if quantity.exact and quantity.value == 0:
            return ZERO
        place = self.place(name, quantity, source)
        return Formula(f"v[{place}]", frozenset((place,)))

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


def triangle(u: float, low: float, mode: float, high: float) -> float:
    """The inverse of the triangular distribution's function, at u from 0 to 1."""
    width = high - low
    if u * width < mode - low:
        return low + math.sqrt(u * width * (mode - low))
    return high - math.sqrt((1 - u) * width * (high - mode))


def percentile(ordered: Sequence[float], share: float) -> float:
    """Linear between the order statistics; `ordered` may end in infinities."""
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    low, high = ordered[below], ordered[min(below + 1, len(ordered) - 1)]
    if low == high or math.isinf(high):
        return low if position == below else high
    return low + (position - below) * (high - low)
