"""The interface of recurrent layers, which carry a state along a sequence.

Such a layer gives its layout a function from padded sequences and the states before them to outputs and the states
after; the layout knows which tokens form a sequence, where it begins, and its cached state (`Attend.recur`).

Shapes: S sequences of at most L tokens, C features that go in, E that come out.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

State = tuple[Tensor, ...]
"""The recurrent state of S sequences: tensors [S, ...], as `cache_layout` lists them for the layer."""


class Recurrence(Protocol):
    """Sequences [S, L, C] → [S, L, E], each token's output made of itself, those before it, and the state.

    lengths: int64 [S]; what stands behind a sequence's length is padding, which changes no state; None: no padding.
    before: the states at the first tokens; None: those of empty sequences.
    """

    def __call__(self, x_SLC: Tensor, lengths_S: Tensor | None, before: State | None) -> tuple[Tensor, State]: ...
