"""What steps leave on the device, read back together: one synchronisation for all the lines that are written then."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bedplate.core.errors import TrainingError

LOSS = "loss/"
"""What the names of the losses begin with; a metric's begins with its term's."""
Values = Mapping[str, Tensor]
"""Scalars of one micro-batch, divided by their term's weight in the whole step, so that the step's are their sums."""


@dataclass(frozen=True)
class UnreadStep:
    """One step. number: from 1. parts: ids and values of its micro-batches; norm: of its gradient, before clipping."""

    number: int
    learning_rate: float
    counts: Mapping[str, int]
    parts: Sequence[tuple[Sequence[str], Values]]
    norm: Tensor

    @property
    def scalars(self) -> list[Tensor]:
        """Everything that is to be read."""
        return [*(value for _, values in self.parts for value in values.values()), self.norm]

    def sound(self) -> Tensor:
        """Whether all of it is finite: a bool scalar that is not read."""
        return torch.stack(self.scalars).isfinite().all()


def read_steps(steps: Sequence[UnreadStep]) -> list[tuple[dict[str, float], float]]:
    """Reads all of them at once: of each the values, summed over its micro-batches, and the norm. Raises TrainingError,
    naming step and examples, for the first in which something is not finite."""
    numbers = iter(torch.stack([scalar for step in steps for scalar in step.scalars]).tolist())
    read: list[tuple[dict[str, float], float]] = []
    for step in steps:
        values: dict[str, float] = {}
        for ids, part in step.parts:
            found = {name: next(numbers) for name in part}
            if not all(map(math.isfinite, found.values())):
                raise _not_finite(step, f"the loss is {found}", ids)
            for name, value in found.items():
                values[name] = values.get(name, 0.0) + value
        norm = next(numbers)
        if not math.isfinite(norm):
            raise _not_finite(step, f"the gradient's norm is {norm}", [id for ids, _ in step.parts for id in ids])
        read.append((values, norm))
    return read


def _not_finite(step: UnreadStep, what: str, ids: Sequence[str]) -> TrainingError:
    shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
    return TrainingError(
        f"step {step.number}: {what}, on the examples {shown}. The state before this step is kept; "
        "lower the learning rate, or look at these examples"
    )
