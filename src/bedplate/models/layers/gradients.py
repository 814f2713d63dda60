"""Root-mean-square norm and gate that save only their inputs for the backward pass.

Recorded by autograd, a norm in half precision saves three more copies of its input, and a gate its activation. Here
both are computed again on the way back, which takes no longer.

Shapes: D features of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / √(mean x² + eps) · weight, computed in float32 or wider; gradients to x and to the weight."""
    normed: Any = _RMSNorm.apply(x, weight_D, eps)
    return normed


def gated(gate: Tensor, up: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """activation(gate) ⊙ up."""
    if not torch.is_grad_enabled() or not (gate.requires_grad or up.requires_grad):
        return activation(gate) * up
    product: Any = _Gated.apply(gate, up, activation)
    return product


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:  # type: ignore[override]
        wide = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        scale = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight_D, scale)
        return (x * scale).to(x.dtype).mul_(weight_D)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:  # type: ignore[override]
        x, weight_D, scale = ctx.saved_tensors
        wide, D = scale.dtype, x.shape[-1]
        grad, weight = grad.to(wide), weight_D.to(wide)
        product = x * grad  # in `wide`, as what it makes
        to_weight: Tensor | None = None
        if ctx.needs_input_grad[1]:
            to_weight = (product.reshape(-1, D).t() @ scale.reshape(-1)).to(weight_D.dtype)
        along = (product @ weight)[..., None] * scale.pow(3) / -D
        to_x = (grad * weight).mul_(scale).addcmul_(x.to(wide), along)
        return to_x.to(x.dtype), to_weight, None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return activation(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        gate, up = ctx.saved_tensors
        with torch.enable_grad():
            leaf = gate.detach().requires_grad_()
            active = ctx.activation(leaf)
        to_gate = torch.autograd.grad(active, leaf, grad * up)[0] if ctx.needs_input_grad[0] else None
        return to_gate, grad * active.detach() if ctx.needs_input_grad[1] else None, None
