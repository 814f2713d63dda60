"""The dense layers and normalisation that a sentence encoder applies to pooled states.

Shapes: N texts, D features of all poolings, E of the vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedplate.models.layers.linear import Linear
from bedplate.models.precision import Device
from bedplate.models.specs.sentence import DenseActivation, SentenceSpec

_ACTIVATIONS: Mapping[DenseActivation, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "identity": lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
}


class SentenceLayers(nn.Module):
    """The spec's layers, in float32: they are small, and their output is compared between texts."""

    def __init__(self, spec: SentenceSpec, device: Device = None) -> None:
        super().__init__()
        self.spec = spec
        self.dense = nn.ModuleList(
            Linear(dense.inputs, dense.outputs, dense.bias, device, torch.float32) for dense in spec.denses
        )

    def forward(self, pooled_ND: Tensor) -> Tensor:
        """[N, D] → [N, E]."""
        vectors, products = pooled_ND.float(), iter(self.dense)
        for step in self.spec.steps:
            if step == "normalise":
                vectors = F.normalize(vectors, dim=-1)
            else:
                vectors = _ACTIVATIONS[step.activation](next(products)(vectors))
        return vectors
