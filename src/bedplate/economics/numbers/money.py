"""Numbers as people read them: dollars and figures, without an exponent where that can be avoided."""

from __future__ import annotations

import math


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
