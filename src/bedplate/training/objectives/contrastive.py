"""Contrastive learning (InfoNCE, https://arxiv.org/abs/1807.03748): on pairs of texts, or on two crops of each text
(Contriever, https://arxiv.org/abs/2112.09118, section 3.1; lengths as in its appendix A.1).

Each anchor's candidates are the positives and the hard negatives of the whole step, of all ranks
(https://arxiv.org/abs/2004.04906, section 3.2); the logits are scaled cosines. sentence-transformers calls it
MultipleNegativesRankingLoss.

Shapes: P pairs, C candidates, B rows, T tokens of a row, N tokens in texts, D features.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor

from bedplate.core.errors import ConfigError, DataError
from bedplate.models.device_memory import sent
from bedplate.training.batch import NO_TARGET, PackedBatch, Texts, in_one_row, pooled
from bedplate.training.objectives import objective
from bedplate.training.ranks import ALONE, Ranks
from bedplate.training.sources import EpochSource, Shard

TokenIds = tuple[int, ...]


@dataclass(frozen=True)
class TextPair:
    """Token ids of an anchor, its positive, and any number of hard negatives. DataError for a text without tokens."""

    anchor: TokenIds
    positive: TokenIds
    id: str
    negatives: tuple[TokenIds, ...] = ()

    def __post_init__(self) -> None:
        if not all((self.anchor, self.positive, *self.negatives)):
            raise DataError(f"pair {self.id!r} has a text without tokens, so nothing can be learned from it")


@dataclass(frozen=True)
class PairBatch(Texts):
    """P anchors, then their P positives in the same order, then all negatives. texts: their total number."""

    texts: int


def pack_pairs(pairs: Sequence[TextPair]) -> PairBatch:
    """Packs pairs into one micro-batch. DataError when there are none."""
    if not pairs:
        raise DataError("a batch needs at least one pair")
    anchors, positives = [pair.anchor for pair in pairs], [pair.positive for pair in pairs]
    texts = [*anchors, *positives, *(negative for pair in pairs for negative in pair.negatives)]
    return PairBatch(*in_one_row(texts), tuple(pair.id for pair in pairs), len(texts))


class PairSource(EpochSource[PairBatch]):
    """Batches of pairs, shuffled each epoch. A rank's share of a step is one micro-batch, since its texts are
    contrasted with each other; pairs that do not fill the last step of an epoch are dropped.

    content: sha256 of the data behind the pairs; by default of the pairs. DataError for fewer pairs than one step or
    than ranks, duplicate ids, or a text longer than `context_length`.
    """

    made_of = "pairs"

    def __init__(
        self,
        pairs: Sequence[TextPair],
        batch_size: int,
        *,
        seed: int = 0,
        epochs: int = 1,
        context_length: int | None = None,
        content: str | None = None,
        shard: Shard = ALONE.shard,
    ) -> None:
        if batch_size < max(2, shard[1]):
            raise DataError(f"batch_size is {batch_size}: in a step there must be 2 pairs, and one for each rank")
        if len(pairs) < batch_size:
            raise DataError(f"{len(pairs)} pairs do not fill a step of {batch_size}")
        _check(pairs, context_length)
        self._pairs, self._seed = pairs, seed
        settings = {"batch_size": batch_size, "epochs": epochs, "seed": seed}
        super().__init__(len(pairs) // batch_size * batch_size, batch_size, epochs, shard, content, settings)

    def _hashed_content(self) -> Any:
        return [[pair.id, pair.anchor, pair.positive, *pair.negatives] for pair in self._pairs]

    def _steps(self, epoch: int) -> list[list[int]]:
        order = list(range(len(self._pairs)))
        random.Random(f"{self._seed}/{epoch}").shuffle(order)
        size = self._step_size
        return [order[start : start + size] for start in range(0, len(order) - size + 1, size)]

    def _micro_batches(self, numbers: list[int]) -> Iterator[PairBatch]:
        yield pack_pairs([self._pairs[number] for number in numbers])


def _check(pairs: Iterable[TextPair], context_length: int | None) -> None:
    ids: set[str] = set()
    for pair in pairs:
        if pair.id in ids:
            raise DataError(f"two pairs have the id {pair.id!r}; ids must differ, so that errors can name one")
        ids.add(pair.id)
        longest = max(map(len, (pair.anchor, pair.positive, *pair.negatives)))
        if context_length is not None and longest > context_length:
            raise DataError(
                f"pair {pair.id!r} has a text of {longest} tokens, but the context holds {context_length}; shorten it "
                "or leave it out (nothing is cut silently)"
            )


class Contrastive:
    """InfoNCE over pairs of texts. scale: inverse temperature. pooling: a text's vector is the mean of its tokens' last
    states, or the first token's. ranks: the ranks whose texts are candidates as well."""

    name: ClassVar[str] = "contrastive"
    roles: ClassVar[tuple[str, ...]] = ("policy",)
    scope: ClassVar[objective.Scope] = "global_batch"

    def __init__(self, scale: float = 20.0, pooling: str = "mean", ranks: Ranks = ALONE) -> None:
        if not 0 < scale < float("inf"):
            raise ConfigError(f"{self.name}: scale is {scale}: it must be a positive number")
        if pooling not in ("mean", "first"):
            raise ConfigError(f"{self.name}: pooling is {pooling!r}: it is mean or first")
        self._scale, self._pooling, self._ranks = scale, pooling, ranks

    def weights(self, batch: PairBatch) -> dict[str, float]:
        """The number of pairs."""
        return {self.name: float(len(batch.ids))}

    def __call__(self, models: objective.Models, batch: PairBatch) -> dict[str, objective.Term]:
        pairs = len(batch.ids)
        states_TD = models["policy"](batch.inputs).hidden[0]
        vectors = F.normalize(pooled(states_TD, batch.segments[0], batch.texts, self._pooling), dim=-1)
        return {self.name: info_nce(vectors[:pairs], vectors[pairs:], self._scale, self._ranks)}


def info_nce(anchors_PD: Tensor, own_CD: Tensor, scale: float, ranks: Ranks) -> objective.Term:
    """Summed cross-entropy of each anchor's positive, at the anchor's index among this rank's candidates, against the
    candidates of all ranks."""
    pairs = len(anchors_PD)
    candidates_CD, first = ranks.gather_rows(own_CD)
    logits_PC = scale * anchors_PD @ candidates_CD.T
    right_P = torch.arange(first, first + pairs, device=logits_PC.device)
    correct = (logits_PC.detach().argmax(1) == right_P).sum().to(logits_PC.dtype)
    loss: Tensor = F.cross_entropy(logits_PC, right_P, reduction="sum")
    return objective.Term(loss, float(pairs), {"accuracy": correct})


Half = Annotated[float, Field(gt=0, le=0.5)]


class Crops(objective.Corrupting):
    """Contrastive learning on two random crops of each text.

    shortest, longest: range of a crop's share of its text; length and place are uniform, and the two may overlap.
    scale: inverse temperature. pooling: must match the pooling of later embeddings. A crop stands between the special
    tokens that the tokenizer puts around a text. The candidates of a pair are the second crops of its step, of all
    ranks, so a step is one micro-batch.
    """

    name: ClassVar[str] = Contrastive.name
    scope: ClassVar[objective.Scope] = "global_batch"
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

    def corruption(self, words: objective.CorruptionVocabulary) -> objective.Corruption:
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

        def bare(ids: objective.Ids) -> list[int]:
            text: list[int] = ids.tolist()
            first = len(starts) if starts and text[: len(starts)] == starts else 0
            last = len(text) - 1 if text[-1] == eos or [text[-1]] == ends else len(text)
            return text[first:last] or text

        def corrupt(batch: PackedBatch, draws: Sequence[np.random.Generator]) -> PackedBatch:
            crops = [
                crop(bare(ids), draws[place.row]) for place, ids in objective.documents_of(batch) for _ in range(2)
            ]
            laid = objective.relaid(batch, crops, of_each=2)
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

    def __call__(self, models: objective.Models, batch: PackedBatch) -> dict[str, objective.Term]:
        states_BTD = models["policy"](batch.inputs).hidden
        numbers, texts = batch.placement.numbers_N, len(batch.placement.documents)
        positions = (numbers >= 0).nonzero().squeeze(1)
        states_ND = states_BTD.flatten(0, 1).index_select(0, sent(positions, states_BTD.device))
        segments_N = sent(numbers[positions] + 1, states_BTD.device)
        vectors = F.normalize(pooled(states_ND, segments_N, texts, self.pooling), dim=-1)
        last = texts // 2 * 2
        return {self.name: info_nce(vectors[0:last:2], vectors[1:last:2], self.scale, self._ranks)}
