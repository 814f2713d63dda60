"""The inputs and outputs of every model. Shapes: B rows, T tokens a row, D features, V vocabulary."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bedplate.models.layers.attention import Attend, RowAttention
from bedplate.models.layers.experts import Routing
from bedplate.models.packed.packed_attention import PackedAttention
from bedplate.models.packed.placement import Placement
from bedplate.models.precision import rounded


@dataclass(frozen=True)
class Inputs:
    """A batch of rows.

    tokens: int64 [B, T].
    positions: int64 [B, T]; by default each document counts from 0, or from the end of its row's shared prefix.
    segments: int64 [B, T], or None when each row is one whole document. −1 is padding; 0 the row's shared prefix, at
        its start; 1, 2, … the row's documents, each contiguous. A token sees its own document and the row's prefix,
        and nothing else, so that packed documents equal separate ones.
    placement: where the segments' documents stand, known without reading them; positions are the default ones then.
    last: the largest of the positions, where that is known without reading them.
    types: int64 [B, T], of which part of its document a token is (0, 1, …), for models that tell them apart; None: all
        are 0.
    encoder: of an encoder–decoder, what its encoder reads, while `tokens` are the decoder's: as many rows, and where
        these hold several documents, as many of them under the same segments.
    vectors: [B, T, D], features that stand in the place of tokens' embeddings, scaled as those are where the model
        scales them, where `vector_mask`, bool [B, T], is true.
    """

    tokens: Tensor
    positions: Tensor | None = None
    segments: Tensor | None = None
    vectors: Tensor | None = None
    vector_mask: Tensor | None = None
    types: Tensor | None = None
    encoder: Inputs | None = None
    placement: Placement | None = None
    last: int | None = None

    def embedded(self, table: nn.Embedding, scale: float = 1.0) -> Tensor:
        """Features [B, T, D] in the table's dtype: tokens' rows of the table times `scale`, and the vectors where they
        are given. The scale is rounded to the table's dtype first, as Gemma's is."""
        rows = table(self.tokens if self.vector_mask is None else self.tokens.masked_fill(self.vector_mask, 0))
        rows = rows if scale == 1 else rows * rounded(scale, rows.dtype)
        if self.vectors is None or self.vector_mask is None:
            return rows
        return torch.where(self.vector_mask[..., None], self.vectors.to(rows.dtype), rows)

    def resolved_positions(self) -> Tensor:
        """`positions`, or the default ones, int64 [B, T]."""
        if self.positions is not None:
            return self.positions
        count = torch.arange(self.tokens.shape[1], device=self.tokens.device).expand_as(self.tokens)
        return count if self.segments is None else segment_positions(self.segments)

    @property
    def known_last(self) -> int | None:
        """The largest of the positions, if that need not be read; −1 where there is none."""
        if self.placement is not None:
            return self.placement.longest - 1
        return self.last if self.tokens.numel() else -1

    def last_position(self) -> int:
        """The largest of the positions, which are read where it is not known; −1 where there is none."""
        last = self.known_last
        return int(self.resolved_positions().max()) if last is None else last

    def placed(self) -> Placement | None:
        """`placement`, or what the segments say, which are read then; None where each row is one document."""
        if self.segments is None or self.placement is not None:
            return self.placement
        return Placement.of(self.segments)

    def layout(self, causal: bool) -> Attend:
        """The attention layout of a pass without a cache."""
        placement = self.placed()
        return RowAttention(causal) if placement is None else PackedAttention(placement, causal)


@dataclass
class Outputs:
    """hidden: [B, T, D] after the last norm (or after `depth` blocks, before it); captured: name → [B, T, D]. aux: what
    each layer with experts did with the tokens."""

    hidden: Tensor
    captured: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    aux: tuple[Routing, ...] = ()


def segment_positions(segments: Tensor) -> Tensor:
    """Positions int64 [B, T] for `segments` [B, T]: documents restart after their row's shared prefix; padding is 0."""
    count = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    starts_here = torch.ones_like(segments, dtype=torch.bool)
    starts_here[:, 1:] = segments[:, 1:] != segments[:, :-1]
    start = torch.where(starts_here, count, torch.zeros_like(count)).cummax(dim=1).values
    prefix = (segments == 0).sum(dim=1, keepdim=True)
    positions = count - start + torch.where(segments > 0, prefix, torch.zeros_like(prefix))
    return torch.where(segments < 0, torch.zeros_like(positions), positions)
