"""Two crops of one text are told from the crops of all other texts of the step: an embedder learns from texts as they
are (independent cropping, Contriever, https://arxiv.org/abs/2112.09118, section 3.1; lengths as in its appendix A.1).

Shapes: B rows, T tokens a row, N tokens in texts, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, PrivateAttr, model_validator

from bedplate.core.errors import ConfigError
from bedplate.models.device_memory import sent
from bedplate.training.batch import NO_TARGET, PackedBatch
from bedplate.training.objectives.contrastive import Contrastive, told_apart
from bedplate.training.objectives.corrupting import (
    Corrupting,
    Corruption,
    CorruptionVocabulary,
    Ids,
    documents_of,
    relaid,
)
from bedplate.training.objectives.objective import Models, Scope, Term
from bedplate.training.ranks import ALONE, Ranks
from bedplate.training.texts import pooled

Half = Annotated[float, Field(gt=0, le=0.5)]


class Crops(Corrupting):
    """shortest, longest: shares of a text that a crop has, its length drawn evenly between them, its place evenly too;
    the two may overlap. scale: one over the temperature. pooling: as what embeds with the base pools.

    A crop stands between what the tokenizer sets around a text. Two crops are one pair; the candidates of a pair are
    the second crops of its step, of all ranks, so that a step is one micro-batch.
    """

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

    @property
    def name(self) -> str:
        return Contrastive.name

    @property
    def architectures(self) -> tuple[str, ...]:
        return ("encoder", "decoder")

    @property
    def scope(self) -> Scope:
        return "global_batch"

    @property
    def target(self) -> str:
        return "pair"

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
