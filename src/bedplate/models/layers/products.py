"""A linear's product, by torch's usual call or by oneDNN's.

In float32 torch gives CPU products to the library that it was built with (MKL), which on some processors is slower
than oneDNN, reached through the operator that torch's own compiler uses. Which is the faster is for measurement to say.

Shapes: N tokens, I in_features, O out_features.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Products = Literal["torch", "onednn"]


def has_onednn() -> bool:
    """Whether this build of torch has oneDNN's operator, and it is not switched off."""
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


def forward_product(x: Tensor, weight_OI: Tensor, products: Products) -> Tensor:
    """x Wᵀ: [..., I] → [..., O]."""
    if products == "onednn" and x.dtype == torch.float32 and x.is_cpu:
        return _onednn(x, weight_OI)
    return F.linear(x, weight_OI)


def backward_product(grad: Tensor, weight_OI: Tensor, products: Products) -> Tensor:
    """g W: [..., O] → [..., I]."""
    if products == "onednn" and grad.dtype == torch.float32 and grad.is_cpu:
        return _onednn(grad, weight_OI.t())
    return grad @ weight_OI


def _onednn(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


class Product(torch.autograd.Function):
    """x Wᵀ with gradients to x and, where it is trained, to W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor, products: Products) -> Tensor:  # type: ignore[override]
        # Saved, so that autograd refuses a weight that has changed since.
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight_OI)
        ctx.products = products
        return forward_product(x, weight_OI, products)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        x, weight_OI = ctx.saved_tensors
        to_x = backward_product(grad, weight_OI, ctx.products) if ctx.needs_input_grad[0] else None
        # oneDNN's operator would copy both to turn them.
        to_weight = None if x is None else grad.flatten(0, -2).t() @ x.flatten(0, -2)
        return to_x, to_weight, None
