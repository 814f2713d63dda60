"""Root-mean-square norm, rotation and gate with backward passes of their own, for when gradients are recorded.

Recorded by autograd, norm and rotation are some ten small operations on a CPU that write their results to memory, once
more on the way back. Written out they are half as many, and keep only what they were given; so does the gate, which
would keep its activation as well. And they go over their rows in pieces, so that what one operation writes the next one
finds in the processor's cache.

Shapes: N rows of all dimensions but the last, n of a piece, D features; of heads, N tokens, H heads, D features of one
and h half of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PIECE = 1 << 19
"""Values of one tensor that are computed with at a time: 2 MB in float32, of which a few fit the last cache. Smaller
ones, which would fit a core's own, take longer (LOG.md): each is some calls more, which one thread makes for all."""


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / √(mean x² + eps) · weight, computed in float32 or wider; gradients to x and to the weight."""
    normed: Any = _RMSNorm.apply(x, weight_D, eps)
    return normed


def added_rms_norm(x: Tensor, y: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x + y, and `rms_norm` of it: one operation, of which the sum is kept."""
    outputs: Any = _AddedRMSNorm.apply(x, y, weight_D, eps)
    return outputs


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x cos + (−x₂, x₁) sin, where x₁ and x₂ are the halves of the last dimension, and those of cos and sin equal."""
    rotated: Any = _Rotated.apply(x, cos, sin)
    return rotated


def gated(gate: Tensor, up: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """activation(gate) ⊙ up, of which the two are kept and not the activation."""
    if not torch.is_grad_enabled() or not (gate.requires_grad or up.requires_grad):
        return activation(gate) * up
    product: Any = _Gated.apply(gate, up, activation)
    return product


def row_pieces(x: Tensor) -> Iterator[slice]:
    """Rows of the first dimension, so many at a time that they hold about `PIECE` values; all of them on other
    devices than CPUs, and for a compiler, which has ways of its own."""
    count = rows = len(x)
    if x.is_cpu and not torch.compiler.is_compiling():
        rows = PIECE * count // max(1, x.numel())
    rows = max(1, rows)
    for start in range(0, count, rows):
        yield slice(start, start + rows)


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _norm_piece(x_ND: Tensor, weight_D: Tensor, eps: float, out_ND: Tensor, scale_N1: Tensor) -> None:
    """Norms rows into `out`, and writes what they were multiplied by."""
    dtype = scale_N1.dtype
    length = torch.linalg.vector_norm(x_ND, dim=-1, keepdim=True, dtype=dtype)
    scale_N1.copy_(length.square_().div_(x_ND.shape[-1]).add_(eps).rsqrt_())
    if x_ND.dtype == dtype:
        torch.mul(x_ND, scale_N1, out=out_ND)
    else:
        out_ND.copy_(x_ND.to(dtype).mul_(scale_N1))
    out_ND.mul_(weight_D)


def _normed(x: Tensor, y: Tensor | None, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """x, or x + y; its norm; and what its rows were multiplied by, [N, 1]."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    x_ND, y_ND = _flat(x), None if y is None else _flat(y)
    out_ND, scale_N1 = x_ND.new_empty(x_ND.shape), x_ND.new_empty(len(x_ND), 1, dtype=dtype)
    total_ND = x_ND if y is None else x_ND.new_empty(x_ND.shape)
    for at in row_pieces(x_ND):
        if y_ND is not None:
            torch.add(x_ND[at], y_ND[at], out=total_ND[at])
        _norm_piece(total_ND[at], weight_D, eps, out_ND[at], scale_N1[at])
    return total_ND.reshape(x.shape), out_ND.view(x.shape), scale_N1


def _norm_gradients(
    x: Tensor, weight_D: Tensor, scale_N1: Tensor, grad: Tensor, to_sum: Tensor | None, weighted: bool
) -> tuple[Tensor, Tensor | None]:
    """To x, with what reaches it beside its norm (`to_sum`), and to the weight."""
    dtype, D = scale_N1.dtype, x.shape[-1]
    x_ND, grad_ND = _flat(x), _flat(grad)
    beside_ND = None if to_sum is None else _flat(to_sum)
    to_x, weight = x_ND.new_empty(x_ND.shape), weight_D.to(dtype)
    to_weight = torch.zeros_like(weight) if weighted else None
    for at in row_pieces(x_ND):
        x_nD, g_nD, scale = x_ND[at].to(dtype), grad_ND[at].to(dtype), scale_N1[at]
        along_nD = x_nD * g_nD
        if to_weight is not None:
            to_weight.addmv_(along_nD.t(), scale[:, 0])
        correction = torch.mv(along_nD, weight)[:, None] * scale.pow(3) / -D
        into = to_x[at] if to_x.dtype == dtype else along_nD
        torch.mul(g_nD, weight, out=into).mul_(scale).addcmul_(x_nD, correction)
        if beside_ND is not None:
            into.add_(beside_ND[at])
        if into is along_nD:
            to_x[at] = into
    return to_x.view(x.shape), None if to_weight is None else to_weight.to(weight_D.dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:  # type: ignore[override]
        _, out, scale_N1 = _normed(x, None, weight_D, eps)
        ctx.save_for_backward(x, weight_D, scale_N1)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:  # type: ignore[override]
        x, weight_D, scale_N1 = ctx.saved_tensors
        return *_norm_gradients(x, weight_D, scale_N1, grad, None, ctx.needs_input_grad[1]), None


class _AddedRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        total, out, scale_N1 = _normed(x, y, weight_D, eps)
        ctx.save_for_backward(total, weight_D, scale_N1)
        return total, out

    @staticmethod
    def backward(ctx: Any, to_total: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        total, weight_D, scale_N1 = ctx.saved_tensors
        to_x, to_weight = _norm_gradients(total, weight_D, scale_N1, grad, to_total, ctx.needs_input_grad[2])
        return to_x, to_x, to_weight, None


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
    h, tokens = x.shape[-1] // 2, x.shape[:-2]
    x_NHD = x.reshape(-1, *x.shape[-2:])
    cos_N1D, sin_N1h = (t.expand(*tokens, 1, t.shape[-1]).reshape(-1, 1, t.shape[-1]) for t in (cos, sin[..., :h]))
    out_NHD = x_NHD.new_empty(x_NHD.shape)
    for at in row_pieces(x_NHD):
        rows, out, sin_n1h = x_NHD[at], out_NHD[at], sin_N1h[at]
        torch.mul(rows, cos_N1D[at], out=out)
        out[..., :h].addcmul_(rows[..., h:], sin_n1h, value=sign)
        out[..., h:].addcmul_(rows[..., :h], sin_n1h, value=-sign)
    return out_NHD.view(x.shape)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        gate_ND, up_ND = _flat(gate), _flat(up)
        out_ND = gate_ND.new_empty(gate_ND.shape)
        for at in row_pieces(gate_ND):
            torch.mul(activation(gate_ND[at]), up_ND[at], out=out_ND[at])
        return out_ND.view(gate.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        gate_ND, up_ND, grad_ND = (_flat(tensor) for tensor in (*ctx.saved_tensors, grad))
        to_gate, to_up = (gate_ND.new_empty(gate_ND.shape) if needed else None for needed in ctx.needs_input_grad[:2])
        for at in row_pieces(gate_ND):
            if to_up is not None:
                torch.mul(grad_ND[at], ctx.activation(gate_ND[at]), out=to_up[at])
            if to_gate is not None:
                _through(ctx.activation, grad_ND[at] * up_ND[at], gate_ND[at], to_gate[at])
        return *(None if gradient is None else gradient.view(grad.shape) for gradient in (to_gate, to_up)), None


def _through(activation: Callable[[Tensor], Tensor], grad: Tensor, x: Tensor, into: Tensor) -> None:
    """Writes the gradient to what an activation was given: by torch's kernel, or, which takes longer, by autograd."""
    if activation is F.silu:
        torch.ops.aten.silu_backward.grad_input(grad, x, grad_input=into)
        return
    gelu = activation if isinstance(activation, partial) else partial(activation)
    if gelu.func is F.gelu and not gelu.args:
        approximate = gelu.keywords.get("approximate", "none")
        torch.ops.aten.gelu_backward.grad_input(grad, x, approximate=approximate, grad_input=into)
        return
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        active = activation(leaf)
    into.copy_(torch.autograd.grad(active, leaf, grad)[0])
