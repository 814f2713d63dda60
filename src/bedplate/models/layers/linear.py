"""A linear layer with a hook for a low-rank update, so that adapters attach without subclassing a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedplate.models.layers.products import Product, Products


class LowRankHook(Protocol):
    """What changes a linear's output."""

    def __call__(self, x: Tensor) -> Tensor:
        """The whole output [..., out_features] of an input [..., in_features]."""
        ...

    def add_together(self, parts: Sequence[tuple[LowRankHook, Tensor]], x: Tensor) -> None:
        """The same for linears that read the same input, this one's among them: into each one's y [..., out_features],
        which already holds its output without the hook. No gradients."""
        ...

    def weights(self) -> Sequence[tuple[Tensor | None, Tensor]]:
        """The whole weight of each group of rows of the next input: their numbers, or None for all."""
        ...


class Linear(nn.Module):
    """`y = x Wᵀ + b`, or what `low_rank` makes of it.

    `low_rank` is None, or makes of the layer's input [..., in_features] the whole output [..., out_features], for which
    it asks `plain` (LoRA: https://arxiv.org/abs/2106.09685). products: the library that multiplies while gradients are
    recorded. Neither is part of the module's state.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    low_rank: LowRankHook | None
    products: Products

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.low_rank = None
        self.products = "torch"
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal(0, 1/√in): keeps the variance of a unit-variance input."""
        if self.weight.is_meta:
            return
        nn.init.normal_(self.weight, std=1.0 / math.sqrt(self.in_features))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.plain(x) if self.low_rank is None else self.low_rank(x)

    def plain(self, x: Tensor) -> Tensor:
        """The layer without `low_rank`."""
        recorded = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        if self.products == "torch" or not recorded:
            return F.linear(x, self.weight, self.bias)
        y: Tensor = Product.apply(x, self.weight, self.products)  # type: ignore[assignment]
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, bias={self.bias is not None}"
