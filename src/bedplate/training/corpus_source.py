"""Steps of training from a corpus directory: rows of whole documents, in an order that does not depend on the ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from bedplate.core.errors import DataError, TrainingError
from bedplate.data.loader import CorpusLoader, rank_share
from bedplate.training.batch import PackedBatch
from bedplate.training.packing import rows_batch
from bedplate.training.sources import ALONE, Shard


class CorpusSource:
    """A `BatchSource` over a loader's rows. A step is `batch_rows` rows, in micro-batches of each rank's `micro_rows`;
    rows that do not fill a step at the end are not drawn. Its state is one number: rows drawn so far by all ranks.

    Raises DataError for sizes below 1, or where there is not one whole step."""

    def __init__(
        self, loader: CorpusLoader, batch_rows: int, *, micro_rows: int | None = None, shard: Shard = ALONE
    ) -> None:
        if batch_rows < 1 or (micro_rows is not None and micro_rows < 1):
            raise DataError("batch_rows and micro_rows must be at least 1")
        if not 0 <= shard[0] < shard[1]:
            raise DataError(f"there is no rank {shard[0]} of {shard[1]}: ranks are numbered from 0")
        if loader.total < batch_rows:
            raise DataError(
                f"{loader.corpus.directory}: {loader.total} rows of {loader.row_length} tokens are too few for one "
                f"step of {batch_rows} rows; use fewer rows a step, shorter rows or more epochs"
            )
        self.loader = loader
        self._batch_rows, self._micro_rows, self._shard = batch_rows, micro_rows or batch_rows, shard
        self._drawn = 0

    @property
    def identity(self) -> Mapping[str, Any]:
        return {**self.loader.identity, "batch_rows": self._batch_rows, "micro_rows": self._micro_rows}

    def identity_like(self, saved: Mapping[str, Any]) -> Mapping[str, Any]:
        """A corpus has one name."""
        return self.identity

    @property
    def steps(self) -> int:
        return self.loader.total // self._batch_rows

    def __iter__(self) -> Iterator[tuple[PackedBatch, ...]]:
        while self._drawn + self._batch_rows <= self.loader.total:
            share = rank_share(self._drawn // self._batch_rows, self._batch_rows, *self._shard)
            self._drawn += self._batch_rows
            yield tuple(
                self._packed(share[start : start + self._micro_rows])
                for start in range(0, len(share), self._micro_rows)
            )

    def _packed(self, indices: range) -> PackedBatch:
        read = self.loader.read(indices)
        batch = rows_batch(read.rows, read.documents, read.names, self.loader.row_length)
        return replace(batch, rows=tuple(indices))

    @property
    def rows_by_source(self) -> Mapping[str, int]:
        """Rows of each source so far."""
        return self.loader.drawn(self._drawn)

    def state(self) -> dict[str, Any]:
        return {"rows": self._drawn}

    def load_state(self, state: dict[str, Any]) -> None:
        rows = state.get("rows")
        if not isinstance(rows, int) or isinstance(rows, bool) or rows < 0 or rows % self._batch_rows:
            raise TrainingError(
                f"the saved position {state!r} is not this source's: it needs rows, a multiple of {self._batch_rows}"
            )
        self._drawn = rows
