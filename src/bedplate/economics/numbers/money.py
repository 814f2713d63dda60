"""Numbers as people read them: dollars and figures, without an exponent where that can be avoided."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bedplate.core.quantities import adding_up


def usd(value: float) -> str:
    """Whole dollars from a hundred on, millions from a million on, three figures below one."""
    sign, value = ("-" if value < 0 else ""), abs(value)
    if value >= 1e6:
        return f"{sign}${value / 1e6:,.2f} million"
    if value >= 100:
        return f"{sign}${value:,.0f}"
    if value >= 1:
        return f"{sign}${value:.2f}"
    return f"{sign}${figures(value, 3)}"


def usd_an_hour(value: float) -> str:
    """A price that is multiplied: $2.00, $3.154, $0.105."""
    return f"${value:,.2f}" if round(value, 2) == value else f"${figures(value, 4)}"


def short_usd(value: float) -> str:
    """For narrow columns: $6,806, $22.7k, $2.75M."""
    if value >= 1e6:
        return f"${figures(value / 1e6, 3)}M" if value < 1e9 else f"${value / 1e6:,.0f}M"
    if value >= 1e4:
        return f"${figures(value / 1e3, 3)}k"
    return f"${value:,.0f}"


def number(value: float) -> str:
    """Four figures, or whole thousands."""
    return f"{value:,.0f}" if value >= 1000 else figures(value, 4)


def figures(value: float, count: int) -> str:
    """So many significant figures, without trailing zeros."""
    if not value:
        return "0"
    if abs(value) < 1e-6:
        return f"{value:.{count}g}"
    places = max(0, count - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def round_columns(*columns: Sequence[float]) -> tuple[list[list[float]], int]:
    """Columns of dollars, each rounded so that it adds up to its rounded sum, and how many digits behind the point they
    are to be shown with: cents, three figures of the largest sum where that is below a dollar, whole dollars from ten
    thousand on."""
    largest = max((abs(math.fsum(column)) for column in columns), default=0.0)
    digits = 0 if largest >= 1e4 else 2 if largest >= 1 or not largest else min(6, 2 - math.floor(math.log10(largest)))
    return [adding_up(column, digits) for column in columns], digits


def exact_usd(value: float, digits: int) -> str:
    """With so many digits behind the point: -$1,234.50."""
    return f"{'-' if round(value, digits) < 0 else ''}${abs(value):,.{digits}f}"
