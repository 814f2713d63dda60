"""A linear layer with a hook for a low-rank update, so that adapters attach without subclassing a model.

For training in float32 on CPUs its product can use oneDNN instead of the library that torch was built with (MKL), which
is slower on some processors; it is called through the operator that torch's own compiler uses. A measurement selects
the library (`training.precision`).

Shapes: I in_features, O out_features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedplate.models.precision import Device

Products = Literal["torch", "onednn"]


def has_onednn() -> bool:
    """Whether this build of torch has oneDNN's operator, and it is enabled."""
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


class LowRankHook(Protocol):
    """A low-rank update of a linear's output."""

    def __call__(self, x: Tensor) -> Tensor:
        """The whole output [..., out_features] of an input [..., in_features]."""
        ...

    def add_together(self, parts: Sequence[tuple[LowRankHook, Tensor]], x: Tensor) -> None:
        """Updates several linears that read the same input, including this one: adds to the y [..., out_features] of
        each, which already contains its output without the hook. No gradients."""
        ...

    def weights(self) -> Sequence[tuple[Tensor | None, Tensor]]:
        """The merged weight of each group of rows of the next input, with the rows' indices, or None for all rows."""
        ...


class Linear(nn.Module):
    """`y = x Wᵀ + b`, or the output of `low_rank`.

    `low_rank` is None, or a function from the layer's input [..., in_features] to its whole output [..., out_features],
    which calls `plain` (LoRA: https://arxiv.org/abs/2106.09685). products: the library that computes products while
    gradients are recorded. Neither is part of the module's state.
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
        device: Device = None,
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
        """The output without `low_rank`."""
        recorded = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        if self.products == "torch" or not recorded or x.dtype != torch.float32 or not x.is_cpu:
            return F.linear(x, self.weight, self.bias)
        y: Tensor = _Product.apply(x, self.weight)  # type: ignore[assignment]
        return y if self.bias is None else y + self.bias


class _Product(torch.autograd.Function):
    """x Wᵀ by oneDNN, [..., I] → [..., O], with gradients to x and, where it is trained, to W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor) -> Tensor:  # type: ignore[override]
        # Saved, so that autograd refuses a weight that has changed since.
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight_OI)
        return _onednn(x, weight_OI)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        x, weight_OI = ctx.saved_tensors
        to_x = _onednn(grad, weight_OI.t()) if ctx.needs_input_grad[0] else None
        # oneDNN's operator would copy both to transpose them.
        to_weight = None if x is None else grad.flatten(0, -2).t() @ x.flatten(0, -2)
        return to_x, to_weight


def _onednn(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
