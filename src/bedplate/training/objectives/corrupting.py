"""Objectives that learn to undo what they did to a text: what is done to a row follows from the seed and the row's
number in the whole run alone, so that a resumed run, and any number of ranks, sees the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from bedplate.core.config import Strict
from bedplate.core.errors import ConfigError, DataError
from bedplate.data.packing import DocumentPiece
from bedplate.models.packed.placement import PlacedDocument
from bedplate.text.tokenizer import Tokenizer
from bedplate.training.batch import PackedBatch
from bedplate.training.objectives.objective import Models, Scope, Term
from bedplate.training.packing import rows_batch
from bedplate.training.ranks import Ranks
from bedplate.training.sources import BatchSource

Ids = NDArray[np.int64]
BatchT = TypeVar("BatchT", bound=PackedBatch)


@dataclass(frozen=True)
class CorruptionVocabulary:
    """What corruption knows of a vocabulary, and of the model. size: ids that the model has; decoder_start: of an
    encoder–decoder; pooling: how its states become a text's vector."""

    tokenizer: Tokenizer
    size: int
    decoder_start: tuple[int, ...] = ()
    pooling: str = "mean"

    def ids_of(self, names: Sequence[str], objective: str) -> list[int]:
        """The ids of control tokens. ConfigError naming the first that the tokenizer lacks."""
        ids: list[int] = []
        for name in names:
            index = self.tokenizer.token_to_id(name)
            if index is None or index >= self.size:
                raise ConfigError(
                    f"the objective {objective} needs the token {name!r}, which the vocabulary lacks; train a "
                    "tokenizer that has it, or say in the objective's settings which tokens it is to use"
                )
            ids.append(index)
        return ids


Corruption = Callable[[PackedBatch, Sequence[np.random.Generator]], PackedBatch]
"""A batch as its source packed it, and a generator for each of its rows → what is learned from."""


class Sides(NamedTuple):
    """Tokens that a text becomes: what an encoder reads before a decoder, what goes through the stack that predicts,
    and how many of those have a target."""

    read: int
    written: int
    learned: int


class Corrupting(Strict, ABC):
    """What such an objective is, as data: its fields are its settings."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Its row in OBJECTIVES."""

    @property
    def roles(self) -> tuple[str, ...]:
        return ("policy",)

    @property
    def scope(self) -> Scope:
        return "row"

    @property
    @abstractmethod
    def architectures(self) -> tuple[str, ...]:
        """Of models that can learn it."""

    @property
    def target(self) -> str:
        """What one target is, for people. Of tokens there are bits a byte."""
        return "token"

    def for_ranks(self, ranks: Ranks) -> Self:
        """The objective for a run of these processes."""
        return self

    @property
    def special(self) -> tuple[str, ...]:
        """Control tokens that its tokenizer must have."""
        return ()

    @property
    def room(self) -> int:
        """By how many tokens a document may grow at most."""
        return 0

    def sides(self, length: int) -> Sides:
        """The most that a text of so many tokens becomes, to within a few."""
        return Sides(0, length, length)

    @abstractmethod
    def corruption(self, words: CorruptionVocabulary) -> Corruption:
        """What is done to batches. ConfigError where the vocabulary lacks a token for it."""

    @abstractmethod
    def __call__(self, models: Models, batch: PackedBatch) -> dict[str, Term]: ...

    def weights(self, batch: PackedBatch) -> dict[str, float]:
        """The number of targets."""
        return {self.name: float(batch.target_count)}


class CorruptedSource:
    """Another source's batches, corrupted on the CPU as they are drawn."""

    def __init__(
        self, inner: BatchSource[PackedBatch], objective: Corrupting, words: CorruptionVocabulary, seed: int
    ) -> None:
        self._inner, self._objective, self._seed = inner, objective, seed
        self._corrupt = objective.corruption(words)

    def _named(self, inner: Mapping[str, Any]) -> Mapping[str, Any]:
        settings = self._objective.model_dump(mode="json")
        return {**inner, "corruption": {"objective": self._objective.name, "seed": self._seed, **settings}}

    @property
    def identity(self) -> Mapping[str, Any]:
        return self._named(self._inner.identity)

    def identity_like(self, saved: Mapping[str, Any]) -> Mapping[str, Any]:
        return self._named(self._inner.identity_like({k: v for k, v in saved.items() if k != "corruption"}))

    @property
    def steps(self) -> int | None:
        return self._inner.steps

    def __iter__(self) -> Iterator[tuple[PackedBatch, ...]]:
        for step in self._inner:
            yield tuple(corrupted(batch, self._corrupt, self._seed) for batch in step)

    def state(self) -> dict[str, Any]:
        return self._inner.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self._inner.load_state(state)


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
