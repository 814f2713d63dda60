"""Batches that say how many of their tokens come from which source: the loop adds such counts up and writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

from bedplate.pretraining.page.page import TOKENS_PREFIX
from bedplate.training.batch import PackedBatch
from bedplate.training.sources import BatchSource, TransformedSource


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
