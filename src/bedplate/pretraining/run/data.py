"""The data of a run, whichever way it is given: tokenizer, batch source, counts by source; and the loss on held-out
texts: nats per token, and bits per byte, which do not depend on the tokenizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from bedplate.pretraining.page.page import TOKENS_PREFIX
from bedplate.pretraining.plan.sizes import RowShape
from bedplate.text.tokenizer import Tokenizer
from bedplate.training.batch import PackedBatch
from bedplate.training.objectives.corrupting import Corrupting, corrupted
from bedplate.training.objectives.language import NextToken
from bedplate.training.objectives.objective import AnyModel, CorruptionVocabulary, TextObjective, evaluate_loss
from bedplate.training.raw_text import held_batches
from bedplate.training.sources import BatchSource, Shard, TransformedSource


@dataclass(frozen=True)
class HeldOut:
    """Documents that are kept from training. ids: the tokens of each, with the end; texts: the same as written.
    general: not what is to be learned, but what may be forgotten."""

    name: str
    ids: Sequence[np.ndarray]
    texts: Sequence[str]
    general: bool = False

    @property
    def bytes(self) -> int:
        return sum(len(text.encode()) for text in self.texts)

    def first_documents(self, limit: int | None) -> HeldOut:
        """Those of at most `limit` tokens (at least one; None: all)."""
        chosen = tokens = 0
        for ids in self.ids:
            if chosen and limit is not None and tokens + len(ids) > limit:
                break
            chosen, tokens = chosen + 1, tokens + len(ids)
        return replace(self, ids=self.ids[:chosen], texts=self.texts[:chosen])


class HeldBatches:
    """Some documents of a held-out text, ready to be scored.

    starts: texts begin with a token that the tokenizer sets, which is not predicted and costs nothing. words: what the
    objective's corruption needs; texts are corrupted as those to be learned are, the same each time.
    """

    def __init__(
        self,
        holdout: HeldOut,
        rows: RowShape,
        vocabulary: int,
        starts: bool,
        objective: TextObjective,
        words: CorruptionVocabulary,
    ) -> None:
        self.holdout = holdout
        self._bytes, self._tokens = max(1, holdout.bytes), sum(map(len, holdout.ids))
        self._first_bits = 0.0 if starts else len(holdout.ids) * math.log2(vocabulary)
        named = {str(number): ids for number, ids in enumerate(holdout.ids)}
        self._batches = held_batches(named, rows.length, rows.micro)
        self._objective = NextToken() if objective.likelihood else objective
        if isinstance(self._objective, Corrupting):
            corrupt = self._objective.corruption(words)
            self._batches = [corrupted(batch, corrupt, seed=0) for batch in self._batches]

    def score(self, model: AnyModel) -> dict[str, Any]:
        """The row of the text. documents, bytes: of the texts; tokens: that are predicted. bits_per_byte counts a
        text's first token, before which nothing stands, as one of all: log2 of the vocabulary. Where not all of a text
        is said in its order, it is the bits of a token that is said over the bytes that a token has on average.
        target: what is counted in the place of tokens; only of tokens there are bits a byte."""
        objective = self._objective
        tokens = sum(batch.target_count for batch in self._batches)
        nats = evaluate_loss(model, self._batches, objective)[objective.name]
        if objective.likelihood:
            bits = (nats * tokens / math.log(2) + self._first_bits) / self._bytes
        else:
            bits = nats / math.log(2) / (self._bytes / self._tokens) if objective.target == "token" else None
        return {
            "name": self.holdout.name,
            "general": self.holdout.general,
            "documents": len(self.holdout.ids),
            "bytes": self._bytes,
            "tokens": tokens,
            "nats_per_token": nats,
            "bits_per_byte": bits,
            "target": objective.target,
        }


MakeSource = Callable[[RowShape, int, Shard], BatchSource[PackedBatch]]
"""Rows, steps and this rank's share → the batches of a run; a source that ends earlier is begun again."""


@dataclass(frozen=True)
class RunData:
    """tokens, bytes: by source, of what there is to learn. hashes: of what was read. stream: all tokens to learn, one
    document after the other, for models of counts."""

    tokenizer: Tokenizer
    make_source: MakeSource
    holdouts: Sequence[HeldOut]
    tokens: Mapping[str, int]
    bytes: Mapping[str, int]
    documents: Mapping[str, int]
    hashes: Mapping[str, str]
    licences: Mapping[str, str | None]
    stream: Callable[[], np.ndarray]
    notes: Sequence[str] = ()
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def bytes_per_token(self) -> float:
        return sum(self.bytes.values()) / max(1, sum(self.tokens.values()))


@dataclass(frozen=True)
class SourcedBatch(PackedBatch):
    """A packed batch with its tokens by source."""

    by_source: Mapping[str, int] = field(default_factory=dict[str, int], kw_only=True)

    @property
    def counts(self) -> Mapping[str, int]:
        return {**super().counts, **{f"{TOKENS_PREFIX}{name}": count for name, count in self.by_source.items()}}


class BySource(TransformedSource):
    """Another source's batches, counted by what their ids begin with (`source:document`)."""

    def __init__(self, inner: BatchSource[PackedBatch], names: Sequence[str]) -> None:
        super().__init__(inner)
        self._names = names

    def _transformed(self, batch: PackedBatch) -> SourcedBatch:
        counts = dict.fromkeys(self._names, 0)  # every name in every batch: ranks add up the same ones
        lengths = batch.lengths[len(batch.lengths) - len(batch.ids) :]
        for name, length in zip(batch.ids, lengths, strict=True):
            counts[name.partition(":")[0]] += length
        return SourcedBatch(**{f.name: getattr(batch, f.name) for f in fields(batch)}, by_source=counts)
