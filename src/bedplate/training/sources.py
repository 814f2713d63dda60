"""Batch sources: the steps of a run, in an order determined by seed and epoch, which can resume at any step.

Each of several ranks draws its share of every step: the shares are disjoint, complete, and consecutive in the order
that a single rank would draw.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Generic, Literal, Protocol, TypeVar

from numpy.typing import NDArray

from bedplate.core.errors import DataError, TrainingError
from bedplate.core.files import sha256_json
from bedplate.data.loader import CorpusLoader, rank_share
from bedplate.data.packing import PackedRows, pack_documents
from bedplate.training.batch import (
    LabelledText,
    MicroBatch,
    PackedBatch,
    TextBatch,
    TrainingExample,
    check_length,
    pack_examples,
    pack_texts,
    rows_batch,
)

Shuffling = Literal["given", "shuffled", "length"]
Shard = tuple[int, int]
"""This rank's number, from 0, and the number of ranks."""
ALONE: Shard = (0, 1)
_LENGTH_POOL = 16
"""Batches of shuffled examples that are sorted by length at a time, with order="length"."""
B_co = TypeVar("B_co", bound=MicroBatch, covariant=True)
B = TypeVar("B", bound=MicroBatch)
E = TypeVar("E", TrainingExample, LabelledText)


class BatchSource(Protocol[B_co]):
    """Draws optimizer steps, each as its micro-batches. Iteration continues from the current position."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """The values that determine every batch (content hash, sizes, seed), equal on all ranks and in resumed runs."""
        ...

    @property
    def steps(self) -> int | None:
        """Total number of steps; None for an endless source."""
        ...

    def __iter__(self) -> Iterator[tuple[B_co, ...]]: ...

    def state(self) -> dict[str, Any]:
        """The position after the last step that was drawn, as JSON values."""
        ...

    def load_state(self, state: dict[str, Any]) -> None: ...


class MappedSource:
    """Another source's steps, each micro-batch transformed as it is drawn. identity: added to the source's."""

    def __init__(
        self, inner: BatchSource[PackedBatch], transform: Callable[[PackedBatch], PackedBatch], **identity: Any
    ) -> None:
        self._inner, self._transform, self._identity = inner, transform, identity

    @property
    def identity(self) -> Mapping[str, Any]:
        return {**self._inner.identity, **self._identity}

    @property
    def steps(self) -> int | None:
        return self._inner.steps

    def __iter__(self) -> Iterator[tuple[PackedBatch, ...]]:
        for step in self._inner:
            yield tuple(map(self._transform, step))

    def state(self) -> dict[str, Any]:
        return self._inner.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self._inner.load_state(state)


class EpochSource(ABC, Generic[B]):
    """The base of sources over numbered items, whose position is one number. made_of: the content's name in the
    identity. content: its hash; None: computed from all tokens."""

    made_of: str

    def __init__(
        self, count: int, step_size: int, epochs: int, shard: Shard, content: str | None, settings: Mapping[str, Any]
    ) -> None:
        if epochs < 1:
            raise DataError(f"epochs is {epochs}: it must be at least 1")
        self._per_epoch, self._epochs, self._drawn = -(-count // step_size), epochs, 0
        self._step_size, self._shard = step_size, _checked_shard(shard)
        self._content, self._settings = content, settings
        self._order: tuple[int, list[list[int]]] | None = None

    @property
    def identity(self) -> Mapping[str, Any]:
        return {self.made_of: self._content or self._tokens_hash, **self._settings}

    @property
    def steps(self) -> int | None:
        return self._per_epoch * self._epochs

    def __iter__(self) -> Iterator[tuple[B, ...]]:
        while self._drawn < self._per_epoch * self._epochs:
            epoch, step = divmod(self._drawn, self._per_epoch)
            if self._order is None or self._order[0] != epoch:
                self._order = (epoch, self._steps(epoch))
            numbers, (rank, world) = self._order[1][step], self._shard
            self._drawn += 1
            yield tuple(self._micro_batches(numbers[len(numbers) * rank // world : len(numbers) * (rank + 1) // world]))

    @cached_property
    def _tokens_hash(self) -> str:
        return sha256_json(self._hashed_content())

    @abstractmethod
    def _hashed_content(self) -> Any:
        """All content to hash, as a JSON value."""

    @abstractmethod
    def _steps(self, epoch: int) -> list[list[int]]:
        """The item numbers of each step of an epoch."""

    @abstractmethod
    def _micro_batches(self, numbers: list[int]) -> Iterable[B]:
        """One rank's share of a step."""

    def state(self) -> dict[str, Any]:
        epoch, step = divmod(self._drawn, self._per_epoch)
        return {"epoch": epoch, "step": step}

    def load_state(self, state: dict[str, Any]) -> None:
        epoch, step = state.get("epoch"), state.get("step")
        if not isinstance(epoch, int) or not isinstance(step, int):
            raise TrainingError(f"the saved position {state!r} is not this source's: it needs epoch and step")
        self._drawn = epoch * self._per_epoch + step


class _ExampleSource(EpochSource[B], Generic[E, B]):
    """Batches of packed examples.

    examples: may be read lazily. order: "given" each epoch; "shuffled" each epoch from `seed`; "length": shuffled, then
    batched with examples of similar length, and the batches shuffled. micro_tokens: larger steps are split into
    micro-batches (memory grows with tokens; the gradient is the same). The last batch of an epoch may be smaller.
    content: sha256 of the data behind the examples; by default of the examples. DataError without examples, for
    duplicate ids, or for one longer than `context_length`.
    """

    def __init__(
        self,
        examples: Sequence[E],
        batch_size: int,
        *,
        seed: int = 0,
        epochs: int = 1,
        order: Shuffling = "given",
        micro_tokens: int = 4096,
        context_length: int | None = None,
        content: str | None = None,
        shard: Shard = ALONE,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if not examples:
            raise DataError("there are no training examples")
        if batch_size < 1:
            raise DataError(f"batch_size is {batch_size}: it must be at least 1")
        self._examples, self._seed, self._shuffling = examples, seed, order
        self._micro_tokens, self._context_length = micro_tokens, context_length
        self._lengths = _checked_lengths(examples, context_length)
        all_settings = {
            "batch_size": batch_size,
            "epochs": epochs,
            "seed": seed,
            "order": order,
            "micro_tokens": micro_tokens,
            **(settings or {}),
        }
        super().__init__(len(examples), batch_size, epochs, shard, content, all_settings)

    def _steps(self, epoch: int) -> list[list[int]]:
        size, order = self._step_size, list(range(len(self._examples)))
        if self._shuffling == "given":
            return _chunks(order, size)
        generator = random.Random(f"{self._seed}/{epoch}")
        generator.shuffle(order)
        if self._shuffling == "shuffled":
            return _chunks(order, size)
        pools = _chunks(order, size * _LENGTH_POOL)
        by_length = [i for pool in pools for i in sorted(pool, key=self._lengths.__getitem__, reverse=True)]
        batches = _chunks(by_length, size)
        generator.shuffle(batches)
        return batches

    def _micro_batches(self, numbers: list[int]) -> Iterable[B]:
        for part in _split_by_tokens(numbers, self._lengths, self._micro_tokens):
            yield self._packed([self._examples[i] for i in part])

    @abstractmethod
    def _packed(self, chosen: list[E]) -> B:
        """Packs some examples into one micro-batch."""


class ExampleSource(_ExampleSource[TrainingExample, PackedBatch]):
    """Packed batches of examples with loss masks; arguments as in `_ExampleSource`.

    share_prefix: compute the prefix that all examples of a micro-batch share once.
    """

    made_of = "examples"

    def __init__(
        self, examples: Sequence[TrainingExample], batch_size: int, *, share_prefix: bool = True, **options: Any
    ) -> None:
        self._share_prefix = share_prefix
        super().__init__(examples, batch_size, settings={"share_prefix": share_prefix}, **options)

    def _hashed_content(self) -> Any:
        return [[e.id, list(e.ids), list(e.loss), *([list(e.source)] if e.source else [])] for e in self._examples]

    def _packed(self, chosen: list[TrainingExample]) -> PackedBatch:
        return pack_examples(chosen, share_prefix=self._share_prefix, context_length=self._context_length)


class LabelledTextSource(_ExampleSource[LabelledText, TextBatch]):
    """Packed batches of texts with labels; arguments as in `_ExampleSource`."""

    made_of = "texts"

    def _hashed_content(self) -> Any:
        return [[example.id, list(example.ids), list(example.targets)] for example in self._examples]

    def _packed(self, chosen: list[LabelledText]) -> TextBatch:
        return pack_texts(chosen)


def _checked_shard(shard: Shard) -> Shard:
    if not 0 <= shard[0] < shard[1]:
        raise DataError(f"there is no rank {shard[0]} of {shard[1]}: ranks are numbered from 0")
    return shard


def _checked_lengths(examples: Iterable[TrainingExample | LabelledText], context_length: int | None) -> list[int]:
    ids: set[str] = set()
    lengths: list[int] = []
    for example in examples:
        check_length(example, context_length)
        if example.id in ids:
            raise DataError(f"two examples have the id {example.id!r}; ids must differ, so that errors can name one")
        ids.add(example.id)
        lengths.append(len(example.ids))
    return lengths


def _chunks(indices: list[int], size: int) -> list[list[int]]:
    return [indices[i : i + size] for i in range(0, len(indices), size)]


def _split_by_tokens(numbers: list[int], lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Consecutive groups of at most `limit` tokens, or of one example."""
    groups: list[list[int]] = []
    tokens = 0
    for number in numbers:
        if not groups or tokens + lengths[number] > limit:
            groups.append([])
            tokens = 0
        groups[-1].append(number)
        tokens += lengths[number]
    return groups


class DocumentSource(EpochSource[PackedBatch]):
    """Documents packed into rows of one length for next-token prediction; rows are shuffled each epoch.

    documents: token ids with end tokens; with `lengths` they are read only when a step needs them. A step is
    `batch_rows` rows in micro-batches of `micro_rows`; an epoch's last step may be smaller. content: sha256 of the data
    behind the documents; by default of their tokens. packed: statistics of the packing.
    """

    made_of = "documents"

    def __init__(
        self,
        documents: Sequence[Sequence[int] | NDArray[Any]],
        row_length: int,
        batch_rows: int,
        *,
        micro_rows: int | None = None,
        seed: int = 0,
        epochs: int = 1,
        method: Literal["best_fit", "sequential"] = "best_fit",
        ids: Sequence[str] | None = None,
        lengths: Sequence[int] | None = None,
        content: str | None = None,
        shard: Shard = ALONE,
    ) -> None:
        if not documents:
            raise DataError("there are no documents to train on")
        if batch_rows < 1 or (micro_rows is not None and micro_rows < 1):
            raise DataError("batch_rows and micro_rows must be at least 1")
        self._documents, self._seed, self._micro_rows = documents, seed, micro_rows or batch_rows
        self._ids = [str(i) for i in range(len(documents))] if ids is None else ids
        lengths = [len(d) for d in documents] if lengths is None else lengths
        self.packed: PackedRows = pack_documents(lengths, row_length, method)
        settings = {
            "row_length": row_length,
            "batch_rows": batch_rows,
            "micro_rows": self._micro_rows,
            "epochs": epochs,
            "seed": seed,
            "method": method,
        }
        super().__init__(len(self.packed.rows), batch_rows, epochs, shard, content, settings)

    def _hashed_content(self) -> Any:
        return [[int(token) for token in document] for document in self._documents]

    def _steps(self, epoch: int) -> list[list[int]]:
        order = list(range(len(self.packed.rows)))
        random.Random(f"{self._seed}/{epoch}").shuffle(order)
        return _chunks(order, self._step_size)

    def _micro_batches(self, numbers: list[int]) -> Iterable[PackedBatch]:
        before = 0 if self._order is None else self._order[0] * len(self.packed.rows)
        for part in _chunks(numbers, self._micro_rows):
            rows = [self.packed.rows[i] for i in part]
            batch = rows_batch(rows, self._documents, self._ids, self.packed.row_length)
            yield replace(batch, rows=tuple(before + i for i in part))


class CorpusSource:
    """A `BatchSource` over a loader's rows. A step is `batch_rows` rows, in micro-batches of each rank's `micro_rows`;
    rows that do not fill a step at the end are not drawn. Its state is one number: rows drawn so far by all ranks.

    Raises DataError for sizes below 1, or where there is not one whole step."""

    def __init__(
        self, loader: CorpusLoader, batch_rows: int, *, micro_rows: int | None = None, shard: Shard = ALONE
    ) -> None:
        if batch_rows < 1 or (micro_rows is not None and micro_rows < 1):
            raise DataError("batch_rows and micro_rows must be at least 1")
        if loader.total < batch_rows:
            raise DataError(
                f"{loader.corpus.directory}: {loader.total} rows of {loader.row_length} tokens are too few for one "
                f"step of {batch_rows} rows; use fewer rows a step, shorter rows or more epochs"
            )
        self.loader = loader
        self._batch_rows, self._micro_rows, self._shard = batch_rows, micro_rows or batch_rows, _checked_shard(shard)
        self._drawn = 0

    @property
    def identity(self) -> Mapping[str, Any]:
        return {**self.loader.identity, "batch_rows": self._batch_rows, "micro_rows": self._micro_rows}

    @property
    def steps(self) -> int:
        return self.loader.total // self._batch_rows

    def __iter__(self) -> Iterator[tuple[PackedBatch, ...]]:
        while self._drawn + self._batch_rows <= self.loader.total:
            share = rank_share(self._drawn // self._batch_rows, self._batch_rows, *self._shard)
            self._drawn += self._batch_rows
            starts = range(0, len(share), self._micro_rows)
            yield tuple(self._packed(share[start : start + self._micro_rows]) for start in starts)

    def _packed(self, indices: range) -> PackedBatch:
        read = self.loader.read(indices)
        batch = rows_batch(read.rows, read.documents, read.names, self.loader.row_length)
        return replace(batch, rows=tuple(indices))

    def state(self) -> dict[str, Any]:
        return {"rows": self._drawn}

    def load_state(self, state: dict[str, Any]) -> None:
        rows = state.get("rows")
        if not isinstance(rows, int) or isinstance(rows, bool) or rows < 0 or rows % self._batch_rows:
            raise TrainingError(f"the saved position {state!r} is not this source's, in steps of {self._batch_rows}")
        self._drawn = rows
