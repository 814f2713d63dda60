"""Attention of packed rows in dense blocks, with its own backward pass: the plain way, on any device.

Torch's fused kernel spends, on CPU, many times as long on the gradient of masked sequences as the products take. Here
a block's scores are one batched product over the keys that any of its tokens sees. Numerically it is the plain formula:
products in the model's dtype, softmax in float32 or wider. Weights are computed again on the way back (as in
FlashAttention, https://arxiv.org/abs/2205.14135), so that memory grows with tokens and not with the square of a
document's length. Blocks are added up in one order, so that gradients are the same bit by bit each time; those that
are alike are computed as one. Queries are scaled, and not the scores, of which there are many more; and where only a
mask is added to scores, they stay in the products' dtype, since torch's softmax itself computes in float32.

Shapes: B rows, T tokens a row, N tokens of the flattened rows, S of those that are keys, H query heads, G key-value
heads, R = H/G, D features of one head, V of its value, n a block's queries, K its keys, m of them whose scores need a
mask, X distances.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bedplate.models.layers.attention_options import PLAIN, AttentionOptions
from bedplate.models.packed.placement import PlacedDocument, Placement

MAX_SCORES = 1 << 20
"""Scores of blocks that are computed as one: 4 MB in float32, which stay in a processor's cache."""


class BlockAttention:
    """Attention of packed rows: each token sees its own document, behind what its row shares. Padding's outputs are
    zero. A window that no document is longer than is none."""

    def __init__(self, placement: Placement, causal: bool = True) -> None:
        self._placement, self._causal = placement, causal
        self._cuttings: dict[tuple[int | None, torch.device], Cutting] = {}
        self._positions: dict[torch.device, Tensor] = {}

    def __call__(
        self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGV: Tensor, options: AttentionOptions = PLAIN
    ) -> Tensor:
        cutting, bias = self._cutting(options.window, q_BTHD.device), None
        if options.bias is not None:
            bias = _Bias(options.bias(self._distances(q_BTHD.device))[0, :, 0], self._positions_N(q_BTHD.device))
        q, k, v = (x.flatten(0, 1) for x in (q_BTHD, k_BTGD, v_BTGV))
        out_NHV = block_attention(q, k, v, cutting.blocks, options, bias, self._placement.padded)
        return out_NHV.view(*q_BTHD.shape[:3], v_BTGV.shape[3])

    def _cutting(self, window: int | None, device: torch.device) -> Cutting:
        if window is not None and (window if self._causal else window // 2) >= self._placement.longest:
            window = None
        key = window, device
        if key not in self._cuttings:
            self._cuttings[key] = Cutting(self._placement, self._causal, *key)
        return self._cuttings[key]

    def _distances(self, device: torch.device) -> Tensor:
        """All that there are, [1, 1, X]: anew each time, since what is made of them belongs to one pass."""
        longest = self._placement.longest
        return torch.arange(1 - longest, longest, device=device)[None, None]

    def _positions_N(self, device: torch.device) -> Tensor:
        if device not in self._positions:
            self._positions[device] = self._placement.positions_N.to(device)
        return self._positions[device]


@dataclass(frozen=True)
class _Bias:
    """What is added to scores: of each head by distance, [H, X], that of no distance in the middle; the tokens'
    positions, from which distances are."""

    table_HX: Tensor
    positions_N: Tensor

    def at(self, block: TokenBlock) -> Tensor:
        """The column of each pair of the block, [n, K]."""
        theirs = torch.cat([self.positions_N[start:stop] for start, stop in block.keys])
        return theirs - self.positions_N[block.start : block.stop, None] + self.table_HX.shape[1] // 2


def block_attention(
    q_NHD: Tensor,
    k_SGD: Tensor,
    v_SGV: Tensor,
    blocks: Sequence[TokenBlock],
    options: AttentionOptions,
    bias: _Bias | None = None,
    padded: bool = True,
) -> Tensor:
    """Each block's queries over its keys: [N, H, V]; zeros where no block is. The window of `options` is the
    blocks'."""
    table, positions = (None, None) if bias is None else (bias.table_HX, bias.positions_N)
    scale = 1.0 / math.sqrt(q_NHD.shape[-1]) if options.scale is None else options.scale
    single = bias is not None or options.sinks is not None  # which are of heads, and so of each block
    groups = [(block,) for block in blocks] if single else batch_blocks(blocks, MAX_SCORES // q_NHD.shape[1])
    work = _Work(groups, scale, options.softcap, positions, padded)
    output: Any = _BlockAttention.apply(q_NHD, k_SGD, v_SGV, options.sinks, table, work)
    return output


@dataclass(frozen=True)
class _Work:
    """What is computed, beside the tensors that gradients flow to: blocks, in groups that are one batch of products."""

    groups: Sequence[tuple[TokenBlock, ...]]
    scale: float
    cap: float | None
    positions_N: Tensor | None
    padded: bool

    def weights(
        self, q_GnD: Tensor, k_GKD: Tensor, block: TokenBlock, sinks_H: Tensor | None, bias: _Bias | None
    ) -> tuple[Tensor, Tensor | None]:
        """How much each query takes of each key, [G, n, R, K] (with sinks one more, which is theirs), in float32 or
        wider where scores are more than products and a mask; and, with a cap, the tanh in it. q: scaled."""
        n, K = block.stop - block.start, block.key_count
        scores, capped = torch.bmm(q_GnD, k_GKD.transpose(1, 2)).view(len(q_GnD), n, -1, K), None
        if self.cap is None and bias is None and sinks_H is None:
            _masked(scores, block.mask)
            return scores.softmax(-1), None
        compute_dtype = _compute_dtype(q_GnD.dtype)
        scores = scores.to(compute_dtype)
        if self.cap is not None:
            capped = scores.div_(self.cap).tanh_()
            scores = capped * self.cap
        if bias is not None:
            each_HnK = bias.table_HX.to(compute_dtype).index_select(1, bias.at(block).view(-1))
            scores.add_(each_HnK.view(len(scores), -1, n, K).transpose(1, 2))
        _masked(scores, block.mask)
        if sinks_H is not None:
            theirs = sinks_H.to(compute_dtype).view(len(scores), 1, -1, 1).expand(-1, n, -1, -1)
            scores = torch.cat((scores, theirs), dim=-1)
        return scores.softmax(-1), capped


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        q_NHD: Tensor,
        k_SGD: Tensor,
        v_SGV: Tensor,
        sinks_H: Tensor | None,
        table_HX: Tensor | None,
        work: _Work,
    ) -> Tensor:
        (N, H), (G, V) = q_NHD.shape[:2], v_SGV.shape[1:]
        q_GNRD = q_NHD.new_empty(G, N, H // G, q_NHD.shape[-1])
        torch.mul(q_NHD.unflatten(1, (G, H // G)).transpose(0, 1), work.scale, out=q_GNRD)
        k_GSD, v_GSV = k_SGD.transpose(0, 1).contiguous(), v_SGV.transpose(0, 1).contiguous()
        out_NHV = (q_NHD.new_zeros if work.padded else q_NHD.new_empty)(N, H, V)
        out_NGRV = out_NHV.view(N, G, H // G, V)
        bias = _bias(table_HX, work)
        for group in work.groups:
            q, K = _queries(q_GNRD, group), group[0].key_count
            p, _ = work.weights(q, _keys(k_GSD, group), group[0], sinks_H, bias)
            p = p[..., :K].to(q.dtype).view(len(q), -1, K)
            _scatter(out_NGRV, torch.bmm(p, _keys(v_GSV, group)), group)
        ctx.save_for_backward(q_GNRD, k_GSD, v_GSV, sinks_H, table_HX)
        ctx.work, ctx.dtypes = work, [None if x is None else x.dtype for x in (sinks_H, table_HX)]
        return out_NHV

    @staticmethod
    def backward(ctx: Any, grad_NHV: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q_GNRD, k_GSD, v_GSV, sinks_H, table_HX = ctx.saved_tensors
        work: _Work = ctx.work
        (G, N, R, D), V = q_GNRD.shape, v_GSV.shape[2]
        grad_GNRV = grad_NHV.reshape(N, G, R, V).transpose(0, 1)
        dq_NGRD = (grad_NHV.new_zeros if work.padded else grad_NHV.new_empty)(N, G, R, D)
        dk_GSD, dv_GSV = torch.zeros_like(k_GSD), torch.zeros_like(v_GSV)
        bias = _bias(table_HX, work)
        dsinks_GR = (
            None if sinks_H is None else torch.zeros(G, R, dtype=_compute_dtype(sinks_H.dtype), device=sinks_H.device)
        )
        dtable_HX = None if table_HX is None else torch.zeros_like(table_HX, dtype=_compute_dtype(table_HX.dtype))
        for group in work.groups:
            block, K = group[0], group[0].key_count
            q = _queries(q_GNRD, group)
            g = _queries(grad_GNRV, group)
            k, v = _keys(k_GSD, group), _keys(v_GSV, group)
            p, capped = work.weights(q, k, block, sinks_H, bias)
            dp = torch.bmm(g, v.transpose(1, 2)).to(p.dtype).view(*p.shape[:3], K)
            _add_keys(dv_GSV, torch.bmm(p[..., :K].to(q.dtype).view(len(q), -1, K).transpose(1, 2), g), group)
            if dsinks_GR is not None:
                dp = torch.nn.functional.pad(dp, (0, 1))
            ds = torch.ops.aten._softmax_backward_data(dp, p, -1, p.dtype)
            if dsinks_GR is not None:
                dsinks_GR += ds[..., K].sum(1)
                ds = ds[..., :K]
            if dtable_HX is not None and bias is not None:
                dtable_HX.index_add_(1, bias.at(block).view(-1), ds.transpose(1, 2).reshape(G * R, -1).to(dtable_HX))
            if capped is not None:
                ds = ds * (1 - capped.square())
            ds = ds.to(q.dtype).reshape(len(q), -1, K)
            _scatter(dq_NGRD, torch.bmm(ds, k), group, work.scale)
            _add_keys(dk_GSD, torch.bmm(ds.transpose(1, 2), q), group)
        return (
            dq_NGRD.view(N, G * R, D),
            dk_GSD.transpose(0, 1),
            dv_GSV.transpose(0, 1),
            None if dsinks_GR is None else dsinks_GR.view(-1).to(ctx.dtypes[0]),
            None if dtable_HX is None else dtable_HX.to(ctx.dtypes[1]),
            None,
        )


def _bias(table_HX: Tensor | None, work: _Work) -> _Bias | None:
    if table_HX is None:
        return None
    assert work.positions_N is not None
    return _Bias(table_HX, work.positions_N)


def _masked(scores_GnRK: Tensor, mask_nm: Tensor | None) -> None:
    """Adds a block's mask to the scores of its last keys, in place."""
    if mask_nm is not None:
        last = scores_GnRK[..., scores_GnRK.shape[-1] - mask_nm.shape[1] :]
        last.add_(mask_nm[:, None].to(scores_GnRK.dtype))  # of two dtypes, torch would copy both


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _queries(x_GNRD: Tensor, group: Sequence[TokenBlock]) -> Tensor:
    """The queries of a group of blocks, stacked: [blocks · G, n · R, D]."""
    parts = [x_GNRD[:, block.start : block.stop] for block in group]
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    return whole.reshape(len(whole), -1, x_GNRD.shape[-1])


def _scatter(into_NGRD: Tensor, outputs: Tensor, group: Sequence[TokenBlock], scale: float = 1.0) -> None:
    """What a group's queries have got, [blocks · G, n · R, D], times `scale`, where they stand."""
    G, R, D = into_NGRD.shape[1:]
    for block, rows in zip(group, outputs.view(len(group), G, -1, R, D), strict=True):
        torch.mul(rows.transpose(0, 1), scale, out=into_NGRD[block.start : block.stop])


def _keys(x_GSD: Tensor, group: Sequence[TokenBlock]) -> Tensor:
    """The keys or values of a group of blocks, stacked: [blocks · G, K, D]."""
    if len(group) > 1:
        return torch.cat([x_GSD[:, slice(*block.keys[0])] for block in group])
    parts = [x_GSD[:, start:stop] for start, stop in group[0].keys]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _add_keys(into_GSD: Tensor, grad: Tensor, group: Sequence[TokenBlock]) -> None:
    """grad: [blocks · G, K, D]."""
    for block, key_grad in zip(group, grad.view(len(group), len(into_GSD), *grad.shape[1:]), strict=True):
        at = 0
        for start, stop in block.keys:
            into_GSD[:, start:stop] += key_grad[:, at : at + stop - start]
            at += stop - start


# --- blocks
#
# A row is cut into blocks of at most `BLOCK` tokens: short documents that stand beside each other, or a piece of a long
# one. What a block needs of keys are one or two slices, so that no token is gathered or padded, and hardly a score is
# computed for nothing: work and memory follow the tokens, not documents × the longest of them.

BLOCK = 96
"""Larger blocks compute more scores that the mask throws away, smaller ones make more calls."""


@dataclass(frozen=True, eq=False)
class TokenBlock:
    """Queries `start` to `stop` of the flattened rows. keys: slices of the flattened keys, one behind the other. mask:
    [n, m], added to the scores of the last m keys (`as_mask`); None: every query sees all of them."""

    start: int
    stop: int
    keys: tuple[tuple[int, int], ...]
    mask: Tensor | None

    @property
    def key_count(self) -> int:
        return sum(stop - start for start, stop in self.keys)


def batch_blocks(blocks: Sequence[TokenBlock], max_size: int) -> list[tuple[TokenBlock, ...]]:
    """The blocks in groups that can be computed as one: as many queries, as many keys in one slice, the same mask. Of
    packed rows most are a piece of one long document, and alike. max_size: of queries × keys in a group, where it has
    several blocks."""
    waiting: dict[tuple[int, int, int], list[TokenBlock]] = {}
    groups: list[tuple[TokenBlock, ...]] = []
    for block in blocks:
        n, K = block.stop - block.start, block.key_count
        if len(block.keys) > 1 or 2 * n * K > max_size:
            groups.append((block,))
            continue
        key = n, K, id(block.mask)
        group = waiting.setdefault(key, [])
        group.append(block)
        if (len(group) + 1) * n * K > max_size:
            groups.append(tuple(waiting.pop(key)))
    return [*groups, *map(tuple, waiting.values())]


@dataclass(frozen=True)
class _Cut:
    """A block before its mask is made. last: how many of the keys need one. shape: what that depends on, where other
    blocks may have the same one."""

    start: int
    stop: int
    keys: tuple[tuple[int, int], ...]
    last: int
    shape: tuple[int, ...] | None


class Cutting:
    """The blocks of one kind of layer. causal: no token sees those behind it. window: as `AttentionOptions.window`, and
    shorter than the longest document."""

    def __init__(self, placement: Placement, causal: bool, window: int | None, device: torch.device) -> None:
        self._causal, self._window, self._device = causal, window, device
        self._numbers_N, self._positions_N = placement.numbers_N.to(device), placement.positions_N.to(device)
        masks: dict[tuple[int, ...], Tensor] = {}
        self.blocks: list[TokenBlock] = []
        for cut in self._cuts(placement.documents):
            mask = None
            if cut.last:
                mask = masks.get(cut.shape) if cut.shape is not None else None
                mask = self._mask(cut) if mask is None else mask
                if cut.shape is not None:  # a long document has many pieces of one shape
                    masks[cut.shape] = mask
            self.blocks.append(TokenBlock(cut.start, cut.stop, cut.keys, mask))

    @property
    def back(self) -> int | None:
        """How many tokens before it a token sees."""
        if self._window is None:
            return None
        return self._window - 1 if self._causal else self._window // 2

    def _cuts(self, documents: Sequence[PlacedDocument]) -> Iterator[_Cut]:
        for group in adjacent_groups(documents):
            if len(group) > 1:
                yield self._group(group)
            else:
                yield from self._pieces(group[0])

    def _group(self, group: Sequence[PlacedDocument]) -> _Cut:
        """Whole documents beside each other."""
        first, start, stop = group[0], group[0].start, group[-1].stop
        skipped = 0 if self.back is None else max(0, first.shared - self.back)
        keys = _slices((first.prefix + skipped, first.prefix + first.shared), (start, stop))
        count = sum(end - begin for begin, end in keys)
        return _Cut(start, stop, keys, self._masked(stop - start, count), None)

    def _masked(self, token_count: int, count: int) -> int:
        """How many of a block's keys get a mask, where its own tokens need one: without a window all of them see what
        is before them."""
        return token_count if self._window is None else count

    def _pieces(self, document: PlacedDocument) -> Iterator[_Cut]:
        """A document by itself, in pieces of equal size (about)."""
        for start, stop in pieces(document.start, document.stop):
            begin, end = (document.shared + at - document.start for at in (start, stop))
            low, high = 0 if self.back is None else max(0, begin - self.back), end
            if not self._causal:
                high = document.whole if self.back is None else min(document.whole, end + self.back)
            offset = document.start - document.shared
            keys = _slices(
                (document.prefix + low, document.prefix + document.shared),
                (max(document.start, offset + low), offset + high),
            )
            needed = self._causal or self._window is not None
            last = self._masked(end - begin, high - low) if needed else 0
            # What is masked are the last keys: where they stand beside the queries is all that it depends on.
            yield _Cut(start, stop, keys, last, (end - begin, last, high - begin))

    def _mask(self, cut: _Cut) -> Tensor:
        at = torch.cat([torch.arange(*span, device=self._device) for span in cut.keys])[-cut.last :]
        theirs, ours = self._numbers_N[at], self._numbers_N[cut.start : cut.stop, None]
        distance = self._positions_N[at] - self._positions_N[cut.start : cut.stop, None]
        # Of the keys that a block has, those before its own tokens are its documents' prefix, or its one document's.
        visible = (theirs == ours) | (at < cut.start)
        if self._causal:
            visible &= distance <= 0
        if self.back is not None:
            visible &= distance.abs() <= self.back
        return as_mask(visible)


def adjacent_groups(documents: Sequence[PlacedDocument], max_tokens: int = BLOCK) -> Iterator[list[PlacedDocument]]:
    """Documents in groups: those that stand directly beside each other, behind one prefix, and have at most so many
    tokens together; a longer one by itself."""
    group: list[PlacedDocument] = []
    for document in documents:
        if group:
            before = group[-1]
            adjacent = before.stop == document.start and before[2:4] == document[2:4]
            if not adjacent or document.stop - group[0].start > max_tokens:
                yield group
                group = []
        group.append(document)
    if group:
        yield group


def pieces(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """From start to stop in pieces of at most `BLOCK`, of equal size (about)."""
    count = -(-(stop - start) // BLOCK)
    edges = [start + (stop - start) * i // count for i in range(count + 1)]
    return itertools.pairwise(edges)


def as_mask(seen_nm: Tensor) -> Tensor:
    """What is added to scores, float32: 0 where a key is seen, else −∞."""
    return torch.zeros(seen_nm.shape, device=seen_nm.device).masked_fill_(~seen_nm, -torch.inf)


def _slices(*slices: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Those that hold something."""
    return tuple((start, stop) for start, stop in slices if start < stop)
