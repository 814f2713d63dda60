"""Attention over packed rows for training on CPU: dense blocks of neighbouring documents, with its own backward pass.

Torch's fused kernel spends, on CPU, ten times as long on the gradient of short masked sequences as the products take.
Here a row is cut, at document borders, into blocks of about `BLOCK` tokens; a block's scores are one batched product
over [prefix + block], masked, so that no token is gathered or padded. Numerically it is the plain formula: products in
the model's dtype, softmax in float32.

Shapes: T tokens, H query heads, G key-value heads, R = H/G, D features of one head, P prefix tokens, n a block's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bedplate.models.layers.attention import Attend, SegmentAttention

BLOCK = 96
"""Larger blocks compute more scores that the mask throws away, smaller ones make more calls."""
LONGEST = 512
"""Rows with a longer document go to the fused kernel, whose memory does not grow with the square."""


@dataclass(frozen=True)
class Block:
    """Tokens `start` to `stop` of the row; `mask` [n, K] is added to their scores, K = `prefix` + n keys."""

    start: int
    stop: int
    prefix: int
    mask: Tensor


def training_attention(segments_BT: Tensor, dtype: torch.dtype) -> Attend:
    """How to attend while training: in blocks for an unpadded row of short documents on CPU, else as the model does."""
    if segments_BT.shape[0] == 1 and segments_BT.device.type == "cpu" and int(segments_BT.min()) >= 0:
        _, counts = segments_BT[0].unique_consecutive(return_counts=True)
        if int(counts.max()) <= LONGEST:
            return BlockAttention(segments_BT[0], dtype)
    return SegmentAttention(segments_BT, causal=True)


class BlockAttention:
    """Attention of one packed row (see `Inputs.segments`), without padding."""

    def __init__(self, segments_T: Tensor, dtype: torch.dtype) -> None:
        numbers, counts = (x.tolist() for x in segments_T.unique_consecutive(return_counts=True))
        prefix = counts[0] if numbers[0] == 0 else 0
        self._blocks: list[Block] = []
        if prefix:
            self._add(0, [prefix], 0, dtype)
        start, lengths = prefix, list[int]()
        for length in counts[1 if prefix else 0 :]:
            if lengths and sum(lengths) + length > BLOCK:
                self._add(start, lengths, prefix, dtype)
                start, lengths = start + sum(lengths), []
            lengths.append(length)
        if lengths:
            self._add(start, lengths, prefix, dtype)

    def _add(self, start: int, lengths: list[int], prefix: int, dtype: torch.dtype) -> None:
        own = torch.block_diag(*(torch.ones(n, n, dtype=torch.bool).tril() for n in lengths)).bool()
        seen = torch.cat((torch.ones(len(own), prefix, dtype=torch.bool), own), dim=1)
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -torch.inf)
        self._blocks.append(Block(start, start + len(own), prefix, mask))

    def __call__(self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor) -> Tensor:
        q_THD, k_TGD, v_TGD = q_BTHD[0], k_BTGD[0], v_BTGD[0]
        out: Any = _PackedAttention.apply(q_THD, k_TGD, v_TGD, self._blocks)
        return out[None]


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, blocks: list[Block]) -> Tensor:  # type: ignore[override]
        T, H, D = q_THD.shape
        G = k_TGD.shape[1]
        scale = 1.0 / math.sqrt(D)
        q_GTRD = q_THD.view(T, G, H // G, D).transpose(0, 1).contiguous()
        k_GTD, v_GTD = k_TGD.transpose(0, 1).contiguous(), v_TGD.transpose(0, 1).contiguous()
        out_GTRD = torch.empty_like(q_GTRD)
        kept: list[Tensor] = []
        for block in blocks:
            n = block.stop - block.start
            q = q_GTRD[:, block.start : block.stop].reshape(G, -1, D)
            k, v = _keys(k_GTD, block), _keys(v_GTD, block)
            scores = torch.bmm(q, k.transpose(1, 2)).view(G, n, H // G, -1)
            scores = torch.add(block.mask[:, None], scores, alpha=scale)
            p = scores.softmax(-1, dtype=_wide(scores.dtype)).to(q.dtype).view(G, n * (H // G), -1)
            out_GTRD[:, block.start : block.stop] = torch.bmm(p, v).view(G, n, H // G, D)
            kept.append(p)
        ctx.save_for_backward(q_GTRD, k_GTD, v_GTD, *kept)
        ctx.blocks = blocks
        return out_GTRD.transpose(0, 1).reshape(T, H, D)

    @staticmethod
    def backward(ctx: Any, grad_THD: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        q_GTRD, k_GTD, v_GTD, *kept = ctx.saved_tensors
        G, T, R, D = q_GTRD.shape
        scale = 1.0 / math.sqrt(D)
        grad_GTRD = grad_THD.view(T, G, R, D).transpose(0, 1).contiguous()
        dq_GTRD = torch.empty_like(q_GTRD)
        dk_GTD, dv_GTD = torch.zeros_like(k_GTD), torch.zeros_like(v_GTD)
        for block, p in zip(ctx.blocks, kept, strict=True):
            q = q_GTRD[:, block.start : block.stop].reshape(G, -1, D)
            g = grad_GTRD[:, block.start : block.stop].reshape(G, -1, D)
            k, v = _keys(k_GTD, block), _keys(v_GTD, block)
            wide = _wide(p.dtype)
            dp, p_wide = torch.bmm(g, v.transpose(1, 2)).to(wide), p.to(wide)
            ds = torch.ops.aten._softmax_backward_data(dp, p_wide, -1, wide).mul_(scale).to(p.dtype)
            dq_GTRD[:, block.start : block.stop] = torch.bmm(ds, k).view(G, -1, R, D)
            _add_keys(dk_GTD, torch.bmm(ds.transpose(1, 2), q), block)
            _add_keys(dv_GTD, torch.bmm(p.transpose(1, 2), g), block)
        dq_THD = dq_GTRD.transpose(0, 1).reshape(T, G * R, D)
        return dq_THD, dk_GTD.transpose(0, 1), dv_GTD.transpose(0, 1), None


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _keys(x_GTD: Tensor, block: Block) -> Tensor:
    own = x_GTD[:, block.start : block.stop]
    return torch.cat((x_GTD[:, : block.prefix], own), dim=1) if block.prefix else own


def _add_keys(into_GTD: Tensor, grad_GKD: Tensor, block: Block) -> None:
    if block.prefix:
        into_GTD[:, : block.prefix] += grad_GKD[:, : block.prefix]
    into_GTD[:, block.start : block.stop] += grad_GKD[:, block.prefix :]
