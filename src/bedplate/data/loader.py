"""Rows of training from a corpus: which pieces of which documents row i holds is a pure function of the seed and i, so
that its place is one number, and any number of ranks sees one order.

Row i has a source and an ordinal there (`Mixture`); the ordinal is an epoch and a place in it; the epoch's own
shuffle (`Permutation`) says which row of the source's table that is. No token is read before a row is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from numpy.typing import NDArray

from bedplate.core.errors import DataError
from bedplate.core.files import sha256_json
from bedplate.data.corpus.manifest import Split
from bedplate.data.corpus.shards import Corpus, ShardDocuments
from bedplate.data.mixture import Mixture, MixtureConfig
from bedplate.data.packing import DocumentPiece
from bedplate.data.permutation import Permutation
from bedplate.data.row_table import Long, RowLayout, RowTable, row_table


class RowPlace(NamedTuple):
    """Where a row of training comes from: its source, which time through it, and the row in the source's table."""

    source: str
    epoch: int
    row: int


@dataclass(frozen=True)
class ReadRows:
    """Rows with their documents: pieces count in `documents`, whose ids are views of the files; names: of each
    document, `source:number`."""

    rows: list[list[DocumentPiece]]
    documents: list[NDArray[Any]]
    names: list[str]
    places: list[RowPlace]


class CorpusLoader:
    """Rows of `row_length` tokens of a corpus, whole documents packed by best fit, `total` of them (by default each
    source once).

    Raises DataError for a corpus that has no documents in the split, ConfigError for a mixture of other sources.
    """

    def __init__(
        self,
        corpus: Corpus,
        row_length: int,
        *,
        total: int | None = None,
        mixture: MixtureConfig | None = None,
        seed: int = 0,
        split: Split = "train",
        long: Long = "split",
        quiet: bool = False,
    ) -> None:
        self.corpus, self.row_length, self.seed, self.split = corpus, row_length, seed, split
        self.config = mixture or MixtureConfig()
        self._long: Long = long
        self._tables: dict[str, RowTable] = {
            name: row_table(corpus, name, split, row_length, seed=seed, long=long, quiet=quiet)
            for name in corpus.sources
            if corpus.shards(name, split)
        }
        rows = {name: len(table) for name, table in self._tables.items()}
        if not sum(rows.values()):
            raise DataError(f"{corpus.directory} has no documents to read in its {split} split")
        self.total = sum(rows.values()) if total is None else total
        self.mixture = Mixture(self.config, rows, self.total, seed, self._given_weights())
        self._documents: dict[str, ShardDocuments] = {name: corpus.documents(name, split) for name in self._tables}
        self._orders: dict[tuple[str, int], Permutation] = {}

    def _given_weights(self) -> Mapping[str, float]:
        """The recipe's, where it gives any."""
        sources = [self.corpus.sources[name] for name in self._tables]
        return {source.name: source.weight for source in sources if source.weight is not None}

    @property
    def identity(self) -> Mapping[str, Any]:
        """What decides every row, as JSON values."""
        return {
            "corpus": sha256_json([self.corpus.sha256]),
            "split": self.split,
            "row_length": self.row_length,
            "rows": self.total,
            "seed": self.seed,
            "long": self._long,
            "mixture": self.config.model_dump(mode="json"),
        }

    @property
    def layouts(self) -> Mapping[str, RowLayout]:
        """Of each source, what became of its documents."""
        return {name: table.layout for name, table in self._tables.items()}

    def place(self, index: int) -> RowPlace:
        """Where row `index` of training comes from. IndexError past the end."""
        number, ordinal = self.mixture.row(index)
        source = self.mixture.names[number]
        epoch, position = divmod(ordinal, len(self._tables[source]))
        return RowPlace(source, epoch, int(self._order(source, epoch)(position)))

    def _order(self, source: str, epoch: int) -> Permutation:
        order = self._orders.get((source, epoch))
        if order is None:
            self._orders = {key: permutation for key, permutation in self._orders.items() if key[0] != source}
            order = Permutation(len(self._tables[source]), "rows", self.seed, source, epoch)
            self._orders[source, epoch] = order
        return order

    def read(self, indices: Sequence[int]) -> ReadRows:
        """These rows. DataError for an id that the vocabulary does not have, naming the shard."""
        batch = ReadRows([], [], [], [])
        numbers: dict[tuple[str, int], int] = {}
        for index in indices:
            place = self.place(index)
            row: list[DocumentPiece] = []
            for piece in self._tables[place.source][place.row]:
                key = place.source, piece.document
                if key not in numbers:
                    numbers[key] = len(batch.documents)
                    batch.documents.append(self._documents[place.source][piece.document])
                    batch.names.append(f"{place.source}:{piece.document}")
                ids = batch.documents[numbers[key]][piece.start : piece.stop]
                if int(ids.max()) >= self.corpus.vocab_size:
                    self._documents[place.source].refuse(piece.document, int(ids.max()))
                row.append(DocumentPiece(numbers[key], piece.start, piece.stop))
            batch.rows.append(row)
            batch.places.append(place)
        return batch

    def drawn(self, index: int) -> Mapping[str, int]:
        """Rows of each source among the first `index`."""
        return self.mixture.drawn(index)


def rank_share(step: int, rows: int, rank: int, world: int) -> range:
    """The rows of a step that one of several ranks reads: together all, one rank behind the other."""
    first = step * rows
    return range(first + rows * rank // world, first + rows * (rank + 1) // world)
