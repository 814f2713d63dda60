"""Root-mean-square norm, rotation and gate with backward passes of their own, for when gradients are recorded.

Recorded by autograd, norm and rotation are some ten small operations on a CPU that write their results to memory, once
more on the way back. Written out they are half as many, and keep only what they were given; so does the gate, which
would keep its activation as well.

Shapes: D features, h half of those of one head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / √(mean x² + eps) · weight, computed in float32 or wider; gradients to x and to the weight."""
    found: Any = _RMSNorm.apply(x, weight_D, eps)
    return found


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x cos + (−x₂, x₁) sin, where x₁ and x₂ are the halves of the last dimension, and those of cos and sin equal."""
    found: Any = _Rotated.apply(x, cos, sin)
    return found


def gated(gate: Tensor, up: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """activation(gate) ⊙ up, of which the two are kept and not the activation."""
    if not torch.is_grad_enabled() or not (gate.requires_grad or up.requires_grad):
        return activation(gate) * up
    found: Any = _Gated.apply(gate, up, activation)
    return found


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:  # type: ignore[override]
        wide = torch.promote_types(x.dtype, torch.float32)
        size = x.shape[-1]
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        scale = length.square_().div_(size).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight_D, scale)
        if x.dtype == wide:
            return (x * scale).mul_(weight_D)
        return (x * scale).to(x.dtype).mul_(weight_D)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:  # type: ignore[override]
        x, weight_D, scale = ctx.saved_tensors
        wide = scale.dtype
        x_wide = x.to(wide)
        to_weight: Tensor | None = None
        if ctx.needs_input_grad[1]:
            each = (x_wide * scale).mul_(grad)
            to_weight = each.reshape(-1, each.shape[-1]).sum(0).to(weight_D.dtype)
        g = grad * weight_D.to(wide)
        along = torch.linalg.vecdot(g, x_wide)[..., None] * scale.pow(3) / -x.shape[-1]
        return g.mul_(scale).addcmul_(x_wide, along).to(x.dtype), to_weight, None


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, -1.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, sin, 1.0), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    h = x.shape[-1] // 2
    sin_h = sin[..., :h]
    out = x * cos
    out[..., :h].addcmul_(x[..., h:], sin_h, value=sign)
    out[..., h:].addcmul_(x[..., :h], sin_h, value=-sign)
    return out


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return activation(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        gate, up = ctx.saved_tensors
        with torch.enable_grad():
            given = gate.detach().requires_grad_()
            active = ctx.activation(given)
        to_gate = torch.autograd.grad(active, given, grad * up)[0] if ctx.needs_input_grad[0] else None
        return to_gate, grad * active.detach() if ctx.needs_input_grad[1] else None, None
