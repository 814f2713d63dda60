"""Texts that belong together are told from all others of the step (InfoNCE, https://arxiv.org/abs/1807.03748).

Each anchor's candidates are the positives and the hard negatives of the whole step, of all ranks
(https://arxiv.org/abs/2004.04906, section 3.2); the logits are cosines times a scale. sentence-transformers calls it
MultipleNegativesRankingLoss. Shapes: P pairs, C candidates, D features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bedplate.core.errors import ConfigError
from bedplate.training.objectives.objective import Models, Scope, Term
from bedplate.training.objectives.pairs import PairBatch
from bedplate.training.ranks import ALONE, Ranks
from bedplate.training.texts import pooled


class Contrastive:
    """scale: one over the temperature. pooling: a text's vector is the mean of its tokens' last states, or the first
    one's. ranks: whose texts are candidates too."""

    name: str = "contrastive"
    roles: tuple[str, ...] = ("policy",)
    scope: Scope = "global_batch"

    def __init__(self, scale: float = 20.0, pooling: str = "mean", ranks: Ranks = ALONE) -> None:
        if not 0 < scale < float("inf"):
            raise ConfigError(f"{self.name}: scale is {scale}: it must be a positive number")
        if pooling not in ("mean", "first"):
            raise ConfigError(f"{self.name}: pooling is {pooling!r}: it is mean or first")
        self._scale, self._pooling, self._ranks = scale, pooling, ranks

    def weights(self, batch: PairBatch) -> dict[str, float]:
        """The number of pairs."""
        return {self.name: float(len(batch.ids))}

    def __call__(self, models: Models, batch: PairBatch) -> dict[str, Term]:
        pairs = len(batch.ids)
        states_TD = models["policy"](batch.inputs).hidden[0]
        vectors = F.normalize(pooled(states_TD, batch.segments[0], batch.texts, self._pooling), dim=-1)
        return {self.name: told_apart(vectors[:pairs], vectors[pairs:], self._scale, self._ranks)}


def told_apart(anchors_PD: Tensor, own_CD: Tensor, scale: float, ranks: Ranks) -> Term:
    """Each anchor's positive, which stands at its place among this rank's candidates, against those of all ranks."""
    pairs = len(anchors_PD)
    candidates_CD, first = ranks.joined(own_CD)
    logits_PC = scale * anchors_PD @ candidates_CD.T
    right_P = torch.arange(first, first + pairs, device=logits_PC.device)
    correct = (logits_PC.detach().argmax(1) == right_P).sum().to(logits_PC.dtype)
    lost: Tensor = F.cross_entropy(logits_PC, right_P, reduction="sum")
    return Term(lost, float(pairs), {"accuracy": correct})
