"""Contrastive learning (InfoNCE, https://arxiv.org/abs/1807.03748) on two crops of each text (Contriever,
https://arxiv.org/abs/2112.09118, section 3.1; lengths as in its appendix A.1).

Each anchor's candidates are the positives of the whole step, of all ranks (https://arxiv.org/abs/2004.04906, section
3.2); the logits are scaled cosines. sentence-transformers calls it MultipleNegativesRankingLoss.

Shapes: P pairs, C candidates, B rows, T tokens of a row, N tokens in texts, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor

from bedplate.core.errors import ConfigError
from bedplate.models.device_memory import sent
from bedplate.training.batch import NO_TARGET, PackedBatch, pooled
from bedplate.training.objectives.objective import (
    Corrupting,
    Corruption,
    CorruptionVocabulary,
    Ids,
    Models,
    Scope,
    Term,
    documents_of,
    relaid,
)
from bedplate.training.ranks import ALONE, Ranks


def told_apart(anchors_PD: Tensor, own_CD: Tensor, scale: float, ranks: Ranks) -> Term:
    """Each anchor's positive, which stands at its place among this rank's candidates, against those of all ranks."""
    pairs = len(anchors_PD)
    candidates_CD, first = ranks.joined(own_CD)
    logits_PC = scale * anchors_PD @ candidates_CD.T
    right_P = torch.arange(first, first + pairs, device=logits_PC.device)
    correct = (logits_PC.detach().argmax(1) == right_P).sum().to(logits_PC.dtype)
    lost: Tensor = F.cross_entropy(logits_PC, right_P, reduction="sum")
    return Term(lost, float(pairs), {"accuracy": correct})


Half = Annotated[float, Field(gt=0, le=0.5)]


class Crops(Corrupting):
    """Contrastive learning on two random crops of each text.

    shortest, longest: range of a crop's share of its text; length and place are uniform, and the two may overlap.
    scale: one over the temperature. pooling: must match what embeds with the base. A crop stands between the tokens
    that the tokenizer sets around a text. The candidates of a pair are the second crops of its step, of all ranks, so a
    step is one micro-batch.
    """

    name: ClassVar[str] = "contrastive"
    scope: ClassVar[Scope] = "global_batch"
    architectures: ClassVar[tuple[str, ...]] = ("encoder", "decoder")
    target: ClassVar[str] = "pair"

    shortest: Half = 0.05
    longest: Half = 0.5
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 20.0
    pooling: Literal["mean", "first"] = "mean"

    _ranks: Ranks = PrivateAttr(default=ALONE)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.shortest > self.longest:
            raise ValueError(f"shortest is {self.shortest:g}, and longest {self.longest:g}")
        return self

    def for_ranks(self, ranks: Ranks) -> Self:
        clone = self.model_copy()
        clone._ranks = ranks
        return clone

    def corruption(self, words: CorruptionVocabulary) -> Corruption:
        if words.pooling != self.pooling:
            raise ConfigError(
                f"the objective {self.name} pools by {self.pooling}, and what embeds with this model by "
                f"{words.pooling}: set objective_settings.pooling, which is mean or first"
            )
        tokenizer = words.tokenizer
        starts, ends, eos = list(tokenizer.prompt_start), list(tokenizer.prompt_end), tokenizer.eos_id

        def crop(text: list[int], draw: np.random.Generator) -> list[int]:
            share = self.shortest + (self.longest - self.shortest) * draw.random()
            length = max(1, round(share * len(text)))
            at = int(draw.integers(0, len(text) - length + 1))
            return [*starts, *text[at : at + length], *ends]

        def bare(ids: Ids) -> list[int]:
            text: list[int] = ids.tolist()
            first = len(starts) if starts and text[: len(starts)] == starts else 0
            last = len(text) - 1 if text[-1] == eos or [text[-1]] == ends else len(text)
            return text[first:last] or text

        def corrupt(batch: PackedBatch, draws: Sequence[np.random.Generator]) -> PackedBatch:
            crops = [crop(bare(ids), draws[place.row]) for place, ids in documents_of(batch) for _ in range(2)]
            laid = relaid(batch, crops, of_each=2)
            return replace(
                laid,
                targets=torch.full_like(laid.targets, NO_TARGET),
                learned=laid.learned[:0],
                losses=(1,) * (len(crops) // 2),
            )

        return corrupt

    def weights(self, batch: PackedBatch) -> dict[str, float]:
        """The number of pairs."""
        return {self.name: float(len(batch.placement.documents) // 2)}

    def __call__(self, models: Models, batch: PackedBatch) -> dict[str, Term]:
        states_BTD = models["policy"](batch.inputs).hidden
        numbers, texts = batch.placement.numbers_N, len(batch.placement.documents)
        positions = (numbers >= 0).nonzero().squeeze(1)
        states_ND = states_BTD.flatten(0, 1).index_select(0, sent(positions, states_BTD.device))
        segments_N = sent(numbers[positions] + 1, states_BTD.device)
        vectors = F.normalize(pooled(states_ND, segments_N, texts, self.pooling), dim=-1)
        last = texts // 2 * 2
        return {self.name: told_apart(vectors[0:last:2], vectors[1:last:2], self.scale, self._ranks)}
