"""An exponential moving average of the weights, over the steps that were applied.

It begins as the weights that the run began with. Polyak averaging as in https://arxiv.org/abs/1806.04498, section 3.2.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bedplate.core.errors import TrainingError
from bedplate.training.ranks import Ranks

AVERAGE = "average/"
"""What the names of averages begin with in a state."""


class Average:
    """Of tensors by name, in their own dtype."""

    def __init__(self, decay: float, tensors: Mapping[str, Tensor]) -> None:
        self._decay = decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    @torch.no_grad()
    def step(self, tensors: Mapping[str, Tensor], void: Tensor) -> None:
        """After a step; none where `void`, a scalar that is not read, is 1."""
        for name, average in self.tensors.items():
            average.lerp_(tensors[name].detach(), ((1 - self._decay) * (1 - void)).to(average.dtype))


@contextmanager
def averaged(
    tensors: Mapping[str, Tensor], trainable: Iterable[tuple[str, nn.Parameter]], ranks: Ranks
) -> Generator[None]:
    """The parameters hold their averages, of a state's `tensors`, while it is open, and afterwards what they held.

    TrainingError where the state has none of one.
    """
    parameters = dict(trainable)
    missing = next((name for name in parameters if f"{AVERAGE}{name}" not in tensors), None)
    if missing is not None:
        raise TrainingError(f"this state holds no average of {missing!r}: train with ema, which keeps one")
    originals = {name: ranks.local_part(parameter).clone() for name, parameter in parameters.items()}
    with torch.no_grad():
        try:
            for name, parameter in parameters.items():
                ranks.local_part(parameter).copy_(ranks.local_slice(parameter, tensors[f"{AVERAGE}{name}"]))
            yield
        finally:
            for name, parameter in parameters.items():
                ranks.local_part(parameter).copy_(originals[name])
