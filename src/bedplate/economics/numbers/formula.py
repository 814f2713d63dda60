"""Formulas over the inputs of a decision; ranges of figures; and the refusal of numbers that cannot be.

A formula is an expression that Python and JavaScript share, such as `v[3] * max(v[4], 1.0)`, where `v` holds the value
of every input. A comparison counts as 1 or 0 in both.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, reduce
from importlib.resources import files
from typing import TypeVar

from bedplate.core.errors import UsageError


def _need(values: Mapping[str, float], fits: Callable[[float], bool], requirement: str) -> None:
    """UsageError names the first value that is not finite or does not fit."""
    for name, value in values.items():
        if not (math.isfinite(value) and fits(value)):
            raise UsageError(f"{name} is {value:g}: it must be {requirement}")


def positive(**values: float) -> None:
    _need(values, lambda value: value > 0, "a number above 0")


def whole(**values: float) -> None:
    _need(values, lambda value: value >= 1 and value == int(value), "a whole number, at least 1")


def at_least(smallest: float, **values: float) -> None:
    _need(values, lambda value: value >= smallest, f"a number, at least {smallest:g}")


def share(**values: float) -> None:
    _need(values, lambda value: 0 < value <= 1, "above 0 and at most 1")


Number = TypeVar("Number", float, "Formula")  # what arithmetic of plain operators is for: numbers, or formulas
Values = Sequence[float]  # the value of each input, by its place

FUNCTIONS = {"min": min, "max": max, "ceil": math.ceil, "expm1": math.expm1, "log1p": math.log1p}
"""What formulas may call; JavaScript's Math has them under the same names."""


@dataclass(frozen=True)
class Formula:
    """An expression and the places of the inputs that it depends on. Build one with operators, not from text."""

    text: str
    places: frozenset[int] = frozenset()

    def __add__(self, operand: Formula | float) -> Formula:
        if self == ZERO:
            return as_formula(operand)
        return self if operand == ZERO else _combined("({} + {})", self, operand)

    def __sub__(self, operand: Formula | float) -> Formula:
        return self if operand == ZERO else _combined("({} - {})", self, operand)

    def __rsub__(self, operand: float) -> Formula:
        return _combined("({} - {})", operand, self)

    def __mul__(self, operand: Formula | float) -> Formula:
        return ZERO if ZERO in (self, operand) else _combined("({} * {})", self, operand)

    def __truediv__(self, operand: Formula | float) -> Formula:
        return ZERO if self == ZERO else _combined("({} / {})", self, operand)

    def __rtruediv__(self, operand: float) -> Formula:
        return _combined("({} / {})", operand, self)

    def __pow__(self, operand: Formula | float) -> Formula:
        return _combined("({} ** {})", self, operand)

    __radd__, __rmul__ = __add__, __mul__

    @classmethod
    def input(cls, place: int) -> Formula:
        return cls(f"v[{place}]", frozenset((place,)))

    def is_less(self, operand: Formula | float) -> Formula:
        """1 where this is below the operand, else 0."""
        return _combined("({} < {})", self, operand)

    def __call__(self, v: Values) -> float:
        """Its value at those of the inputs."""
        return self._function(v)

    @cached_property
    def _function(self) -> Callable[[Values], float]:
        return eval(f"lambda v: {self.text}", {"__builtins__": {}, **FUNCTIONS})  # only operators make such text


def as_formula(value: Formula | float) -> Formula:
    return value if isinstance(value, Formula) else Formula(repr(float(value)))


ZERO = Formula("0.0")  # a cost that there is not: products with it vanish, so that formulas stay short


def call(function: str, *arguments: Formula | float) -> Formula:
    """`function`, one of FUNCTIONS, of the arguments."""
    return _combined(f"{function}({', '.join('{}' for _ in arguments)})", *arguments)


def total(parts: Iterable[Formula]) -> Formula:
    return reduce(operator.add, parts, ZERO)


def _combined(template: str, *parts: Formula | float) -> Formula:
    formulas = [as_formula(part) for part in parts]
    places = frozenset[int]().union(*(formula.places for formula in formulas))
    return Formula(template.format(*(formula.text for formula in formulas)), places)


@dataclass(frozen=True)
class Range:
    """A figure between what a share of the peak, or a price, makes of it at the ends of its range."""

    low: float
    central: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> Range:
        return cls(value, value, value)

    def times(self, factor: Range) -> Range:
        """With another figure that stretches it the same way."""
        return Range(self.low * factor.low, self.central * factor.central, self.high * factor.high)

    def scaled(self, factor: float) -> Range:
        """With a figure that is known exactly."""
        return Range(self.low * factor, self.central * factor, self.high * factor)


@cache
def formulas_of(plan: str) -> dict[str, tuple[str, str]]:
    """By figure of a plan ("serving"): the formula that is shown beside it, and its source, as formulas.yaml has
    them."""
    import yaml  # which a base's first token has no need of

    plans = yaml.safe_load((files("bedplate.economics.numbers") / "formulas.yaml").read_text("utf-8"))
    return {figure: (row["formula"], row["source"]) for figure, row in plans[plan].items()}


def formula_values(formulas: Mapping[str, tuple[str, str]]) -> dict[str, dict[str, str]]:
    """Each figure's formula and where it is from, as JSON has them."""
    return {name: {"formula": text, "source": source} for name, (text, source) in formulas.items()}
