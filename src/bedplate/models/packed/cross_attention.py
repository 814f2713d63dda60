"""A decoder's layout beside the states of its encoder (https://arxiv.org/abs/1706.03762, section 3.2.3).

Shapes: B rows, T tokens of the decoder, S of the encoder, H query heads, D features of one head, E of the encoder's
states.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from bedplate.core.errors import UsageError
from bedplate.models.layers.attention import Attend, masked_attention
from bedplate.models.layers.attention_options import PLAIN, AttentionOptions, KeysOf, Recurrence
from bedplate.models.packed.block_attention import BLOCK, TokenBlock, adjacent_groups, as_mask, block_attention, pieces
from bedplate.models.packed.placement import Placement

KEYS = 4 * BLOCK
"""Documents whose texts have more tokens together are blocks by themselves."""


class EncoderStatesLayout:
    """A decoder's own layout, beside the encoder's states of this pass.

    Where neither side has documents, each row is one. Otherwise a token sees the encoder's tokens of its own row and
    segment.
    """

    is_cached = False

    def __init__(
        self, self_attend: Attend, states_BSE: Tensor, ours: Placement | None = None, theirs: Placement | None = None
    ) -> None:
        if (ours is None) != (theirs is None):
            raise UsageError("segments are given for one side of an encoder–decoder and not for the other")
        self._self_attend, self._states, self._ours = self_attend, states_BSE, ours
        self._blocks = [] if ours is None or theirs is None else _blocks(ours, theirs, states_BSE.device)

    def __call__(
        self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGV: Tensor, options: AttentionOptions = PLAIN
    ) -> Tensor:
        return self._self_attend(layer, q_BTHD, k_BTGD, v_BTGV, options)

    def recur(self, layer: int, run: Recurrence, x_BTC: Tensor) -> Tensor:
        return self._self_attend.recur(layer, run, x_BTC)

    def cross_attend(self, layer: int, q_BTHD: Tensor, options: AttentionOptions, keys_of: KeysOf) -> Tensor:
        k_BSGD, v_BSGD = keys_of(self._states)
        if self._ours is not None:
            options.check_supported("attention across packed documents", "scale", "softcap", "sinks")
            q, k, v = (x.flatten(0, 1) for x in (q_BTHD, k_BSGD, v_BSGD))
            return block_attention(q, k, v, self._blocks, options, padded=self._ours.padded).view(q_BTHD.shape)
        if options.is_plain:
            gqa = q_BTHD.shape[2] != k_BSGD.shape[2]
            q, k, v = (x.transpose(1, 2) for x in (q_BTHD, k_BSGD, v_BSGD))
            return F.scaled_dot_product_attention(q, k, v, scale=options.scale, enable_gqa=gqa).transpose(1, 2)
        seen_BTS = torch.ones(1, q_BTHD.shape[1], k_BSGD.shape[1], dtype=torch.bool, device=q_BTHD.device)
        return masked_attention(q_BTHD, k_BSGD, v_BSGD, seen_BTS, options)


def _blocks(ours: Placement, theirs: Placement, device: torch.device) -> list[TokenBlock]:
    """Blocks that pair each document of the decoder with the encoder's document of the same row and number. Short ones
    that stand beside each other, as their texts do, are one block."""
    read = {(source.row, source.segment): source for source in theirs.documents}
    missing = next(
        (
            candidate
            for candidate in ours.documents
            if candidate.segment == 0 or (candidate.row, candidate.segment) not in read
        ),
        None,
    )
    if missing is not None:
        raise UsageError(f"row {missing.row}: document {missing.segment} has no text for the encoder of its own")
    blocks: list[TokenBlock] = []
    for group in adjacent_groups(ours.documents):
        texts = [read[member.row, member.segment] for member in group]
        together = all(earlier.stop == later.start for earlier, later in itertools.pairwise(texts))
        if together and len(group) > 1 and sum(text.token_count for text in texts) <= KEYS:
            at = torch.arange(len(group))
            queries, keys = (
                at.repeat_interleave(torch.tensor([placed.token_count for placed in side])) for side in (group, texts)
            )
            mask, span = as_mask(queries[:, None] == keys).to(device), ((texts[0].start, texts[-1].stop),)
            blocks.append(TokenBlock(group[0].start, group[-1].stop, span, mask))
            continue
        for document, text in zip(group, texts, strict=True):
            span = ((text.start, text.stop),)
            blocks += [TokenBlock(start, stop, span, None) for start, stop in pieces(document.start, document.stop)]
    return blocks
