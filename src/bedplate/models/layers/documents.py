"""Layers that keep a state while they read a sequence, and what they are told the sequences are.

Such a layer gives its layout a function from padded sequences and the states before them to outputs and the states
after; the layout knows which tokens are one sequence, where it begins, and what was kept of it (`Attend.recur`).

Shapes: B rows, T tokens, S sequences of at most L tokens, C features that go in, E that come out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

State = tuple[Tensor, ...]
"""What is kept of each of S sequences, [S, ...] each, as `cache_layout` lists them for the layer."""


class Recurrence(Protocol):
    """Sequences [S, L, C] → [S, L, E], each token's output made of itself, those before it, and the state.

    lengths: int64 [S]; what stands behind a sequence's length is padding, which changes no state; None: no padding.
    before: the states at the first tokens; None: those of empty sequences.
    """

    def __call__(self, x_SLC: Tensor, lengths_S: Tensor | None, before: State | None) -> tuple[Tensor, State]: ...


class Documents:
    """The documents of packed rows (see `Inputs.segments`) as sequences, each behind its row's prefix. Padding's
    outputs are zero."""

    def __init__(self, segments_BT: Tensor) -> None:
        B, T = segments_BT.shape
        flat, device = segments_BT.reshape(-1), segments_BT.device
        key = torch.arange(B, device=device).repeat_interleave(T) * (T + 2) + flat + 1
        tokens = (flat >= 0).nonzero().squeeze(1)
        starts = torch.ones_like(tokens, dtype=torch.bool)
        starts[1:] = key[tokens][1:] != key[tokens][:-1]
        document = starts.cumsum(0) - 1
        begin_S = starts.nonzero().squeeze(1)
        own_S = torch.diff(begin_S, append=torch.tensor([len(tokens)], device=device))
        first_S = tokens[begin_S]
        row_S = first_S // T
        prefix_S = torch.where(flat[first_S] > 0, (segments_BT == 0).sum(1)[row_S], 0)
        self.lengths_S = prefix_S + own_S
        at_L = torch.arange(int(self.lengths_S.max()) if len(tokens) else 0, device=device)
        inside = torch.where(at_L < prefix_S[:, None], (row_S * T)[:, None], (first_S - prefix_S)[:, None]) + at_L
        self._inside_SL = at_L < self.lengths_S[:, None]
        self._gather_SL = torch.where(self._inside_SL, inside, first_S[:, None])
        self._tokens = tokens
        offset = torch.arange(len(tokens), device=device) - begin_S[document] + prefix_S[document]
        self._back = document * len(at_L) + offset

    def recur(self, run: Recurrence, x_BTC: Tensor) -> Tensor:
        """Each document by itself, [B, T, E]."""
        B, T, C = x_BTC.shape
        x_SLC = x_BTC.reshape(B * T, C).index_select(0, self._gather_SL.reshape(-1))
        y_SLE, _ = run(x_SLC.view(*self._gather_SL.shape, C), self.lengths_S, None)
        y = y_SLE.reshape(-1, y_SLE.shape[2])
        return y.new_zeros(B * T, y.shape[1]).index_copy(0, self._tokens, y[self._back]).view(B, T, -1)


def of_lengths(lengths: Sequence[int], device: torch.device) -> Documents:
    """The documents of one row without padding: `lengths` of its prefix (or 0) and of each document."""
    counts = torch.tensor(lengths, device=device)
    return Documents(torch.arange(len(lengths), device=device).repeat_interleave(counts)[None])
