"""What a training step consumes: an example, and the packed batch made of several. Shapes: B rows, T tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bedplate.core.errors import DataError
from bedplate.models.inputs import Inputs

NO_TARGET = -100
"""In `Batch.targets`: no loss here (torch's own `ignore_index`)."""


@dataclass(frozen=True)
class Example:
    """Token ids with the ones to be learned: `loss[i]` says that token i is predicted from the tokens before it.

    Raises DataError when the two differ in length, none carries loss, or the first does (nothing stands before it).
    """

    ids: tuple[int, ...]
    loss: tuple[bool, ...]
    id: str

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.loss):
            raise DataError(f"example {self.id!r}: {len(self.ids)} tokens, but a loss mask of {len(self.loss)}")
        if not any(self.loss):
            raise DataError(
                f"example {self.id!r}: none of its {len(self.ids)} tokens carries loss, so nothing can be learned "
                "from it; give it a completion, or leave it out"
            )
        if self.loss[0]:
            raise DataError(f"example {self.id!r}: its first token carries loss, but nothing stands before it")

    @property
    def first_loss(self) -> int:
        """Index of the first token that carries loss."""
        return self.loss.index(True)


@dataclass(frozen=True)
class Batch:
    """Packed rows.

    tokens: int64 [B, T]; segments, positions: int64 [B, T] as in `Inputs`; targets: int64 [B, T], the token that
    follows in the same document where it carries loss, else −100. ids: the examples (or pieces) by row and segment.
    """

    tokens: Tensor
    segments: Tensor
    positions: Tensor
    targets: Tensor
    ids: tuple[str, ...]

    @property
    def inputs(self) -> Inputs:
        """The model's side of the batch."""
        return Inputs(self.tokens, self.positions, self.segments)

    @property
    def token_count(self) -> int:
        """Tokens that run through the model, padding apart; a shared prefix counts once."""
        return int((self.segments >= 0).sum())

    @property
    def target_count(self) -> int:
        """Tokens that carry loss."""
        return int((self.targets != NO_TARGET).sum())

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        moved = {name: getattr(self, name).to(device) for name in ("tokens", "segments", "positions", "targets")}
        return replace(self, **moved)
