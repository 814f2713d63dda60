"""Triton kernels over the KV cache, for CUDA devices; each is tested against its plain function (`cache_ops`).

Sums are float32. Keys and values are read in place, one block of the cache at a time (PagedAttention,
https://arxiv.org/abs/2309.06180), with an online softmax (https://arxiv.org/abs/2205.14135). The new tokens' own keys
and values are read from the layer's output, so that one launch both writes and reads them.
"""
# pyright: basic, reportMissingImports=false, reportIndexIssue=false

# Shapes: N tokens, S rows, U tiles of at most T tokens, W blocks of a row's table, P blocks of the pool, b tokens of
# one, H query heads, G key-value heads, R = H/G, D features of a key, V of a value.

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bedplate.models.layers.fused.custom_ops import Refused

WIDEST = 256
"""Maximum features of a head in one program."""
KEYS = 32
"""Keys that one program reads at a time; half as many wide ones, to fit a multiprocessor's shared memory."""
WIDE_ROW_BYTES = 512
"""Bytes of a wide key."""
LOG2E = tl.constexpr(1.4426950408889634)


def write_kv(
    keys_XYGD: Tensor, values_XYGV: Tensor, at_N: Tensor, place_N: Tensor, k_NGD: Tensor, v_NGV: Tensor
) -> None:
    """Writes each token's keys and values to its place in the cache."""
    N, G, D = k_NGD.shape
    V = v_NGV.shape[2]
    _check(keys_XYGD, values_XYGV, k_NGD, v_NGV)
    kernel: Any = _write_kv_kernel
    kernel[(N, G)](
        *(keys_XYGD, values_XYGV, at_N, place_N, k_NGD, v_NGV),
        *(*keys_XYGD.stride()[:3], *values_XYGV.stride()[:3], *k_NGD.stride()[:2], *v_NGV.stride()[:2]),
        D=D,
        V=V,
        WIDE=triton.next_power_of_2(max(D, V)),
    )


@triton.jit
def _write_kv_kernel(
    keys,
    values,
    at,
    place,
    k,
    v,
    keys_x,
    keys_y,
    keys_g,
    values_x,
    values_y,
    values_g,
    k_n,
    k_g,
    v_n,
    v_g,
    D: tl.constexpr,
    V: tl.constexpr,
    WIDE: tl.constexpr,
):
    n, g, d = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, WIDE)
    x, y = tl.load(at + n), tl.load(place + n)
    features = tl.load(k + n * k_n + g * k_g + d, mask=d < D)
    tl.store(keys + x * keys_x + y * keys_y + g * keys_g + d, features, mask=d < D)
    features = tl.load(v + n * v_n + g * v_g + d, mask=d < V)
    tl.store(values + x * values_x + y * values_y + g * values_g + d, features, mask=d < V)


def paged_attention(
    q_NHD: Tensor,
    k_NGD: Tensor,
    v_NGV: Tensor,
    keys_PbGD: Tensor,
    values_PbGV: Tensor,
    table_SW: Tensor,
    row_N: Tensor,
    position_N: Tensor,
    span_3S: Tensor,
    tile_2U: Tensor,
    tokens: int,
    max_keys: int,
    scale: float | None,
    cap: float | None,
    window: int | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention of new tokens over their rows' blocks, into which their own keys and values are written."""
    _check(q_NHD, k_NGD, v_NGV, keys_PbGD, values_PbGV)
    (N, H, D), (G, V) = q_NHD.shape, v_NGV.shape[1:]
    repeats = H // G
    if max(D, V) > WIDEST or tokens * repeats > 256:
        raise Refused
    out_NHV = torch.empty(N, H, V, dtype=q_NHD.dtype, device=q_NHD.device)
    kernel: Any = _attend
    kernel[(tile_2U.shape[1], G)](
        *(q_NHD, k_NGD, v_NGV, keys_PbGD, values_PbGV, out_NHV, table_SW, span_3S, tile_2U),
        *(q_NHD if sinks is None else sinks.contiguous(), span_3S.stride(0), tile_2U.stride(0), table_SW.stride(0)),
        *(*q_NHD.stride()[:2], *k_NGD.stride()[:2], *v_NGV.stride()[:2]),
        *(*keys_PbGD.stride()[:3], *values_PbGV.stride()[:3]),
        *(D**-0.5 if scale is None else scale, 0.0 if cap is None else cap, 0 if window is None else window),
        b=keys_PbGD.shape[1],
        H=H,
        R=repeats,
        D=D,
        V=V,
        T=tokens,
        ROWS=max(triton.next_power_of_2(tokens * repeats), 16),
        TOKENS=triton.next_power_of_2(tokens),
        WIDE_D=max(triton.next_power_of_2(D), 16),
        WIDE_V=max(triton.next_power_of_2(V), 16),
        KEYS=KEYS // 2 if max(D, V) * q_NHD.element_size() >= WIDE_ROW_BYTES else KEYS,
        CAPPED=cap is not None,
        WINDOWED=window is not None,
        SINKS=sinks is not None,
    )
    return out_NHV


@triton.jit
def _attend(
    q,
    k,
    v,
    keys,
    values,
    out,
    table,
    span,
    tile,
    sinks,
    span_row,
    tile_row,
    table_row,
    q_n,
    q_h,
    k_n,
    k_g,
    v_n,
    v_g,
    keys_p,
    keys_b,
    keys_g,
    values_p,
    values_b,
    values_g,
    scale,
    cap,
    window,
    b: tl.constexpr,
    H: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    V: tl.constexpr,
    T: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDE_D: tl.constexpr,
    WIDE_V: tl.constexpr,
    KEYS: tl.constexpr,
    CAPPED: tl.constexpr,
    WINDOWED: tl.constexpr,
    SINKS: tl.constexpr,
):
    g = tl.program_id(1)
    s, first = tl.load(tile + tl.program_id(0)), tl.load(tile + tile_row + tl.program_id(0))
    begin, start = tl.load(span + s), tl.load(span + span_row + s)
    length = tl.load(span + 2 * span_row + s)
    d, e, j = tl.arange(0, WIDE_D), tl.arange(0, WIDE_V), tl.arange(0, KEYS)
    # The new tokens of this tile to their places; no other tile's keys of this launch are read from there.
    t = first + tl.arange(0, TOKENS)
    mine = (t < first + T) & (t < length)
    block = tl.load(table + s * table_row + (start + t) // b, mask=mine, other=0)
    place = (start + t) % b
    part = mine[:, None] & (d < D)[None, :]
    new_kv = tl.load(k + (begin + t)[:, None] * k_n + g * k_g + d[None, :], mask=part, other=0.0)
    tl.store(keys + (block * keys_p + place * keys_b)[:, None] + g * keys_g + d[None, :], new_kv, mask=part)
    part = mine[:, None] & (e < V)[None, :]
    new_kv = tl.load(v + (begin + t)[:, None] * v_n + g * v_g + e[None, :], mask=part, other=0.0)
    tl.store(values + (block * values_p + place * values_b)[:, None] + g * values_g + e[None, :], new_kv, mask=part)
    # The query heads of the key-value head are rows of one product.
    r = tl.arange(0, ROWS)
    offset, head = first + r // R, g * R + r % R
    active = (r // R < T) & (offset < length)
    at = start + offset
    q_at = (begin + offset)[:, None] * q_n + head[:, None] * q_h + d[None, :]
    queries = tl.load(q + q_at, mask=active[:, None] & (d < D)[None, :], other=0.0)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    if SINKS:
        # A score that no value belongs to: the sum begins with it.
        top = tl.load(sinks + head, mask=active, other=0.0).to(tl.float32)
        total += 1.0
    mixed = tl.zeros((ROWS, WIDE_V), tl.float32)
    low = start * 0
    if WINDOWED:
        low = tl.maximum(start + first - window + 1, 0)
    for n in range(low // KEYS * KEYS, start, KEYS):
        p = n + j
        old = (p >= low) & (p < start)
        page = tl.load(table + s * table_row + p // b, mask=old, other=0)
        k_spot = page * keys_p + (p % b) * keys_b + g * keys_g
        k_DJ = tl.load(keys + k_spot[None, :] + d[:, None], mask=old[None, :] & (d < D)[:, None], other=0.0)
        v_spot = page * values_p + (p % b) * values_b + g * values_g
        v_JV = tl.load(values + v_spot[:, None] + e[None, :], mask=old[:, None] & (e < V)[None, :], other=0.0)
        visible = active[:, None] & old[None, :]
        if WINDOWED:
            visible = visible & (p[None, :] > at[:, None] - window)
        mixed, total, top = _step(queries, k_DJ, v_JV, visible, mixed, total, top, scale, cap, CAPPED)
    low = first * 0
    if WINDOWED:
        low = tl.maximum(first - window + 1, 0)
    for n in range(low // KEYS * KEYS, tl.minimum(first + T, length), KEYS):
        p = n + j
        new = p < length
        k_at = (begin + p)[None, :] * k_n + g * k_g + d[:, None]
        k_DJ = tl.load(k + k_at, mask=new[None, :] & (d < D)[:, None], other=0.0)
        v_at = (begin + p)[:, None] * v_n + g * v_g + e[None, :]
        v_JV = tl.load(v + v_at, mask=new[:, None] & (e < V)[None, :], other=0.0)
        visible = active[:, None] & new[None, :] & (p[None, :] <= offset[:, None])
        if WINDOWED:
            visible = visible & (p[None, :] > offset[:, None] - window)
        mixed, total, top = _step(queries, k_DJ, v_JV, visible, mixed, total, top, scale, cap, CAPPED)
    mixed = mixed / tl.where(active, total, 1.0)[:, None]
    out_at = ((begin + offset) * H + head)[:, None] * V + e[None, :]
    tl.store(out + out_at, mixed.to(out.dtype.element_ty), mask=active[:, None] & (e < V)[None, :])


@triton.jit
def _step(queries, k_DJ, v_JV, visible, mixed, total, top, scale, cap, CAPPED: tl.constexpr):
    """One block of keys in the online softmax: updates the mixed values, the sum of weights and the largest score of
    each query."""
    scores = tl.dot(queries, k_DJ, input_precision="ieee") * scale
    if CAPPED:
        scores = cap * (1.0 - 2.0 / (1.0 + tl.exp2(scores / cap * LOG2E * 2.0)))  # tanh
    scores = tl.where(visible, scores, float("-inf"))
    higher = tl.maximum(top, tl.max(scores, axis=1))
    level = tl.where(higher == float("-inf"), 0.0, higher)  # no key was visible yet
    weights = tl.exp2((scores - level[:, None]) * LOG2E)
    decay = tl.exp2((top - level) * LOG2E)
    total = total * decay + tl.sum(weights, axis=1)
    mixed = mixed * decay[:, None] + tl.dot(weights.to(v_JV.dtype), v_JV, input_precision="ieee")
    return mixed, total, higher


def _check(*tensors: Tensor) -> None:
    first = tensors[0]
    if first.dtype not in (torch.float32, torch.bfloat16, torch.float16) or not first.numel():
        raise Refused
    if any(tensor.dtype != first.dtype or tensor.stride(-1) != 1 for tensor in tensors):
        raise Refused
