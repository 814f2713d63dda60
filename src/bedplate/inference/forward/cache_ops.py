"""Operations on cached keys and values: writing new tokens, and paged attention, which also writes them. Each has a
plain implementation and a Triton kernel for CUDA devices.

A kernel reads the blocks in place (PagedAttention, https://arxiv.org/abs/2309.06180), for decode steps and prompt
chunks alike; the plain implementation gathers what each token sees.

Shapes: N tokens, X rows or blocks with Y places each, S rows, U tiles, P blocks of the pool, W blocks of a row's table,
b tokens of a block, K keys, H query heads, G key-value heads, D features of a key, V of a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bedplate.inference.forward.host_to_device import Numbers
from bedplate.inference.forward.spans import Span
from bedplate.models.layers.attention import masked_attention
from bedplate.models.layers.attention_options import AttentionOptions
from bedplate.models.layers.fused.custom_ops import operation

_KERNELS = "bedplate.inference.forward.triton_kernels"
TILE = 16
"""Tokens of one row that a kernel program processes, where a row has more than one."""


def write_kv_reference(
    keys_XYGD: Tensor, values_XYGV: Tensor, at_N: Tensor, place_N: Tensor, k_NGD: Tensor, v_NGV: Tensor
) -> None:
    """The plain implementation of `write_kv`."""
    keys_XYGD[at_N, place_N] = k_NGD
    values_XYGV[at_N, place_N] = v_NGV


write_kv = operation(
    "write_kv(Tensor(a!) keys, Tensor(b!) values, Tensor at, Tensor place, Tensor k, Tensor v) -> ()",
    write_kv_reference,
    _KERNELS,
)
"""write_kv(keys [X, Y, G, D], values [X, Y, G, V], at [N], place [N], k [N, G, D], v [N, G, V])"""


class Places(NamedTuple):
    """Positions of a flat batch's tokens in its rows.

    row_N: row of each token. position_N: its position there. begin_S: index of each row's first token; start_S: that
    token's position; length_S: number of tokens. tile_2U: for each tile of a kernel, its row and the first of that
    row's new tokens.
    """

    row_N: Numbers
    position_N: Numbers
    begin_S: Numbers
    start_S: Numbers
    length_S: Numbers
    tile_2U: Numbers


def places(spans: Sequence[Span]) -> Places:
    """The places of the new tokens of a batch of these spans."""
    length_S, start_S = np.array([span.length for span in spans]), np.array([span.start for span in spans])
    begin_S, row_N = length_S.cumsum() - length_S, np.repeat(np.arange(len(spans)), length_S)
    position_N = np.arange(len(row_N)) + (start_S - begin_S)[row_N]
    step = tile_tokens(spans)
    tiles_S = -(-length_S // step)
    tile_U = np.repeat(np.arange(len(spans)), tiles_S)
    first_U = (np.arange(len(tile_U)) - (tiles_S.cumsum() - tiles_S)[tile_U]) * step
    return Places(row_N, position_N, begin_S, start_S, length_S, np.stack([tile_U, first_U]))


def tile_tokens(spans: Sequence[Span]) -> int:
    """Maximum number of tokens in a tile."""
    return 1 if max(span.length for span in spans) == 1 else TILE


def _attended(
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
    b, blocks_N = keys_PbGD.shape[1], table_SW.gather(0, row_N[:, None].expand(-1, table_SW.shape[1]))
    own_N = blocks_N.gather(1, (position_N // b)[:, None])[:, 0]
    write_kv_reference(keys_PbGD, values_PbGV, own_N, position_N % b, k_NGD, v_NGV)
    blocks_N = blocks_N[:, : -(-max_keys // b)]
    distance_NK = torch.arange(blocks_N.shape[1] * b, device=q_NHD.device) - position_N[:, None]
    seen_NK = distance_NK <= 0 if window is None else (distance_NK <= 0) & (distance_NK > -window)
    # Masked places may contain another row's infinities, which must not enter the products.
    hidden = ~seen_NK[:, :, None, None]
    k_NKGD = keys_PbGD[blocks_N].flatten(1, 2).masked_fill_(hidden, 0)
    v_NKGV = values_PbGV[blocks_N].flatten(1, 2).masked_fill_(hidden, 0)
    options = AttentionOptions(scale, cap, window, None, sinks)
    return masked_attention(q_NHD[:, None], k_NKGD, v_NKGV, seen_NK[:, None], options, distance_NK[:, None])[:, 0]


paged_attention = operation(
    "paged_attention(Tensor q, Tensor k, Tensor v, Tensor(a!) keys, Tensor(b!) values, Tensor table, Tensor row, "
    "Tensor position, Tensor span, Tensor tile, int tokens, int most, float? scale, float? cap, int? window, "
    "Tensor? sinks) -> Tensor",
    _attended,
    _KERNELS,
)
"""→ [N, H, V]. table [S, W]: each row's blocks in order. row, position [N], span [3, S] (begin, start, length) and tile
[2, U]: as `Places` has them. tokens: maximum in a tile. max_keys: maximum of a row. k, v: of the new tokens, which are
written to their places in keys and values [P, b, G, …]."""
