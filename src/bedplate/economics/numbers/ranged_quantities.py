"""Numbers in files that may carry a range: `40`, or `{value: 40, low: 30, high: 60}`.

The range is what the writer holds plausible. Draws take it as a triangle with its mode at `value`; a plain number is
taken as exact. Each kind knows its own bounds, so that a zero price or a share of 1.2 is refused where it stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self, cast

from pydantic import model_validator

from bedplate.core.config import Strict
from bedplate.core.quantities import count_of

_TIMES = 10.0
LARGEST = 1e15
"""Beyond this, and below its inverse, a number is a slip of the keyboard, and sums would lose their digits."""


class Quantity(Strict):
    """Base of the kinds below; not for use in a file itself."""

    value: float
    low: float
    high: float

    requirement: ClassVar[str] = "a number"
    exclusive_min: ClassVar[float | None] = None
    at_least: ClassVar[float | None] = None
    at_most: ClassVar[float | None] = None

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, raw: Any) -> Any:
        if isinstance(raw, Quantity):
            return {"value": raw.value, "low": raw.low, "high": raw.high}
        raw = count_of(raw) or raw if isinstance(raw, str) else raw
        if isinstance(raw, int | float) and not isinstance(raw, bool):
            return {"value": raw, "low": raw, "high": raw}
        if not isinstance(raw, Mapping):
            raise ValueError(f"{cls.requirement} is wanted, or {{value, low, high}}, not {raw!r}")
        values = dict(cast("Mapping[Any, Any]", raw))
        if "value" in values:  # one that is missing is pydantic's to report
            values.setdefault("low", values["value"])
            values.setdefault("high", values["value"])
        else:
            values.setdefault("low", 0.0)
            values.setdefault("high", 0.0)
        return values

    @model_validator(mode="after")
    def _in_bounds(self) -> Self:
        for name in ("value", "low", "high"):
            number, shown = getattr(self, name), "" if name == "value" else f" of {name}"
            if not self._allows(number):
                raise ValueError(f"{self.requirement} is wanted{shown} (got {number:g})")
            if number and not 1 / LARGEST <= abs(number) <= LARGEST:
                raise ValueError(f"a number between {1 / LARGEST:g} and {LARGEST:g} is wanted{shown} (got {number:g})")
        if not self.low <= self.value <= self.high:
            raise ValueError(f"low {self.low:g}, value {self.value:g}, high {self.high:g}: they must not fall")
        return self

    @classmethod
    def _allows(cls, number: float) -> bool:
        return (
            (cls.exclusive_min is None or number > cls.exclusive_min)
            and (cls.at_least is None or number >= cls.at_least)
            and (cls.at_most is None or number <= cls.at_most)
        )

    @classmethod
    def exactly(cls, value: float) -> Self:
        """A quantity without a range."""
        return cls(value=value, low=value, high=value)

    @property
    def exact(self) -> bool:
        """Whether no range was given."""
        return self.low == self.high

    def search(self) -> tuple[float, float]:
        """Where a flipping point is looked for: a tenth to ten times, kept within bounds, the stated range included."""
        return self._clamp(min(self.low, self.value / _TIMES), max(self.high, self.value * _TIMES))

    def _clamp(self, low: float, high: float) -> tuple[float, float]:
        lower = 1 / LARGEST if self.exclusive_min == 0 else self.at_least
        upper = LARGEST if self.at_most is None else self.at_most
        return low if lower is None else max(low, lower), min(high, upper)


class Amount(Quantity):
    """More than zero: prices, volumes, tokens, times."""

    requirement = "a number above 0"
    exclusive_min = 0.0


class NonNegative(Quantity):
    """Zero or more: what may be left out."""

    requirement = "0 or a number above 0"
    at_least = 0.0

    def search(self) -> tuple[float, float]:
        return self._clamp(0.0, max(self.high, self.value * _TIMES))


class Factor(Quantity):
    """One or more: peaks over means, runs for each final run, machines at least."""

    requirement = "1 or a number above 1"
    at_least = 1.0


class Share(Quantity):
    """From 0 to 1."""

    requirement = "a share from 0 to 1"
    at_least = 0.0
    at_most = 1.0

    def search(self) -> tuple[float, float]:
        return 0.0, 1.0


class PositiveShare(Quantity):
    """More than 0, up to 1: what something is divided by."""

    requirement = "a share above 0, up to 1"
    exclusive_min = 0.0
    at_most = 1.0

    def search(self) -> tuple[float, float]:
        return min(self.low, self.value / _TIMES), 1.0


class Growth(Quantity):
    """A change per year as a share: 0.5 is half as much again, -0.2 a fifth less."""

    requirement = "a growth above -1, up to 100"
    exclusive_min = -1.0
    at_most = 100.0

    def search(self) -> tuple[float, float]:
        return self._clamp(min(self.low, max(self.value - 0.5, -0.9)), max(self.high, self.value + 2.0))
