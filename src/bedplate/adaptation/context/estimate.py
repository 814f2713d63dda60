"""What a verdict asks of an evaluation, whatever stands behind its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from bedplate.core.statistics.proportions import Side


class Estimated(Protocol):
    """An estimate, and what its variance follows from."""

    @property
    def estimate(self) -> float: ...
    @property
    def n(self) -> int: ...
    @property
    def design_effect(self) -> float: ...
    @property
    def row_variance(self) -> float | None: ...


class BoundedEstimate(Estimated, Protocol):
    """An estimate with one-sided bounds. These raise InsufficientGroups where the rows allow none."""

    def bound(self, confidence: float, side: Side = "lower") -> float: ...


@dataclass(frozen=True)
class Resting:
    """What is judged by an evaluation's rows, with a number or bounds of its own."""

    evaluation: BoundedEstimate

    @property
    def n(self) -> int:
        return self.evaluation.n

    @property
    def design_effect(self) -> float:
        return self.evaluation.design_effect

    @property
    def row_variance(self) -> float | None:
        return self.evaluation.row_variance
