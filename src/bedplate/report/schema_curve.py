"""The part of report.json that `adapt --curve` adds: quality against the number of labels (see `report.schema`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bedplate.report.schema_part import Interval, Part, Share

Labels = float | Literal["below", "beyond"]
"""A number of labels; below: at the smallest size already; beyond: not with the labels there are."""


class Draw(Part):
    """One draw of the labels, by itself."""

    seed: int
    labels: Annotated[int, Field(ge=1)]
    """Rows that were trained on: whole groups, so rarely the size that was asked for."""
    estimate: float
    train_seconds: Annotated[float, Field(ge=0)]


class Point(Part):
    """One rung at one number of labels."""

    rung: str
    size: Annotated[int, Field(ge=1)]
    """Labels asked for."""
    labels: Annotated[float, Field(ge=1)]
    """Labels used: the mean over the draws."""
    estimate: float
    """The mean over the draws."""
    interval: Interval
    draws: tuple[Draw, ...]
    usd_per_1k_calls: Annotated[float, Field(ge=0)]
    train_usd: Annotated[float, Field(ge=0)]
    """What training (or searching) cost at the machine's price, on average."""


class Flat(Part):
    """A rung that learns from no labels of train."""

    rung: str
    estimate: float
    interval: Interval
    usd_per_1k_calls: Annotated[float, Field(ge=0)]
    train_usd: Annotated[float, Field(ge=0)]


class Difference(Part):
    labels: float
    difference: float
    """Tuned minus prompted."""
    interval: Interval


class Crossover(Part):
    """From how many labels on the tuned rung stays above the prompted one, on this task. A number, or below: at the
    smallest size already; beyond: not with the labels there are."""

    tuned: str
    prompted: str
    labels: Labels
    interval: tuple[Labels, Labels] | None
    """Null where valid has too few groups for one."""
    crosses: Share
    """Share of the resamples in which tuning overtakes within the labels there are (at the smallest size, too)."""
    draws: Annotated[int, Field(ge=1)]
    differences: tuple[Difference, ...]


class BreakEven(Part):
    """From how many calls on tuning has paid for itself, at one size; costs at the machine's price, labels unpriced
    (both sides have the same)."""

    tuned: str
    prompted: str
    size: Annotated[int, Field(ge=1)]
    calls: float | None
    """0: from the first call; null: never."""
    reason: str


class Curve(Part):
    metric: str
    split: Literal["valid"]
    """Learning curves never see test."""
    confidence: Share
    asked: tuple[int, ...]
    sizes: tuple[int, ...]
    seeds: tuple[int, ...]
    points: tuple[Point, ...]
    flat: tuple[Flat, ...]
    crossovers: tuple[Crossover, ...]
    """Every tuned rung against every prompted one; the first is the one that is spoken of."""
    break_even: tuple[BreakEven, ...]
    left_out: tuple[str, ...]
    says: tuple[str, ...]
    """The crossover and the break-even in sentences."""
    method: str
    """How intervals were made, and what they leave out."""
