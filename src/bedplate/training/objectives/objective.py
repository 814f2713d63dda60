"""The objective interface: terms with their own denominators, so that accumulation, packing and ranks stay exact."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from torch import Tensor, nn

from bedplate.models.inputs import Inputs, Outputs
from bedplate.models.layers.attention import Attend
from bedplate.training.batch import MicroBatch

Scope = Literal["row", "group", "global_batch"]
B_contra = TypeVar("B_contra", bound=MicroBatch, contravariant=True)


class AnyModel(Protocol):
    """What is trained, and what a loss is asked of: hidden states, and a head apart from them (a `torch.nn.Module`)."""

    def __call__(self, inputs: Inputs, cache: Attend | None = None) -> Outputs: ...
    def head(self, hidden_ND: Tensor) -> Tensor: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def modules(self) -> Iterator[nn.Module]: ...
    def train(self, mode: bool = True) -> Any: ...


Models = Mapping[str, AnyModel]
"""Role → model: policy, reference, reward, teacher."""


@dataclass(frozen=True)
class Term:
    """One term over one micro-batch.

    total: the sum (not the mean) with its graph, float32 or wider; weight: what it is to be divided by, summed over all
    micro-batches and ranks of the step. metrics: scalars, sums under the same weight and divided like it, so that what
    is written is the mean over the whole step however it was cut; they stay on the device until a line is written.
    """

    total: Tensor
    weight: float
    metrics: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


class Objective(Protocol[B_contra]):
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

    def weights(self, batch: B_contra) -> dict[str, float]:
        """Each term's weight, known before the forward pass, from the batch as its source gave it (on the CPU)."""
        ...

    def __call__(self, models: Models, batch: B_contra) -> dict[str, Term]:
        """The terms of one micro-batch, which is on the models' device: read nothing of it back."""
        ...
