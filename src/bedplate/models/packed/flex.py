"""Attention of packed rows by torch's flex attention (https://arxiv.org/abs/2412.05496): one compiled kernel for all
`AttentionOptions`, told of documents as a mask of blocks that is made of plain numbers.

Blocks of `SIZE` tokens that no document has in common are not computed; those in which every query sees every key need
no mask. Neither the mask nor anything else is as large as all pairs of tokens. A sink takes its share of what the sum
of the weights is without it: out · sigmoid(log-sum − sink).

Shapes: N tokens of the flattened rows, H query heads, G key-value heads, D features of one head, V of its value, X
distances, b blocks of tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bedplate.models.layers.attention_options import PLAIN, AttentionOptions
from bedplate.models.packed.placement import Placement

if TYPE_CHECKING:  # it brings much of torch's compiler along
    from torch.nn.attention.flex_attention import BlockMask

SIZE = 128
"""Tokens of a block: what flex attention's kernels are made for."""


class FlexAttention:
    """As `BlockAttention`, by one kernel. On a CPU it has no backward pass."""

    def __init__(self, placement: Placement, causal: bool = True) -> None:
        self._placement, self._causal = placement, causal
        self._masks: dict[tuple[int | None, torch.device], BlockMask] = {}
        self._places: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}

    def __call__(
        self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGV: Tensor, options: AttentionOptions = PLAIN
    ) -> Tensor:
        from torch.nn.attention.flex_attention import AuxRequest

        q, k, v = (x.flatten(0, 1).transpose(0, 1)[None] for x in (q_BTHD, k_BTGD, v_BTGV))
        # Torch's compiler makes no CPU kernel of masks and scores that depend on numbers that change.
        kernel, device = _compiled(not q.is_cpu), q.device
        result: Any = kernel(
            q,
            k,
            v,
            score_mod=self._scores(options, device),
            block_mask=self._mask(options.window, device),
            scale=options.scale,
            enable_gqa=q.shape[1] != k.shape[1],
            return_aux=None if options.sinks is None else AuxRequest(lse=True),
        )
        if options.sinks is not None:
            out, aux = result
            result = out * torch.sigmoid(aux.lse - options.sinks[:, None].to(aux.lse.dtype))[..., None].to(out.dtype)
        out_BTHV = result[0].transpose(0, 1).reshape(*q_BTHD.shape[:3], v_BTGV.shape[3])
        if not self._placement.padded:
            return out_BTHV
        inside_BT = (self._place(device)[0][: q.shape[2]] >= 0).view(q_BTHD.shape[:2])
        return torch.where(inside_BT[..., None, None], out_BTHV, 0)

    def _place(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """For each token, up to whole blocks: its document's number (−1: padding), its position, and the number of the
        prefix that it stands behind (−2: none)."""
        if device not in self._places:
            documents = self._placement.documents
            number = {(document.row, document.segment): n for n, document in enumerate(documents)}
            behind = [number[member.row, 0] if member.shared else -2 for member in documents]
            numbers_N = self._placement.numbers_N
            behind_N = torch.tensor([*behind, -2])[numbers_N]
            room = -len(numbers_N) % SIZE
            columns = (numbers_N, -1), (self._placement.positions_N, 0), (behind_N, -2)
            document_numbers, two, three = (
                torch.nn.functional.pad(x, (0, room), value=fill).to(device) for x, fill in columns
            )
            self._places[device] = document_numbers, two, three
        return self._places[device]

    def _scores(self, options: AttentionOptions, device: torch.device) -> Callable[..., Tensor] | None:
        """What becomes of a scaled score."""
        if options.softcap is None and options.bias is None:
            return None
        cap, table_HX, longest = options.softcap, None, self._placement.longest
        positions_N = self._place(device)[1]
        if options.bias is not None:
            table_HX = options.bias(torch.arange(1 - longest, longest, device=device)[None, None])[0, :, 0]

        def changed(score: Tensor, b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
            if cap is not None:
                score = cap * torch.tanh(score / cap)
            if table_HX is not None:
                # What is masked anyway may lie farther apart than anything in one document.
                score = score + table_HX[h, (positions_N[kv] - positions_N[q] + longest - 1).clamp(0, 2 * longest - 2)]
            return score

        return changed

    def _mask(self, window: int | None, device: torch.device) -> BlockMask:
        if window is not None and (window if self._causal else window // 2) >= self._placement.longest:
            window = None
        if (window, device) not in self._masks:
            self._masks[window, device] = self._block_mask(window, device)
        return self._masks[window, device]

    def _block_mask(self, window: int | None, device: torch.device) -> BlockMask:
        from torch.nn.attention.flex_attention import BlockMask

        numbers_N, positions_N, behind_N = self._place(device)
        causal, back = self._causal, None if window is None else (window - 1 if self._causal else window // 2)

        def visible(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
            allowed = (numbers_N[q] == numbers_N[kv]) | (behind_N[q] == numbers_N[kv])
            distance = positions_N[kv] - positions_N[q]
            if causal:
                allowed = allowed & (distance <= 0)
            return allowed if back is None else allowed & (distance.abs() <= back)

        some_bb, all_bb = self._blocks(back)
        partly_bb = some_bb & ~all_bb
        parts: list[Tensor] = []
        for which_bb in (partly_bb, all_bb):
            order = which_bb.to(torch.int32).argsort(dim=1, descending=True, stable=True).to(torch.int32)
            parts += [which_bb.sum(1, dtype=torch.int32)[None, None].to(device), order[None, None].to(device)]
        N = self._placement.shape[0] * self._placement.shape[1]
        return BlockMask.from_kv_blocks(*parts, BLOCK_SIZE=SIZE, mask_mod=visible, seq_lengths=(N, N))

    def _blocks(self, back: int | None) -> tuple[Tensor, Tensor]:
        """Which blocks of keys a block of queries sees any of, and which of those wholly: bool [b, b], on the CPU."""
        numbers_N, positions_N, behind_N = (x.cpu() for x in self._place(torch.device("cpu")))
        numbers, positions, behind = (x.view(-1, SIZE) for x in (numbers_N, positions_N, behind_N))
        low, high = numbers.amin(1), numbers.amax(1)
        lowest = torch.where(numbers < 0, torch.iinfo(torch.int64).max, numbers).amin(1)  # of documents, not padding
        overlap = (lowest[:, None] <= high) & (lowest <= high[:, None])  # their ranges of documents meet
        for n in set(behind_N.tolist()) - {-2}:
            overlap |= (behind == n).any(1)[:, None] & (numbers == n).any(1)
        first, last = positions.amin(1), positions.amax(1)
        single = (low == high) & (low >= 0)
        whole = single[:, None] & single & (low[:, None] == low)
        if self._causal:
            at = torch.arange(len(numbers))
            overlap &= at <= at[:, None]
            whole &= last <= first[:, None]
        if back is not None:
            in_window = torch.maximum(last[:, None] - first, last - first[:, None]) <= back
            whole &= in_window
        return overlap, whole


@cache
def _compiled(shapes_change: bool) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=None if shapes_change else False)
