"""What the rows of an evaluation say of one number, at any confidence: of a metric with the price of the call in it, of
a calibration error, of a difference from what runs today. All in scores, of which more is better."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from bedplate.adaptation.context.estimated import Resting
from bedplate.core.statistics import MINIMUM_GROUPS, InsufficientGroups, independent_difference, needed_n, worth
from bedplate.core.statistics.noninferiority import Drop
from bedplate.core.statistics.proportions import Side
from bedplate.evaluation.comparison import drop_between
from bedplate.evaluation.evaluated import Evaluation
from bedplate.evaluation.restricted import calibration_error, calibration_of, sure
from bedplate.evaluation.task_row import RowResult

POWER = 0.8


class Measured(Protocol):
    """A number, its one-sided bounds (InsufficientGroups where there are none), and the rows that it is of."""

    @property
    def estimate(self) -> float: ...
    @property
    def n(self) -> int: ...
    @property
    def groups(self) -> int: ...
    def bound(self, confidence: float, side: Side = "lower") -> float: ...
    def needed(self, bar: float, confidence: float) -> int | None:
        """Rows for 80% power to show it to be on its side of the bar, were the estimate the truth."""
        ...


@dataclass(frozen=True)
class Price:
    """Of a call, as a share of what one costs at worst. bounds: lower and upper, one-sided, at a confidence."""

    share: float
    bounds: Callable[[float], tuple[float, float]]

    @classmethod
    def known(cls, share: float) -> Price:
        """That is not measured but told."""
        return cls(share, lambda _: (share, share))


NOTHING = Price.known(0.0)


@dataclass(frozen=True)
class Priced(Resting):
    """The metric of an evaluation, less the price of a call where scores stand for costs. Bounds of both together are
    those of a sum of independent estimates (MOVER, Zou & Donner 2008)."""

    evaluation: Evaluation
    price: Price = NOTHING

    @property
    def estimate(self) -> float:
        return self.evaluation.estimate - self.price.share

    @property
    def groups(self) -> int:
        return self.evaluation.groups

    def bound(self, confidence: float, side: Side = "lower") -> float:
        found = self.evaluation.bound(confidence, side)
        return found if self.price is NOTHING else self._less(found, confidence, side)

    def _less(self, found: float, confidence: float, side: Side) -> float:
        own, price = self.evaluation.estimate, self.price
        ends = (min(found, own), own) if side == "lower" else (own, max(found, own))
        low, high = price.bounds(confidence)
        low, high = independent_difference(own, price.share, ends, (min(low, price.share), max(high, price.share)))
        return low if side == "lower" else high

    @property
    def interval(self) -> tuple[float, float]:
        """Two-sided, at the evaluation's confidence."""
        if self.price is NOTHING:
            return self.evaluation.interval
        one_sided = (1 + self.evaluation.confidence) / 2
        low, high = self.evaluation.interval
        return self._less(low, one_sided, "lower"), self._less(high, one_sided, "upper")

    def needed(self, bar: float, confidence: float) -> int | None:
        value, at = (min(max(one, 0.0), 1.0) for one in (self.estimate, bar))
        effect = max(self.design_effect, 1.0)
        return needed_n(value, at, confidence, POWER, effect, self.row_variance)


@dataclass(frozen=True)
class Calibrated:
    """One minus the calibration error of the rows whose answers carry probabilities, at least one of them."""

    rows: Sequence[RowResult]

    @cached_property
    def _kept(self) -> list[RowResult]:
        return sure(self.rows)

    @property
    def n(self) -> int:
        return len(self._kept)

    @property
    def groups(self) -> int:
        return len({row.group for row in self._kept})

    @property
    def estimate(self) -> float:
        return 1 - calibration_error(self._kept)

    def bound(self, confidence: float, side: Side = "lower") -> float:
        found = calibration_of(self._kept, confidence)
        return 1 - (found.upper if side == "lower" else found.lower)

    def needed(self, bar: float, confidence: float) -> int | None:
        """By the width of the bound, which shrinks as the root of the rows."""
        from scipy.special import ndtri

        try:
            width = self.estimate - self.bound(confidence)
        except InsufficientGroups:
            return None
        if self.estimate <= bar:
            return None
        reach = 1 + float(ndtri(POWER) / ndtri(confidence))
        return max(self.n, round(self.n * (reach * width / (self.estimate - bar)) ** 2))


@dataclass(frozen=True)
class Against:
    """A nominee minus what it is compared with, on the same rows, the price of a call in both."""

    own: Priced
    other: Priced

    @property
    def _priced(self) -> float:
        return self.own.price.share - self.other.price.share

    @property
    def estimate(self) -> float:
        return self.own.estimate - self.other.estimate

    @property
    def n(self) -> int:
        return self.own.n

    @property
    def groups(self) -> int:
        return self.own.groups

    def _drop(self, confidence: float) -> Drop:
        """How much worse the nominee is, without prices. Raises InsufficientGroups."""
        found = drop_between(self.other.evaluation, self.own.evaluation, confidence)
        if found.upper is None:
            sizes = np.array(list(Counter(row.group for row in self.own.evaluation.rows).values()), dtype=np.float64)
            few = found.groups < MINIMUM_GROUPS
            raise InsufficientGroups(found.groups, MINIMUM_GROUPS, None if few else worth(sizes))
        return found

    def bound(self, confidence: float, side: Side = "lower") -> float:
        drop = self._drop(confidence)
        assert drop.lower is not None
        assert drop.upper is not None
        apart = Price(self._priced, self._price_bounds)
        ends = (-drop.upper, -drop.lower)
        low, high = independent_difference(-drop.value, apart.share, ends, apart.bounds(confidence))
        return low if side == "lower" else high

    def _price_bounds(self, confidence: float) -> tuple[float, float]:
        own, other = (one.price.bounds(confidence) for one in (self.own, self.other))
        return independent_difference(self.own.price.share, self.other.price.share, own, other)

    def needed(self, bar: float, confidence: float) -> int | None:
        try:
            drop = self._drop(confidence)
        except InsufficientGroups:
            return None
        return drop.needed(-bar - self._priced, POWER)


@dataclass(frozen=True)
class Level:
    """A nominee where the bar is what it is compared with, on the same rows: its lower bound is that of the difference,
    above the other's estimate, as if that were known. So it can be read beside the bar in the metric's own numbers."""

    against: Against

    @property
    def estimate(self) -> float:
        return self.against.own.estimate

    @property
    def n(self) -> int:
        return self.against.n

    @property
    def design_effect(self) -> float:
        return 1.0

    @property
    def row_variance(self) -> float:
        """Of a difference of the two, groups and weights in it: that of their mean times the rows. At least that of one
        row in all that changed, as two that answer alike on these rows may differ on others."""
        return self._variance

    @cached_property
    def _variance(self) -> float:
        drop = drop_between(self.against.other.evaluation, self.against.own.evaluation, 0.95)
        return max(drop.se**2 * drop.n, 1 / drop.n) if math.isfinite(drop.se) else 1.0

    def bound(self, confidence: float, side: Side = "lower") -> float:
        return self.against.other.estimate + self.against.bound(confidence, side)
