"""Checks of sizes and factors that every part of a spec shares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

from bedplate.core.errors import UnsupportedModelError

BEYOND = 1e15
"""No number of a model is as large: with sizes beyond it torch's own arithmetic of sizes overflows."""


def refuse(wrong: object, message: str) -> None:
    """Raises UnsupportedModelError with the message where something is wrong."""
    if wrong:
        raise UnsupportedModelError(message)


def at_least(part: object, smallest: int, *names: str) -> None:
    """Raises UnsupportedModelError naming the first field of the part, or of a mapping, that is under `smallest`;
    None is left."""
    for name in names:
        value = cast("Mapping[str, Any]", part)[name] if isinstance(part, Mapping) else getattr(part, name)
        refuse(value is not None and value < smallest, f"{name} is {value}: it must be at least {smallest}")


def positive(part: object, *names: str) -> None:
    """Raises UnsupportedModelError naming the first of the fields that is not a finite number above 0; None is left."""
    finite(part, *names, above=0, requirement="a finite number above 0")


def finite(part: object, *names: str, above: float = -math.inf, requirement: str = "a finite number") -> None:
    """Raises UnsupportedModelError naming the first of the fields that is not a finite number; None is left."""
    for name in names:
        value = getattr(part, name)
        if value is not None and (isinstance(value, complex) or not above < value < math.inf):
            raise UnsupportedModelError(f"{name} is {value}: it must be {requirement}")
