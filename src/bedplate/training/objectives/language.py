"""Next-token prediction, on documents or on completions only. Shapes: N loss positions, D features, V vocabulary."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bedplate.core.errors import DataError
from bedplate.training.batch import PackedBatch
from bedplate.training.objectives.objective import AnyModel, Models, Scope, Term
from bedplate.training.packed_attention import training_attention

HEAD_ROWS = 512
"""Logits exist for so many positions at a time: 512 × 49,152 in float32 are 100 MB, 8,192 would be 1.6 GB."""


def token_losses(model: AnyModel, hidden_ND: Tensor, targets_N: Tensor, rows: int = HEAD_ROWS) -> Tensor:
    """Summed cross-entropy (a scalar, in float32 or wider) of `targets_N` given the last hidden states.

    With more than `rows` positions the logits are made, and made again for the gradient, piece by piece.
    """
    if len(targets_N) <= rows:
        return _cross_entropy(model, hidden_ND, targets_N)
    pieces = zip(hidden_ND.split(rows), targets_N.split(rows), strict=True)
    losses = [checkpoint(_cross_entropy, model, h, t, use_reentrant=False, preserve_rng_state=False) for h, t in pieces]
    return torch.stack(losses).sum()


def _cross_entropy(model: AnyModel, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
    logits_NV = model.head(hidden_ND)
    wide = torch.promote_types(logits_NV.dtype, torch.float32)
    return F.cross_entropy(logits_NV.to(wide), targets_N, reduction="sum")


class NextToken:
    """Every token of a document is predicted from the ones before it. The head runs only where there is a target."""

    name: str = "next_token"
    roles: tuple[str, ...] = ("policy",)
    scope: Scope = "row"

    def weights(self, batch: PackedBatch) -> dict[str, float]:
        """The number of targets."""
        return {self.name: float(batch.target_count)}

    def __call__(self, models: Models, batch: PackedBatch) -> dict[str, Term]:
        model, learned = models["policy"], batch.learned
        attend = training_attention(batch, next(model.parameters()).dtype)
        hidden_BTD = model(batch.inputs, attend).hidden
        hidden_ND = hidden_BTD.reshape(-1, hidden_BTD.shape[-1]).index_select(0, learned)
        targets_N = batch.targets.reshape(-1).index_select(0, learned)
        return {self.name: Term(token_losses(model, hidden_ND, targets_N), float(len(learned)))}


class Sft(NextToken):
    """Supervised fine-tuning: the same mathematics, and every example must have a completion to learn."""

    name: str = "sft"

    def weights(self, batch: PackedBatch) -> dict[str, float]:
        """The number of targets. Raises DataError for an example without any."""
        for name, losses in zip(batch.ids, batch.losses, strict=True):
            if not losses:
                raise DataError(f"example {name!r}: no token carries loss, so nothing can be learned from it")
        return super().weights(batch)
