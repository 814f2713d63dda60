"""Counts as people write them: 5M, 300k, 1.5B, 15T."""

from __future__ import annotations

from typing import Any

from bedplate.core import quantities


def count_of(value: Any) -> Any:
    """A text such as 5M as a whole number; what is no text stays as it is. ValueError for another text."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, str):
        return value
    count = quantities.count_of(value)
    if count is None or count < 0:
        raise ValueError(f"{value!r} is not a count; write for example 5M, 300k or 1.5B")
    if count >= 1e18:
        raise ValueError(f"{value!r} is more than can be counted here; 15T is a large corpus")
    return round(count)


def shown(count: float) -> str:
    """A count with three digits and a suffix: 5.24 M."""
    for suffix, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {suffix}"
    return f"{count:g}"
