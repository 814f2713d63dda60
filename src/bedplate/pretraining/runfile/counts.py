"""Counts as people write them: 5M, 300k, 1.5B, 15T."""

from __future__ import annotations

import re
from typing import Any

_SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
_WHOLE = r"\d{1,3}(?:,\d{3})+|\d+(?:_\d+)*"  # a comma only between thousands: 1,5M is no 15M
_COUNT = re.compile(rf"\s*((?:{_WHOLE})(?:\.\d+)?(?:[eE]\+?\d+)?)\s*([kKmMbBgGtT]?)\s*")


def count_of(value: Any) -> Any:
    """A text such as 5M as a whole number; what is no text stays as it is. ValueError for another text."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, str):
        return value
    found = _COUNT.fullmatch(value)
    if found is None:
        raise ValueError(f"{value!r} is not a count; write for example 5M, 300k or 1.5B")
    count = float(found[1].replace(",", "").replace("_", "")) * _SUFFIXES[found[2].lower()]
    if count >= 1e18:
        raise ValueError(f"{value!r} is more than can be counted here; 15T is a large corpus")
    return round(count)


def shown(count: float) -> str:
    """A count with three digits and a suffix: 5.24 M."""
    for suffix, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {suffix}"
    return f"{count:g}"
