"""The data of a run, whichever way it is given: tokenizer, batch source, held-out texts, counts by source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from bedplate.pretraining.page.page import TOKENS_PREFIX
from bedplate.pretraining.plan.sizes import RowShape
from bedplate.text.tokenizer import Tokenizer
from bedplate.training.batch import PackedBatch
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
