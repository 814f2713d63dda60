"""Amounts as people write and read them: 50k, 15.6T, 10m of time; and figures that still add up when they are rounded.

One syntax for the command line and for every file: a number, and behind it what it is multiplied with. Counts know k,
M, B (or G) and T, times ms, s, m (or min), h and d.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from bedplate.core.errors import UsageError

_SIZES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
"""The units of times, in seconds."""
DAYS_PER_MONTH = 365.0 / 12
_WHOLE = r"\d{1,3}(?:,\d{3})+|\d[\d_]*"  # a comma only between thousands: 1,5M is not 15M
_NUMBER = rf"[-+]?(?:(?:{_WHOLE})(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
_COUNT = re.compile(rf"\s*({_NUMBER})\s*([kKmMbBgGtT]?)\s*")
_TIME = re.compile(rf"\s*({_NUMBER})\s*(ms|s|min|m|h|d|)\s*")


def count_of(text: str) -> float | None:
    """The number that a text such as 1e12, 15.6T, 50k or 50_000 stands for; None where it is something else."""
    match = _COUNT.fullmatch(text)
    return None if match is None else _value(match[1]) * _SIZES[match[2].lower()]


def seconds_of(text: str, unit: str | None = None) -> float | None:
    """The seconds that a text such as 90s, 10m or 1.5h stands for; None where it is something else. unit: that of a
    number without one, which is otherwise something else."""
    match = _TIME.fullmatch(text)
    if match is None or not (match[2] or unit):
        return None
    return _value(match[1]) * SECONDS[match[2] or unit or ""]


def parse_count(name: str, text: str) -> float:
    """As `count_of`; UsageError, which names what it was for, for anything else, and for what is not above 0."""
    return _above_zero(name, text, count_of(text), "a number; write for example 1e12, 15.6T, 300B or 50k")


def parse_seconds(name: str, text: str, unit: str | None = None) -> float:
    """As `seconds_of`; UsageError, which names what it was for, for anything else, and for what is not above 0."""
    return _above_zero(name, text, seconds_of(text, unit), "a length of time; write for example 90s, 10m or 1.5h")


def _above_zero(name: str, text: str, value: float | None, what: str) -> float:
    if value is None:
        raise UsageError(f"{name} {text!r} is not {what}")
    if not 0 < value < math.inf:
        raise UsageError(f"{name} is {text.strip()}: it must be a number above 0")
    return value


def shown_count(count: float) -> str:
    """A count with three digits and a suffix: 5.24 M."""
    for suffix, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {suffix}"
    return f"{count:g}"


def adding_up(values: Sequence[float], digits: int) -> list[float]:
    """The values rounded to so many digits behind the point, so that they add up to their rounded sum: each is rounded
    down, and those with the largest remainders are then rounded up."""
    scale = 10.0**digits
    scaled = [value * scale for value in values]
    floors = [math.floor(value) for value in scaled]
    missing = round(math.fsum(scaled)) - sum(floors)
    order = sorted(range(len(values)), key=lambda place: floors[place] - scaled[place])
    for place in order[:missing]:
        floors[place] += 1
    return [floor / scale for floor in floors]


def _value(text: str) -> float:
    return float(text.replace(",", "").replace("_", ""))
