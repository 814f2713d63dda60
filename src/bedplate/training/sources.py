"""Where a run's steps come from, in an order that seed and epoch decide and that resumes at any step."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol

from bedplate.core.errors import DataError, TrainingError
from bedplate.core.files import sha256_json
from bedplate.training.batch import Batch, Example
from bedplate.training.packing import PackedRows, pack_documents, pack_examples, rows_batch

Order = Literal["given", "shuffled", "length"]
_LENGTH_POOL = 16
"""With order="length", so many batches of shuffled examples are sorted by length at a time."""


class BatchSource(Protocol):
    """Draws optimizer steps, each as its micro-batches. Iterating goes on from the current position."""

    @property
    def identity(self) -> dict[str, Any]:
        """What decides every batch (hashes, sizes, seed): a resumed run must have the same."""
        ...

    @property
    def steps(self) -> int | None:
        """Steps from the start to the end; None when there is no end."""
        ...

    def __iter__(self) -> Iterator[tuple[Batch, ...]]: ...

    def state(self) -> dict[str, Any]:
        """The position after the last step that was drawn, as JSON values."""
        ...

    def load_state(self, state: dict[str, Any]) -> None: ...


class _EpochSource(ABC):
    """Steps numbered through the epochs; the position is one number."""

    def __init__(self, per_epoch: int, epochs: int) -> None:
        if epochs < 1:
            raise DataError(f"epochs is {epochs}: it must be at least 1")
        self._per_epoch, self._epochs, self._drawn = per_epoch, epochs, 0

    @property
    def steps(self) -> int | None:
        return self._per_epoch * self._epochs

    def __iter__(self) -> Iterator[tuple[Batch, ...]]:
        while self._drawn < self._per_epoch * self._epochs:
            epoch, step = divmod(self._drawn, self._per_epoch)
            self._drawn += 1
            yield self._step(epoch, step)

    @abstractmethod
    def _step(self, epoch: int, step: int) -> tuple[Batch, ...]:
        """The micro-batches of one step."""

    def state(self) -> dict[str, Any]:
        epoch, step = divmod(self._drawn, self._per_epoch)
        return {"epoch": epoch, "step": step}

    def load_state(self, state: dict[str, Any]) -> None:
        epoch, step = state.get("epoch"), state.get("step")
        if not isinstance(epoch, int) or not isinstance(step, int):
            raise TrainingError(f"the saved position {state!r} is not this source's: it needs epoch and step")
        self._drawn = epoch * self._per_epoch + step


class ExampleSource(_EpochSource):
    """Batches of examples, packed.

    order: "given" every epoch; "shuffled" anew each epoch, from `seed`; "length": shuffled, then examples of similar
    length put together and the batches shuffled. micro_tokens: a step with more tokens than this is drawn as several
    micro-batches (memory grows with tokens; the gradient is the same). The last batch of an epoch may be smaller.
    Raises DataError without examples, for two of one id, or for one longer than `context_length`.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        batch_size: int,
        *,
        seed: int = 0,
        epochs: int = 1,
        order: Order = "given",
        share_prefix: bool = True,
        micro_tokens: int = 4096,
        context_length: int | None = None,
    ) -> None:
        if not examples:
            raise DataError("there are no training examples")
        if batch_size < 1:
            raise DataError(f"batch_size is {batch_size}: it must be at least 1")
        _refuse_duplicates([example.id for example in examples])
        for example in examples:
            pack_examples([example], context_length=context_length)
        super().__init__(-(-len(examples) // batch_size), epochs)
        self._examples, self._batch_size = tuple(examples), batch_size
        self._seed, self._order_name, self._share_prefix = seed, order, share_prefix
        self._micro_tokens, self._context_length = micro_tokens, context_length
        self._order: tuple[int, list[list[int]]] | None = None
        self._identity = {
            "examples": sha256_json([[e.id, list(e.ids), list(e.loss)] for e in examples]),
            "batch_size": batch_size,
            "epochs": epochs,
            "seed": seed,
            "order": order,
            "share_prefix": share_prefix,
            "micro_tokens": micro_tokens,
        }

    @property
    def identity(self) -> dict[str, Any]:
        return self._identity

    def _step(self, epoch: int, step: int) -> tuple[Batch, ...]:
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, self._batches(epoch))
        chosen = [self._examples[i] for i in self._order[1][step]]
        return tuple(
            pack_examples(part, share_prefix=self._share_prefix, context_length=self._context_length)
            for part in _split_by_tokens(chosen, self._micro_tokens)
        )

    def _batches(self, epoch: int) -> list[list[int]]:
        """The epoch's batches of example numbers."""
        size, order = self._batch_size, list(range(len(self._examples)))
        if self._order_name == "given":
            return _chunks(order, size)
        generator = random.Random(f"{self._seed}/{epoch}")
        generator.shuffle(order)
        if self._order_name == "shuffled":
            return _chunks(order, size)
        pools = _chunks(order, size * _LENGTH_POOL)
        by_length = [i for pool in pools for i in sorted(pool, key=lambda i: len(self._examples[i].ids), reverse=True)]
        batches = _chunks(by_length, size)
        generator.shuffle(batches)
        return batches


def _chunks(items: list[int], size: int) -> list[list[int]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def _split_by_tokens(examples: list[Example], limit: int) -> list[list[Example]]:
    """Consecutive groups of at most `limit` tokens, or of one example."""
    groups: list[list[Example]] = [[]]
    tokens = 0
    for example in examples:
        if groups[-1] and tokens + len(example.ids) > limit:
            groups.append([])
            tokens = 0
        groups[-1].append(example)
        tokens += len(example.ids)
    return groups


def _refuse_duplicates(ids: Sequence[str]) -> None:
    seen: set[str] = set()
    for id in ids:
        if id in seen:
            raise DataError(f"two examples have the id {id!r}; ids must differ, so that errors can name one")
        seen.add(id)


class DocumentSource(_EpochSource):
    """Whole documents packed into rows of one length, for next-token prediction; rows are shuffled each epoch.

    documents: token ids, each with the end token that its end is to be learned by. A step is `batch_rows` rows in
    micro-batches of `micro_rows`; an epoch's last step may have fewer rows. `packed`: what became of the documents.
    """

    def __init__(
        self,
        documents: Sequence[Sequence[int]],
        row_length: int,
        batch_rows: int,
        *,
        micro_rows: int | None = None,
        seed: int = 0,
        epochs: int = 1,
        method: Literal["best_fit", "sequential"] = "best_fit",
        ids: Sequence[str] | None = None,
    ) -> None:
        if not documents:
            raise DataError("there are no documents to train on")
        if batch_rows < 1 or (micro_rows is not None and micro_rows < 1):
            raise DataError("batch_rows and micro_rows must be at least 1")
        self._documents = documents
        self._ids = [str(i) for i in range(len(documents))] if ids is None else list(ids)
        if len(self._ids) != len(documents):
            raise DataError(f"{len(documents)} documents, but {len(self._ids)} ids")
        self.packed: PackedRows = pack_documents([len(d) for d in documents], row_length, method)
        super().__init__(-(-len(self.packed.rows) // batch_rows), epochs)
        self._batch_rows, self._micro_rows, self._seed = batch_rows, micro_rows or batch_rows, seed
        self._order: tuple[int, list[list[int]]] | None = None
        self._identity = {
            "documents": sha256_json([list(d) for d in documents]),
            "row_length": row_length,
            "batch_rows": batch_rows,
            "micro_rows": self._micro_rows,
            "epochs": epochs,
            "seed": seed,
            "method": method,
        }

    @property
    def identity(self) -> dict[str, Any]:
        return self._identity

    def _step(self, epoch: int, step: int) -> tuple[Batch, ...]:
        if self._order is None or self._order[0] != epoch:
            order = list(range(len(self.packed.rows)))
            random.Random(f"{self._seed}/{epoch}").shuffle(order)
            self._order = (epoch, _chunks(order, self._batch_rows))
        return tuple(
            rows_batch([self.packed.rows[i] for i in part], self._documents, self._ids, self.packed.row_length)
            for part in _chunks(self._order[1][step], self._micro_rows)
        )
