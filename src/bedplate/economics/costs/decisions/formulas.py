"""The formulas of a decision, each with its source, for display beside the figures."""

from __future__ import annotations

FORMULAS: dict[str, tuple[str, str]] = {
    "calls": ("∫ calls_per_day × (1 + growth)^(day / 365) over the horizon", "arithmetic"),
    "hosted call": (
        "Σ tokens × price; a repeated prompt: share found × cached price + rest × price of writing it",
        "the price file",
    ),
    "calls that may wait": ("the batch price, without the cache, where that is cheaper", "the price file"),
    "call on a machine paid by use": (
        "seconds × usd_per_hour / 3600 / utilisation",
        "arithmetic: idle time is paid for",
    ),
    "reserved machines": (
        "∫ max(at_least, ⌈calls × peak × seconds / (86,400 × utilisation)⌉) × usd_per_hour × 24",
        "arithmetic",
    ),
    "tuning again": ("(labels + hours + compute) × (⌈horizon / every_days⌉ − 1)", "arithmetic"),
    "pretraining": ("(run × runs + data + hours) / features that share the base", "arithmetic"),
    "total": ("once + over time + calls × a call + reserved machines", "arithmetic"),
    "right answer": ("total / calls / quality", "arithmetic"),
    "ranking": ("total + wrong answers × their cost − revenue × margin", "arithmetic"),
    "break-even": (
        "(standing cost − the other's) / (saving of a call); with reserved machines each step is looked at",
        "arithmetic; never where the saving is not above 0",
    ),
    "intervals": (
        "5th and 95th percentile of the draws, each range a triangle, by Latin hypercube",
        "McKay, Beckman and Conover 1979",
    ),
    "flipping point": (
        "each number alone, from a tenth to ten times (calls a day: from 1 to a thousandfold), narrowed",
        "bisection",
    ),
}
"""Figure: (formula, source)."""
