"""The objective interface: terms with their own denominators, so that accumulation, packing and ranks stay exact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import Tensor

from bedplate.models.model import Model
from bedplate.training.batch import Batch

Models = Mapping[str, Model]
"""Role → model."""

Scope = Literal["row", "group", "global_batch"]


@dataclass(frozen=True)
class Term:
    """One term over one micro-batch. total: the sum (not the mean) with its graph, float32 or wider; weight: what it
    is to be divided by, summed over all micro-batches and ranks of the step; metrics: sums under the same weight."""

    total: Tensor
    weight: float
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])


class Objective(Protocol):
    """What a run minimises: Σ over terms of (Σ totals) / (Σ weights)."""

    @property
    def name(self) -> str: ...

    @property
    def roles(self) -> tuple[str, ...]:
        """The models it needs: policy, reference, reward, teacher."""
        ...

    @property
    def scope(self) -> Scope:
        """What one term may depend on; contrastive and router terms say global_batch."""
        ...

    def weights(self, batch: Batch) -> dict[str, float]:
        """Each term's weight, known before the forward pass."""
        ...

    def __call__(self, models: Models, batch: Batch) -> dict[str, Term]:
        """The terms of one micro-batch."""
        ...
