"""A frozen linear and the adapter that is trained on it, as one operation with its own backward pass.

y = x Wᵀ + b + c (x Aᵀ) Bᵀ. Written out of torch's own operations the update is made, kept and added by itself, on both
ways; here it is added to the product in place. The mathematics and its roundings are LoRA's plain formula
(https://arxiv.org/abs/2106.09685), but for one rounding of the update less.
"""

# Shape suffixes: T tokens, I in_features, O out_features (r: the rank).

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bedplate.models.layers.linear import Linear
from bedplate.models.layers.products import Products, backward_product, forward_product


def adapted(x: Tensor, module: Linear, a_rI: Tensor, b_Or: Tensor, scaling: float) -> Tensor:
    """x [..., I] → [..., O] in x's dtype, with gradients to x, A and B, the latter in their own dtypes."""
    output: Any = _Adapted.apply(x, module.weight, module.bias, a_rI, b_Or, scaling, module.products)
    return output


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        a_rI: Tensor,
        b_Or: Tensor,
        scaling: float,
        products: Products,
    ) -> Tensor:
        a, b = a_rI.to(x.dtype), b_Or.to(x.dtype)
        x_TI = x.reshape(-1, x.shape[-1])
        y_TO = forward_product(x_TI, weight_OI, products)
        if bias_O is not None:
            y_TO += bias_O
        h_Tr = F.linear(x_TI, a).mul_(scaling)
        y_TO.addmm_(h_Tr, b.t())
        ctx.save_for_backward(x_TI, h_Tr, a, b)
        ctx.weight, ctx.scaling, ctx.products, ctx.dtypes = weight_OI, scaling, products, (a_rI.dtype, b_Or.dtype)
        return y_TO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x_TI, h_Tr, a, b = ctx.saved_tensors
        g_TO = grad.reshape(-1, grad.shape[-1])
        gh_Tr = (g_TO @ b).mul_(ctx.scaling)
        # h first: a product with few rows and many columns runs faster than its transpose
        gb = (h_Tr.t() @ g_TO).t().contiguous().to(ctx.dtypes[1])
        ga = (gh_Tr.t() @ x_TI).to(ctx.dtypes[0])
        gx: Tensor | None = None
        if ctx.needs_input_grad[0]:
            gx_TI = backward_product(g_TO, ctx.weight, ctx.products)
            gx = gx_TI.addmm_(gh_Tr, a).view(*grad.shape[:-1], -1)
        return gx, None, None, ga, gb, None, None
