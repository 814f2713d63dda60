"""Packed rows as one padded block of documents, and back.

Shapes: B rows, T tokens, P documents, L tokens of the longest, N tokens that are no padding, H heads, D features.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor


class PaddedDocuments:
    """Where the documents of packed rows stand (see `Inputs.segments`): runs of one (row, segment) pair.

    tokens: int64 [N], flat numbers of the tokens that are no padding. document, offset: int64 [N], which one each is
    of, and where in it. begin, length: int64 [P]. gather: int64 [P, L], flat numbers of each document's tokens; the
    places after its end hold its first. inside: bool [P, L], whether a place is none of those.
    """

    def __init__(self, segments_BT: Tensor) -> None:
        B, T = segments_BT.shape
        self._shape = (B, T)
        self._flat = flat = segments_BT.reshape(-1)
        key = torch.arange(B, device=flat.device).repeat_interleave(T) * (T + 2) + flat + 1
        self.tokens = tokens = (flat >= 0).nonzero().squeeze(1)
        starts = torch.ones_like(tokens, dtype=torch.bool)
        starts[1:] = key[tokens][1:] != key[tokens][:-1]
        self.document = starts.cumsum(0) - 1
        self.begin = starts.nonzero().squeeze(1)
        self.length = torch.diff(self.begin, append=torch.tensor([len(tokens)], device=flat.device))
        L = int(self.length.max()) if len(self.length) else 0
        self.offset = torch.arange(len(tokens), device=flat.device) - self.begin[self.document]
        self.offsets = torch.arange(L, device=flat.device)
        self.inside_PL = self.offsets < self.length[:, None]
        place_PL = torch.where(self.inside_PL, self.begin[:, None] + self.offsets, self.begin[:, None])
        self.gather_PL = tokens[place_PL]

    @cached_property
    def names(self) -> list[tuple[int, int]]:
        """Each document's row and segment."""
        first = self.tokens[self.begin]
        return list(zip((first // self._shape[1]).tolist(), self._flat[first].tolist(), strict=True))

    @staticmethod
    def rows(x_BTHD: Tensor, index: Tensor) -> Tensor:
        """Tokens picked by their flat number, [*index.shape, H, D]."""
        B, T, H, D = x_BTHD.shape
        return x_BTHD.reshape(B * T, H * D).index_select(0, index.reshape(-1)).view(*index.shape, H, D)

    def back(self, x_PLHD: Tensor) -> Tensor:
        """The block's tokens in their rows again, [B, T, H, D]; padding's are zero."""
        (B, T), (H, D) = self._shape, x_PLHD.shape[2:]
        picked = x_PLHD.reshape(-1, H * D).index_select(0, self.document * x_PLHD.shape[1] + self.offset)
        if len(self.tokens) == B * T:
            return picked.view(B, T, H, D)
        return picked.new_zeros(B * T, H * D).index_copy(0, self.tokens, picked).view(B, T, H, D)
