"""Triton kernels of the steps between two matrix products, for CUDA devices; each is tested against its plain function.

Sums are float32, and each result is rounded once. float64 is left to the plain functions.
"""
# pyright: basic, reportMissingImports=false, reportIndexIssue=false, reportArgumentType=false

# Shapes: N rows, D features of a row or head, B rows of T tokens, H heads, R rotated features.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bedplate.models.layers.fused.custom_ops import Refused

GATES = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}
WIDEST = 32_768
"""Maximum features of a row: one program holds them all."""


def add_norm(x: Tensor, y: Tensor, weight: Tensor | None, eps: float, offset: float) -> tuple[Tensor, Tensor]:
    """x + y, and its root-mean-square norm."""
    _check(x, y)
    D = x.shape[-1]
    if D > WIDEST or (weight is not None and weight.dtype == torch.float64):
        raise Refused
    x_ND, y_ND = x.reshape(-1, D), y.reshape(-1, D)
    total_ND, normed_ND = torch.empty_like(x_ND), torch.empty_like(x_ND)
    _add_norm[(len(x_ND),)](
        *(x_ND, y_ND, x_ND if weight is None else weight, total_ND, normed_ND),
        *(x_ND.stride(0), y_ND.stride(0), eps, offset),
        D=D,
        BLOCK=triton.next_power_of_2(D),
        WEIGHTED=weight is not None,
    )
    return total_ND.view(x.shape), normed_ND.view(x.shape)


@triton.jit
def _add_norm(
    x, y, weight, total, normed, x_row, y_row, eps, offset, D: tl.constexpr, BLOCK: tl.constexpr, WEIGHTED: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < D
    a = tl.load(x + row * x_row + at, mask=inside, other=0.0)
    b = tl.load(y + row * y_row + at, mask=inside, other=0.0)
    # Rounded to the output's dtype first, so that the same sum is normalised as in the plain function.
    a = (a.to(tl.float32) + b.to(tl.float32)).to(total.dtype.element_ty)
    tl.store(total + row * D + at, a, mask=inside)
    summed = a.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(summed * summed, axis=0) / D + eps)
    summed = summed * scale
    if WEIGHTED:
        summed = summed * (tl.load(weight + at, mask=inside, other=0.0).to(tl.float32) + offset)
    tl.store(normed + row * D + at, summed.to(normed.dtype.element_ty), mask=inside)


def rotate(x_BTHD: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """x with its first features rotated by position (`positions.rotate`)."""
    _check(x_BTHD)
    B, T, H, D = x_BTHD.shape
    R = cos.shape[-1]
    if x_BTHD.stride(3) != 1 or cos.shape != (B, T, 1, R) or sin.shape != cos.shape:
        raise Refused
    out = torch.empty(x_BTHD.shape, dtype=x_BTHD.dtype, device=x_BTHD.device)
    _rotate[(B * T, H)](
        *(x_BTHD, cos.contiguous(), sin.contiguous(), out, T, *x_BTHD.stride()[:3]),
        D=D,
        R=R,
        BLOCK=triton.next_power_of_2(D),
        INTERLEAVED=interleaved,
    )
    return out


@triton.jit
def _rotate(
    x, cos, sin, out, T, x_b, x_t, x_h, D: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr, INTERLEAVED: tl.constexpr
):
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = tl.arange(0, BLOCK)
    inside, turns = at < D, at < R
    begin = x + (token // T) * x_b + (token % T) * x_t + head * x_h
    if INTERLEAVED:
        partner = at ^ 1
        negative = at % 2 == 0
    else:
        partner = tl.where(at < R // 2, at + R // 2, at - R // 2)
        negative = at < R // 2
    feature = tl.load(begin + at, mask=inside, other=0.0)
    paired = tl.load(begin + partner, mask=turns, other=0.0).to(tl.float32)
    paired = tl.where(negative, -paired, paired)
    c = tl.load(cos + token * R + at, mask=turns, other=1.0).to(tl.float32)
    s = tl.load(sin + token * R + at, mask=turns, other=0.0).to(tl.float32)
    turned = (feature.to(tl.float32) * c + paired * s).to(out.dtype.element_ty)
    tl.store(out + (token * tl.num_programs(1) + head) * D + at, tl.where(turns, turned, feature), mask=inside)


def gated(gate_up: Tensor, activation: str) -> Tensor:
    """act(gate) · up, for rows that hold the gate's features before the up features."""
    _check(gate_up)
    if activation not in GATES:
        raise Refused
    rows, F = gate_up.reshape(-1, gate_up.shape[-1]), gate_up.shape[-1] // 2
    out = torch.empty(len(rows), F, dtype=gate_up.dtype, device=gate_up.device)
    block = min(triton.next_power_of_2(F), 1024)
    _gated[(len(rows), triton.cdiv(F, block))](rows, out, rows.stride(0), F, BLOCK=block, GATE=GATES[activation])
    return out.view(*gate_up.shape[:-1], F)


@triton.jit
def _gated(gate_up, out, row_step, F, BLOCK: tl.constexpr, GATE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < F
    up = tl.load(gate_up + row * row_step + F + at, mask=inside, other=0.0)
    g = tl.load(gate_up + row * row_step + at, mask=inside, other=0.0).to(tl.float32)
    if GATE == 0:
        a = g / (1.0 + tl.exp(-g))
    elif GATE == 1:
        a = 0.5 * g * (1.0 + tl.erf(g * 0.7071067811865476))
    elif GATE == 2:
        inner = 0.7978845608028654 * (g + 0.044715 * g * g * g)
        a = g / (1.0 + tl.exp(-2.0 * inner))  # g (1 + tanh inner) / 2
    else:
        a = tl.maximum(g, 0.0)
    # Rounded in between, like the two operations of the plain function.
    a = a.to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * F + at, (a * up.to(tl.float32)).to(out.dtype.element_ty), mask=inside)


def _check(*tensors: Tensor) -> None:
    """Raises `Refused` for tensors of mixed dtypes, wider than 32 bits, or empty."""
    first = tensors[0]
    if first.dtype not in (torch.float32, torch.bfloat16, torch.float16) or not first.numel():
        raise Refused
    if any(tensor.dtype != first.dtype or tensor.shape != first.shape or tensor.stride(-1) != 1 for tensor in tensors):
        raise Refused
