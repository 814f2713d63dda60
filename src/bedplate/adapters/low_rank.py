"""A low-rank update at one linear, plain (LoRA) or with magnitudes (DoRA)."""

# Shape suffixes: I in_features, O out_features, r rank.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from bedplate.adapters.dora import MAGNITUDE, Magnitude, dora_update
from bedplate.adapters.linear_adapter import LinearAdapter
from bedplate.models.layers.linear import Linear


@dataclass(frozen=True, eq=False)
class LowRank(LinearAdapter):
    """The update is `scaling · B A dropout(x)`, and with magnitudes what DoRA makes of it. A: [r, I], B: [O, r]."""

    a: nn.Parameter
    b: nn.Parameter
    scaling: float
    dropout: float = 0.0
    magnitude: Magnitude | None = None

    def parameters(self) -> Mapping[str, nn.Parameter]:
        tensors = {"lora_A": self.a, "lora_B": self.b}
        return tensors if self.magnitude is None else tensors | {MAGNITUDE: self.magnitude.vector}

    @property
    def reads_output(self) -> bool:
        return self.magnitude is not None

    def update(self, x: Tensor, y: Tensor | None, module: Linear) -> Tensor:
        """Computed in x's dtype; gradients arrive in the parameters' own."""
        dropping = self._drops(module)
        if dropping:
            x = F.dropout(x, self.dropout, training=True)
        h = F.linear(x, self.a.to(x.dtype))
        update = F.linear(h * self.scaling, self.b.to(x.dtype))
        if self.magnitude is None:
            return update
        assert y is not None
        # as in peft, all of DoRA's update sees the input that was dropped out
        product = F.linear(x, module.weight) if dropping else without_bias(y, module)
        return dora_update(product, update, self.scale() - 1.0)

    def merged(self, weight_OI: Tensor) -> Tensor:
        changed = weight_OI + (self.b.float() @ self.a.float()) * self.scaling
        return changed if self.magnitude is None else changed * self.scale()[:, None]

    def scale(self) -> Tensor:
        """What a linear with magnitudes multiplies its outputs by: [O]."""
        assert self.magnitude is not None
        return self.magnitude.scale(self.a, self.b, self.scaling)

    def _drops(self, module: Linear) -> bool:
        return module.training and self.dropout > 0.0


def without_bias(y: Tensor, module: Linear) -> Tensor:
    """A linear's output → its product alone."""
    return y if module.bias is None else y - module.bias
