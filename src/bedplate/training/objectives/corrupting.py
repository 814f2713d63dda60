"""Objectives that corrupt a text and learn to restore it. What is done to a row follows from the seed and the row's
number in the run alone, so that resumed runs and any number of ranks see the same rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from bedplate.core.config import Strict
from bedplate.core.errors import DataError
from bedplate.data.packing import DocumentPiece
from bedplate.models.packed.placement import PlacedDocument
from bedplate.training.batch import PackedBatch
from bedplate.training.objectives.objective import CorruptionVocabulary, TextObjective
from bedplate.training.packing import rows_batch
from bedplate.training.sources import BatchSource, TransformedSource

Ids = NDArray[np.int64]
BatchT = TypeVar("BatchT", bound=PackedBatch)


Corruption = Callable[[PackedBatch, Sequence[np.random.Generator]], PackedBatch]
"""A batch as its source packed it, and a generator for each of its rows → what is learned from."""


class Corrupting(Strict, TextObjective):
    """An objective that undoes what it did to a text. Its fields are its settings."""

    @abstractmethod
    def corruption(self, words: CorruptionVocabulary) -> Corruption:
        """What is done to batches. ConfigError where the vocabulary lacks a token for it."""

    def source(
        self, inner: BatchSource[PackedBatch], words: CorruptionVocabulary, seed: int
    ) -> BatchSource[PackedBatch]:
        return CorruptedSource(inner, self, words, seed)


class CorruptedSource(TransformedSource):
    """Another source's batches, corrupted on the CPU as they are drawn."""

    def __init__(
        self, inner: BatchSource[PackedBatch], objective: Corrupting, words: CorruptionVocabulary, seed: int
    ) -> None:
        super().__init__(inner)
        self._objective, self._seed = objective, seed
        self._corrupt = objective.corruption(words)

    @property
    def identity(self) -> Mapping[str, Any]:
        settings = self._objective.model_dump(mode="json")
        corruption = {"objective": self._objective.name, "seed": self._seed, **settings}
        return {**super().identity, "corruption": corruption}

    def _transformed(self, batch: PackedBatch) -> PackedBatch:
        return corrupted(batch, self._corrupt, self._seed)


def corrupted(batch: PackedBatch, corrupt: Corruption, seed: int) -> PackedBatch:
    """The batch after corruption. DataError where its rows have no numbers."""
    if len(batch.rows) != len(batch.tokens):
        raise DataError("these batches cannot be corrupted: their source does not number its rows")
    return corrupt(batch, [np.random.default_rng((seed, row)) for row in batch.rows])


def documents_of(batch: PackedBatch) -> Iterator[tuple[PlacedDocument, Ids]]:
    """The documents of packed rows, in order, each with its tokens."""
    flat = batch.tokens.reshape(-1).numpy()
    for document in batch.placement.documents:
        yield document, flat[document.start : document.stop]


def relaid(batch: BatchT, documents: Sequence[Sequence[int] | Ids], of_each: int = 1) -> BatchT:
    """The batch with other tokens in each document's place, every one of which is predicted from those before it. Rows
    are as long as the longest then. of_each: so many documents, one behind the other, stand where one was."""
    relaid_rows = rows_of(batch, documents, of_each)
    unchanged = ("ids", "rows")
    return replace(
        batch, **{f.name: getattr(relaid_rows, f.name) for f in fields(PackedBatch) if f.name not in unchanged}
    )


def rows_of(batch: PackedBatch, documents: Sequence[Sequence[int] | Ids], of_each: int = 1) -> PackedBatch:
    """New documents, `of_each` for each of the batch's, in the rows where those stand."""
    rows: list[list[DocumentPiece]] = [[] for _ in batch.tokens]
    places = [place for place in batch.placement.documents for _ in range(of_each)]
    for number, (document, ids) in enumerate(zip(places, documents, strict=True)):
        rows[document.row].append(DocumentPiece(number, 0, len(ids)))
    longest = max(sum(map(len, row)) for row in rows)
    return rows_batch(rows, documents, [document_id for document_id in batch.ids for _ in range(of_each)], longest)
