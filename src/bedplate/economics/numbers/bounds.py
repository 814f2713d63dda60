"""Refusing numbers that cannot be, by name: every public function of the cost model asks here first."""

from __future__ import annotations

import math

from bedplate.core.errors import UsageError


def positive(**values: float) -> None:
    """UsageError names the first value that is not a finite number above 0."""
    for name, value in values.items():
        if not math.isfinite(value) or value <= 0:
            raise UsageError(f"{name} is {value:g}: it must be a number above 0")


def whole(**values: float) -> None:
    """UsageError names the first value that is not a whole number from 1 on."""
    for name, value in values.items():
        if not math.isfinite(value) or value < 1 or value != int(value):
            raise UsageError(f"{name} is {value:g}: it must be a whole number, at least 1")


def at_least(smallest: float, **values: float) -> None:
    """UsageError names the first value that is not a finite number of at least `smallest`."""
    for name, value in values.items():
        if not math.isfinite(value) or value < smallest:
            raise UsageError(f"{name} is {value:g}: it must be a number, at least {smallest:g}")


def share(**values: float) -> None:
    """UsageError names the first value that is not above 0 and at most 1."""
    for name, value in values.items():
        if not math.isfinite(value) or not 0 < value <= 1:
            raise UsageError(f"{name} is {value:g}: it must be above 0 and at most 1")
