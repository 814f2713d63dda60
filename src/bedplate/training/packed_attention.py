"""Attention over packed rows for training on CPU: dense blocks of tokens, with its own backward pass.

Torch's fused kernel spends, on CPU, many times as long on the gradient of masked sequences as the products take. Here a
row is cut into blocks of at most `BLOCK` tokens: short documents that stand beside each other, or a piece of a long
one. A block's scores are one batched product over the keys that any of it sees, [prefix + from its document's start
on], masked, so that no token is gathered or padded and hardly a score is computed for nothing. Numerically it is the
plain formula: products in the model's dtype, softmax in float32. What softmax gave is kept for the way back where keys
are few and computed again where they are many (as in FlashAttention, arXiv 2205.14135), so that memory grows with
tokens and not with the square of a document's length.

Shapes: T tokens, H query heads, G key-value heads, R = H/G, D features of one head, V of its value, P prefix tokens, n
a block's, K its keys.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bedplate.models.inputs import segment_positions
from bedplate.models.layers.attention import Attend, SegmentAttention, masked_attention
from bedplate.models.layers.documents import Documents, Recurrence, of_lengths
from bedplate.models.layers.how import PLAIN, How
from bedplate.training.batch import PackedBatch

BLOCK = 96
"""Larger blocks compute more scores that the mask throws away, smaller ones make more calls."""
KEPT = 256
"""A block with more keys than this computes its scores again on the way back."""


@dataclass(frozen=True)
class TokenBlock:
    """Tokens `start` to `stop` of the row, which see the row's first `prefix` tokens and those from `first` on; `mask`
    [n, K] is added to their scores, K = `prefix` + `stop` - `first`."""

    start: int
    stop: int
    first: int
    prefix: int
    mask: Tensor


def training_attention(batch: PackedBatch, dtype: torch.dtype) -> Attend:
    """How to attend while training: on CPU in blocks where one row has no padding, else as the model does; elsewhere by
    a mask, since the others would read lengths back from the device."""
    if batch.sources is not None:  # layers may want more than the faster ways do, such as T5's bias
        return SegmentAttention(batch.segments, causal=True)
    if batch.segments.device.type != "cpu":
        return MaskAttention(batch.segments)
    if len(batch.tokens) == 1 and batch.token_count == batch.tokens.numel():
        return BlockAttention(batch.lengths, dtype)
    return SegmentAttention(batch.segments, causal=True)


class MaskAttention:
    """Attention of packed rows (see `Inputs.segments`) by a mask over all of each row; nothing of it is read."""

    keeps = False

    def __init__(self, segments_BT: Tensor) -> None:
        theirs = segments_BT[:, None, :]
        self._segments_BT = segments_BT
        self._mask = ((segments_BT[:, :, None] == theirs) | (theirs == 0)).tril()

    def __call__(self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGV: Tensor, how: How = PLAIN) -> Tensor:
        distance = None if how.plain else self._distance_BTT
        seen = how.within(self._mask, distance, causal=True)
        return masked_attention(q_BTHD, k_BTGD, v_BTGV, seen, how, distance)

    @cached_property
    def _distance_BTT(self) -> Tensor:
        at_BT = segment_positions(self._segments_BT)
        return at_BT[:, None, :] - at_BT[:, :, None]

    def recur(self, layer: int, run: Recurrence, x_BTC: Tensor) -> Tensor:
        return self._documents.recur(run, x_BTC)

    @cached_property
    def _documents(self) -> Documents:
        """Made for layers that keep a state; its lengths are read back from the device."""
        return Documents(self._segments_BT)


class BlockAttention:
    """Attention of one packed row without padding: `lengths` of its prefix (or 0) and of each of its documents.

    A window that no document is longer than is none; layers with a shorter one, a cap, a bias or sinks are left to
    `SegmentAttention`.
    """

    keeps = False

    def __init__(self, lengths: Sequence[int], dtype: torch.dtype) -> None:
        self._lengths = lengths
        prefix, *documents = lengths
        self._blocks: list[TokenBlock] = []
        self._masks: dict[tuple[int, int], Tensor] = {}
        self._dtype = dtype
        if prefix:
            self._add_document(0, prefix, 0)
        start, beside = prefix, list[int]()
        for length in documents:
            if beside and sum(beside) + length > BLOCK:
                self._add(start, beside, prefix)
                start, beside = start + sum(beside), []
            if length > BLOCK:
                self._add_document(start, length, prefix)
                start += length
            else:
                beside.append(length)
        if beside:
            self._add(start, beside, prefix)

    def _add(self, start: int, lengths: list[int], prefix: int) -> None:
        """Whole documents beside each other."""
        own = torch.block_diag(*(torch.ones(n, n, dtype=torch.bool).tril() for n in lengths)).bool()
        mask = self._mask(torch.cat((torch.ones(len(own), prefix, dtype=torch.bool), own), dim=1))
        self._blocks.append(TokenBlock(start, start + len(own), start, prefix, mask))

    def _add_document(self, start: int, length: int, prefix: int) -> None:
        """A document by itself, in pieces of equal size (about)."""
        pieces = -(-length // BLOCK)
        edges = [start + length * i // pieces for i in range(pieces + 1)]
        for begin, end in itertools.pairwise(edges):
            n, keys = end - begin, prefix + end - start
            if (n, keys) not in self._masks:  # documents have many pieces of one shape
                self._masks[n, keys] = self._mask(torch.ones(n, keys, dtype=torch.bool).tril(keys - n))
            self._blocks.append(TokenBlock(begin, end, start, prefix, self._masks[n, keys]))

    @cached_property
    def _by_segments(self) -> SegmentAttention:
        numbers, lengths = torch.arange(len(self._lengths)), torch.tensor(self._lengths)
        return SegmentAttention(numbers.repeat_interleave(lengths)[None], causal=True)

    def _mask(self, seen: Tensor) -> Tensor:
        return torch.zeros(seen.shape, dtype=self._dtype).masked_fill_(~seen, -torch.inf)

    def __call__(self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGV: Tensor, how: How = PLAIN) -> Tensor:
        if how.window is not None and how.window >= self._lengths[0] + max(self._lengths[1:], default=0):
            how = replace(how, window=None)
        if not how.plain:
            return self._by_segments(layer, q_BTHD, k_BTGD, v_BTGV, how)
        scale = 1.0 / math.sqrt(q_BTHD.shape[-1]) if how.scale is None else how.scale
        out: Any = _PackedAttention.apply(q_BTHD[0], k_BTGD[0], v_BTGV[0], self._blocks, scale)
        return out[None]

    def recur(self, layer: int, run: Recurrence, x_BTC: Tensor) -> Tensor:
        return self._documents.recur(run, x_BTC)

    @cached_property
    def _documents(self) -> Documents:
        return of_lengths(self._lengths, torch.device("cpu"))


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, q_THD: Tensor, k_TGD: Tensor, v_TGV: Tensor, blocks: list[TokenBlock], scale: float
    ) -> Tensor:
        T, H, D = q_THD.shape
        G, V = v_TGV.shape[1:]
        q_GTRD = q_THD.view(T, G, H // G, D).transpose(0, 1).contiguous()
        k_GTD, v_GTV = k_TGD.transpose(0, 1).contiguous(), v_TGV.transpose(0, 1).contiguous()
        out_GTRV = q_GTRD.new_empty(G, T, H // G, V)
        kept: list[Tensor] = []
        for block in blocks:
            q = q_GTRD[:, block.start : block.stop].reshape(G, -1, D)
            k, v = _keys(k_GTD, block), _keys(v_GTV, block)
            p = _weights(q, k, block.mask, scale)
            out_GTRV[:, block.start : block.stop] = torch.bmm(p, v).view(G, -1, H // G, V)
            if _keeps(block):
                kept.append(p)
        ctx.save_for_backward(q_GTRD, k_GTD, v_GTV, *kept)
        ctx.blocks, ctx.scale = blocks, scale
        return out_GTRV.transpose(0, 1).reshape(T, H, V)

    @staticmethod
    def backward(ctx: Any, grad_THV: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:  # type: ignore[override]
        q_GTRD, k_GTD, v_GTV, *kept = ctx.saved_tensors
        (G, T, R, D), V, scale = q_GTRD.shape, v_GTV.shape[2], ctx.scale
        grad_GTRV = grad_THV.view(T, G, R, V).transpose(0, 1).contiguous()
        dq_GTRD = torch.empty_like(q_GTRD)
        dk_GTD, dv_GTV = torch.zeros_like(k_GTD), torch.zeros_like(v_GTV)
        weights = iter(kept)
        for block in ctx.blocks:
            q = q_GTRD[:, block.start : block.stop].reshape(G, -1, D)
            g = grad_GTRV[:, block.start : block.stop].reshape(G, -1, V)
            k, v = _keys(k_GTD, block), _keys(v_GTV, block)
            p = next(weights) if _keeps(block) else _weights(q, k, block.mask, scale)
            wide = _wide(p.dtype)
            dp, p_wide = torch.bmm(g, v.transpose(1, 2)).to(wide), p.to(wide)
            ds = torch.ops.aten._softmax_backward_data(dp, p_wide, -1, wide).mul_(scale).to(p.dtype)
            dq_GTRD[:, block.start : block.stop] = torch.bmm(ds, k).view(G, -1, R, D)
            _add_keys(dk_GTD, torch.bmm(ds.transpose(1, 2), q), block)
            _add_keys(dv_GTV, torch.bmm(p.transpose(1, 2), g), block)
        dq_THD = dq_GTRD.transpose(0, 1).reshape(T, G * R, D)
        return dq_THD, dk_GTD.transpose(0, 1), dv_GTV.transpose(0, 1), None, None


def _keeps(block: TokenBlock) -> bool:
    return block.mask.shape[1] <= KEPT


def _weights(q_GnD: Tensor, k_GKD: Tensor, mask_nK: Tensor, scale: float) -> Tensor:
    """How much each query takes of each key [G, n × R, K]."""
    n, K = mask_nK.shape
    scores = torch.bmm(q_GnD, k_GKD.transpose(1, 2)).view(len(q_GnD), n, -1, K)
    scores = torch.add(mask_nK[:, None], scores, alpha=scale)
    return scores.softmax(-1, dtype=_wide(scores.dtype)).to(q_GnD.dtype).view(len(q_GnD), -1, K)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _keys(x_GTD: Tensor, block: TokenBlock) -> Tensor:
    own = x_GTD[:, block.first : block.stop]
    return torch.cat((x_GTD[:, : block.prefix], own), dim=1) if block.prefix else own


def _add_keys(into_GTD: Tensor, grad_GKD: Tensor, block: TokenBlock) -> None:
    if block.prefix:
        into_GTD[:, : block.prefix] += grad_GKD[:, : block.prefix]
    into_GTD[:, block.first : block.stop] += grad_GKD[:, block.prefix :]
