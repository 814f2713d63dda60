"""FlashAttention's two editions as their packages have them, on CPU tensors: the functions we call, with their own
names, order and defaults of arguments, which check what theirs check and compute the plain formula.

The second: https://github.com/Dao-AILab/flash-attention/blob/main/flash_attn/flash_attn_interface.py; the third:
https://github.com/Dao-AILab/flash-attention/blob/main/hopper/flash_attn_interface.py.
"""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from bedplate.models.layers.attention_options import AttentionOptions, plain_attention

Window = tuple[int, int]


def attention(
    q_THD: Tensor, k_SGD: Tensor, v_SGD: Tensor, causal: bool, how: AttentionOptions, window: Window
) -> Tensor:
    """One sequence: the queries are its last ones."""
    T, S = len(q_THD), len(k_SGD)
    distance_TS = torch.arange(S) - (torch.arange(T) + S - T)[:, None]
    seen_TS = distance_TS <= 0 if causal else torch.ones(T, S, dtype=torch.bool)
    left, right = window
    seen_TS = seen_TS & (distance_TS >= -left) if left >= 0 else seen_TS
    seen_TS = seen_TS & (distance_TS <= right) if right >= 0 else seen_TS
    parts = (x[None] for x in (q_THD, k_SGD, v_SGD))
    return plain_attention(*parts, seen_TS[None], how, distance_TS[None])[0]


def checked(q: Tensor, k: Tensor, v: Tensor) -> None:
    assert q.dtype == k.dtype == v.dtype
    assert q.shape[-1] == k.shape[-1] == v.shape[-1] <= 256
    assert q.shape[-2] % k.shape[-2] == 0
    assert all(x.stride(-1) == 1 for x in (q, k, v))


def varlen(
    q: Tensor, k: Tensor, v: Tensor, edges: tuple[Tensor, Tensor], max_lengths: tuple[int, int], **how: Any
) -> Tensor:
    checked(q, k, v)
    for offsets, longest, total in zip(edges, max_lengths, (len(q), len(k)), strict=True):
        assert offsets.dtype == torch.int32
        assert offsets.is_contiguous()
        assert int(offsets[0]) == 0
        assert int(offsets[-1]) == total
        assert int(offsets.diff().max()) <= longest
    cap = how["softcap"]
    outputs = []
    for (a, b), (c, d) in zip(*(itertools.pairwise(offsets.tolist()) for offsets in edges), strict=True):
        options = AttentionOptions(how["softmax_scale"], cap if cap > 0 else None)
        outputs.append(attention(q[a:b], k[c:d], v[c:d], how["causal"], options, how["window_size"]))
    return torch.cat(outputs)


def with_cache(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    new: tuple[Tensor, Tensor],
    start: Tensor,
    table: Tensor,
    of: int,
    **how: Any,
) -> Tensor:
    """Keeps the new keys and values in the rows' blocks, and attends to all that those then have."""
    (S, T), b = q.shape[:2], keys.shape[1]
    checked(q, keys, values)
    assert b % of == 0, f"Paged KV cache block size must be divisible by {of}"
    assert start.dtype == table.dtype == torch.int32
    assert start.shape == (S,)
    assert table.shape[0] == S
    assert table.stride(-1) == 1
    assert new[0].shape == (S, T, keys.shape[2], q.shape[3])
    cap, out = how["softcap"], torch.empty_like(q)
    for row in range(S):
        at = torch.arange(int(start[row]), int(start[row]) + T)
        blocks = table[row].long()
        assert at[-1] < len(blocks) * b
        for cached, fresh in zip((keys, values), new, strict=True):
            cached[blocks[at // b], at % b] = fresh[row]
        positions = torch.arange(int(at[-1]) + 1)
        k, v = (cached[blocks[positions // b], positions % b] for cached in (keys, values))
        if how["window_size"][0] >= 0:  # what no query sees is not read
            window_start = max(int(start[row]) - how["window_size"][0], 0)
            k, v = (x.clone() for x in (k, v))
            k[:window_start], v[:window_start] = 0, 0
        options = AttentionOptions(how["softmax_scale"], cap if cap > 0 else None)
        out[row] = attention(q[row], k, v, how["causal"], options, how["window_size"])
    return out


def _varlen_2(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
    window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False,
    block_table=None,
):  # type: ignore[no-untyped-def]  # fmt: skip
    assert dropout_p == 0
    how = {"softmax_scale": softmax_scale, "causal": causal, "window_size": window_size, "softcap": softcap}
    return varlen(q, k, v, (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k), **how)


def _cache_2(
    q, k_cache, v_cache, k=None, v=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None, cache_batch_idx=None,
    cache_leftpad=None, block_table=None, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
    rotary_interleaved=True, alibi_slopes=None, num_splits=0, return_softmax_lse=False,
):  # type: ignore[no-untyped-def]  # fmt: skip
    how = {"softmax_scale": softmax_scale, "causal": causal, "window_size": window_size, "softcap": softcap}
    return with_cache(q, k_cache, v_cache, (k, v), cache_seqlens, block_table, 256, **how)


def _varlen_3(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None, softmax_scale=None,
    causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None, window_size=(-1, -1), attention_chunk=0,
    softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, sm_margin=0, return_attn_probs=False,
):  # type: ignore[no-untyped-def]  # fmt: skip
    how = {"softmax_scale": softmax_scale, "causal": causal, "window_size": window_size, "softcap": softcap}
    out = varlen(q, k, v, (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k), **how)
    return out, torch.zeros(q.shape[1], len(q))  # as its first versions did


def _cache_3(
    q, k_cache, v_cache, k=None, v=None, qv=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None,
    cache_batch_idx=None, cache_leftpad=None, page_table=None, cu_seqlens_q=None, cu_seqlens_k_new=None,
    max_seqlen_q=None, rotary_seqlens=None, q_descale=None, k_descale=None, v_descale=None, softmax_scale=None,
    causal=False, window_size=(-1, -1), attention_chunk=0, softcap=0.0, rotary_interleaved=True,
    scheduler_metadata=None, num_splits=0, pack_gqa=None, sm_margin=0, return_softmax_lse=False,
):  # type: ignore[no-untyped-def]  # fmt: skip
    how = {"softmax_scale": softmax_scale, "causal": causal, "window_size": window_size, "softcap": softcap}
    return with_cache(q, k_cache, v_cache, (k, v), cache_seqlens, page_table, 1, **how)


SECOND = SimpleNamespace(flash_attn_varlen_func=_varlen_2, flash_attn_with_kvcache=_cache_2)
THIRD = SimpleNamespace(flash_attn_varlen_func=_varlen_3, flash_attn_with_kvcache=_cache_3)
MODULES = {"flash2": SECOND, "flash3": THIRD}
