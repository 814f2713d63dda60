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

from bedplate.adaptation.context.outcome import Resting
from bedplate.core.statistics import MINIMUM_GROUPS, InsufficientGroups, independent_difference, needed_n, worth
from bedplate.core.statistics.noninferiority import Drop
from bedplate.core.statistics.proportions import Side
from bedplate.evaluation.evaluated import Evaluation, drop_between
from bedplate.evaluation.grading import GradedRow
from bedplate.evaluation.slices import calibration_error, calibration_of, sure

POWER = 0.8


class MetricEstimate(Protocol):
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
class CallPrice:
    """The price of a call, as a share of what one costs at worst. bounds: lower and upper, one-sided, at a
    confidence."""

    share: float
    bounds: Callable[[float], tuple[float, float]]

    @classmethod
    def fixed(cls, share: float) -> CallPrice:
        """That is not measured but told."""
        return cls(share, lambda _: (share, share))


NOTHING = CallPrice.fixed(0.0)


@dataclass(frozen=True)
class Priced(Resting):
    """The metric of an evaluation, less the price of a call where scores stand for costs. Bounds of both together are
    those of a sum of independent estimates (MOVER, Zou & Donner 2008)."""

    evaluation: Evaluation
    price: CallPrice = NOTHING

    @property
    def estimate(self) -> float:
        return self.evaluation.estimate - self.price.share

    @property
    def groups(self) -> int:
        return self.evaluation.groups

    def bound(self, confidence: float, side: Side = "lower") -> float:
        quality_bound = self.evaluation.bound(confidence, side)
        return quality_bound if self.price is NOTHING else self._net_of_price(quality_bound, confidence, side)

    def _net_of_price(self, quality_bound: float, confidence: float, side: Side) -> float:
        estimate, price = self.evaluation.estimate, self.price
        ends = (min(quality_bound, estimate), estimate) if side == "lower" else (estimate, max(quality_bound, estimate))
        low, high = price.bounds(confidence)
        low, high = independent_difference(estimate, price.share, ends, (min(low, price.share), max(high, price.share)))
        return low if side == "lower" else high

    @property
    def interval(self) -> tuple[float, float]:
        """Two-sided, at the evaluation's confidence."""
        if self.price is NOTHING:
            return self.evaluation.interval
        one_sided = (1 + self.evaluation.confidence) / 2
        low, high = self.evaluation.interval
        return self._net_of_price(low, one_sided, "lower"), self._net_of_price(high, one_sided, "upper")

    def needed(self, bar: float, confidence: float) -> int | None:
        value, at = (min(max(score, 0.0), 1.0) for score in (self.estimate, bar))
        effect = max(self.design_effect, 1.0)
        return needed_n(value, at, confidence, POWER, effect, self.row_variance)


@dataclass(frozen=True)
class Calibrated:
    """One minus the calibration error of the rows whose answers carry probabilities, at least one of them."""

    rows: Sequence[GradedRow]

    @cached_property
    def _scored_rows(self) -> list[GradedRow]:
        return sure(self.rows)

    @property
    def n(self) -> int:
        return len(self._scored_rows)

    @property
    def groups(self) -> int:
        return len({row.group for row in self._scored_rows})

    @property
    def estimate(self) -> float:
        return 1 - calibration_error(self._scored_rows)

    def bound(self, confidence: float, side: Side = "lower") -> float:
        calibration = calibration_of(self._scored_rows, confidence)
        return 1 - (calibration.upper if side == "lower" else calibration.lower)

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
class ReferenceComparison:
    """A nominee minus what it is compared with, on the same rows, the price of a call in both."""

    nominee: Priced
    reference: Priced

    @property
    def _priced(self) -> float:
        return self.nominee.price.share - self.reference.price.share

    @property
    def estimate(self) -> float:
        return self.nominee.estimate - self.reference.estimate

    @property
    def n(self) -> int:
        return self.nominee.n

    @property
    def groups(self) -> int:
        return self.nominee.groups

    def _drop(self, confidence: float) -> Drop:
        """How much worse the nominee is, without prices. Raises InsufficientGroups."""
        drop = drop_between(self.reference.evaluation, self.nominee.evaluation, confidence)
        if drop.upper is None:
            sizes = np.array(
                list(Counter(row.group for row in self.nominee.evaluation.rows).values()), dtype=np.float64
            )
            lacks_groups = drop.groups < MINIMUM_GROUPS
            raise InsufficientGroups(drop.groups, MINIMUM_GROUPS, None if lacks_groups else worth(sizes))
        return drop

    def bound(self, confidence: float, side: Side = "lower") -> float:
        drop = self._drop(confidence)
        assert drop.lower is not None
        assert drop.upper is not None
        price_gap = CallPrice(self._priced, self._price_bounds)
        ends = (-drop.upper, -drop.lower)
        low, high = independent_difference(-drop.value, price_gap.share, ends, price_gap.bounds(confidence))
        return low if side == "lower" else high

    def _price_bounds(self, confidence: float) -> tuple[float, float]:
        nominee_bounds, reference_bounds = (
            priced.price.bounds(confidence) for priced in (self.nominee, self.reference)
        )
        return independent_difference(
            self.nominee.price.share, self.reference.price.share, nominee_bounds, reference_bounds
        )

    def needed(self, bar: float, confidence: float) -> int | None:
        try:
            drop = self._drop(confidence)
        except InsufficientGroups:
            return None
        return drop.needed(-bar - self._priced, POWER)


@dataclass(frozen=True)
class ReferenceLevel:
    """A nominee where the bar is what it is compared with, on the same rows: its lower bound is that of the difference,
    above the other's estimate, as if that were known. So it can be read beside the bar in the metric's own numbers."""

    against: ReferenceComparison

    @property
    def estimate(self) -> float:
        return self.against.nominee.estimate

    @property
    def n(self) -> int:
        return self.against.n

    @property
    def design_effect(self) -> float:
        return 1.0

    @property
    def row_variance(self) -> float:
        """The variance of a row's difference, groups and weights in it: that of their mean times the rows. At least one
        row in all that changed, as two that answer alike on these rows may differ on others."""
        return self._variance

    @cached_property
    def _variance(self) -> float:
        drop = drop_between(self.against.reference.evaluation, self.against.nominee.evaluation, 0.95)
        return max(drop.se**2 * drop.n, 1 / drop.n) if math.isfinite(drop.se) else 1.0

    def bound(self, confidence: float, side: Side = "lower") -> float:
        return self.against.reference.estimate + self.against.bound(confidence, side)
