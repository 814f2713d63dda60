"""What a kind of adapter on linears is: how it is configured, and what it does at one linear. A bank knows no more."""

# Shape suffixes: I in_features, O out_features.

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bedplate.models.layers.experts import ExpertLinear
from bedplate.models.layers.linear import Linear

Adaptable = Linear | ExpertLinear
"""What adapters attach to; experts take LoRA alone."""


class LinearAdapter(ABC):
    """One adapter at one linear."""

    dropout: float = 0.0
    """Dropout of its input, while training."""

    @abstractmethod
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """What is trained, by the end of its name, in order."""

    @abstractmethod
    def update(self, x: Tensor, y: Tensor | None, module: Linear) -> Tensor:
        """What to add to the linear's output: x [..., I] and, where the kind `reads_output`, y [..., O] → [..., O], in
        x's dtype."""

    @abstractmethod
    def merged(self, weight_OI: Tensor) -> Tensor:
        """The linear's weight with the adapter in it, both float32."""

    @property
    def reads_output(self) -> bool:
        """Whether `update` needs the linear's own output."""
        return True

    def output(self, x: Tensor, module: Linear) -> Tensor:
        """The whole output, where every row has this adapter."""
        y = module.plain(x)
        return y + self.update(x, y, module)


class AdapterConfig(Protocol):
    """One adapter's shape. Tensors are named by their ends, to which a bank adds the module's path before them."""

    def paths(self, modules: Iterable[str], hf_name: Callable[[str], str] | None) -> list[str]:
        """The module paths that it adapts, in the order of `modules`. SkinError or UsageError for one that is none."""
        ...

    def shapes(self, path: str, module: Any) -> dict[str, tuple[int, ...]]:
        """Its tensors at one linear."""
        ...

    def initial(self, path: str, module: Any, generator: torch.Generator) -> dict[str, Tensor]:
        """A fresh adapter at one linear, float32 on the CPU, with which the model is as without."""
        ...

    def attach(self, path: str, module: Linear, tensors: Mapping[str, Tensor], trainable: bool) -> LinearAdapter:
        """The adapter at one linear, with copies of the tensors: float32 parameters, or frozen and in the linear's
        dtype."""
        ...


def stored(value: Tensor, module: Adaptable, trainable: bool, by_columns: bool = False) -> nn.Parameter:
    """A copy as a bank keeps it; `by_columns` makes its transpose contiguous."""
    dtype = module.weight.dtype if module.weight.is_floating_point() and not trainable else torch.float32
    value = value.t() if by_columns else value
    copied = torch.empty(value.shape, device=module.weight.device, dtype=dtype).copy_(value)
    return nn.Parameter(copied.t() if by_columns else copied, requires_grad=trainable)
