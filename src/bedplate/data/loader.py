"""Training rows from a corpus. Row i is a pure function of the seed and i, so that a position is one number and any
number of ranks sees one order.

Row i has a source and an ordinal there (`Mixture`); the ordinal is an epoch and a place in it; the epoch's shuffle
(`Permutation`) gives the row of the source's table (`RowTable`). The table packs documents, a shuffled window of them
at a time, by best fit; it is laid out once and memory-mapped. No token is read before a row is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bedplate.core.errors import DataError, UsageError
from bedplate.core.files import atomic_directory, atomic_write, bedplate_home, file_lock, sha256_json
from bedplate.core.progress import Progress
from bedplate.data.corpus.shards import Corpus, ShardDocuments, Split
from bedplate.data.mixture import Mixture, MixtureConfig
from bedplate.data.packing import DocumentPiece, best_fit, check_row_length

_ROUNDS = 6


class Permutation:
    """A bijection of the numbers 0 to n − 1 that its names decide. ValueError for n < 1 or above 2⁶²."""

    def __init__(self, n: int, *names: object) -> None:
        if not 1 <= n <= 1 << 62:
            raise ValueError(f"there is no order of {n} things")
        self.n = n
        self._half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
        self._mask = np.uint64((1 << int(self._half)) - 1)
        digest = hashlib.sha256("\0".join(map(str, (n, *names))).encode()).digest()
        second_digest = hashlib.sha256(digest).digest()
        self._keys = np.frombuffer(digest + second_digest, dtype="<u8")[:_ROUNDS]

    def __call__(self, numbers: NDArray[np.int64] | int) -> NDArray[np.int64]:
        """Where each number goes; of any shape. IndexError for one that is not below n."""
        indices = np.asarray(numbers)
        if indices.size and not 0 <= int(indices.min()) <= int(indices.max()) < self.n:
            raise IndexError(f"{int(indices.max())} is not below {self.n}")
        permuted = self._feistel(indices.astype(np.uint64).reshape(-1))
        out = np.flatnonzero(permuted >= self.n)
        while out.size:
            permuted[out] = self._feistel(permuted[out])
            out = out[permuted[out] >= self.n]
        return permuted.astype(np.int64).reshape(indices.shape)

    def _feistel(self, numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = numbers >> self._half, numbers & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mixed(right ^ key) & self._mask)
        return (left << self._half) | right


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser (Steele, Lea & Flood, 2014), modulo 2⁶⁴."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


WINDOW = 8192
"""Documents that are packed together."""
Long = Literal["split", "crop", "drop"]
"""What becomes of a document longer than a row: it goes on in other rows, loses its end, or is left out."""
_PIECE = np.dtype([("document", "<i8"), ("start", "<i8"), ("stop", "<i8")])


@dataclass(frozen=True)
class RowLayout:
    """What became of a source's documents. tokens: those in rows; lost: cropped off, or of dropped documents."""

    rows: int
    row_length: int
    documents: int
    long: Long
    long_documents: int
    tokens: int
    lost_tokens: int

    @property
    def padding(self) -> int:
        return self.rows * self.row_length - self.tokens


class RowTable:
    """The rows of a source's split, each a few pieces of documents."""

    def __init__(self, directory: Path) -> None:
        self.layout = RowLayout(**json.loads((directory / "layout.json").read_text("utf-8")))
        self._ends = _mapped(directory / "ends.bin", np.dtype("<i8"))
        self._pieces = _mapped(directory / "pieces.bin", _PIECE)

    def __len__(self) -> int:
        return self.layout.rows

    def __getitem__(self, row: int) -> list[DocumentPiece]:
        if not 0 <= row < len(self):
            raise IndexError(f"there is no row {row} among {len(self)}")
        start = int(self._ends[row - 1]) if row else 0
        return [DocumentPiece(*piece) for piece in self._pieces[start : int(self._ends[row])].tolist()]


def row_table(
    corpus: Corpus, source: str, split: Split, row_length: int, *, seed: int, long: Long = "split", quiet: bool = False
) -> RowTable:
    """The table of a source, laid out if it is not on disk: in the corpus, or where that cannot be written, at home.
    DataError for rows shorter than 2 tokens."""
    check_row_length(row_length)
    shards = [shard.sha256 for shard in corpus.shards(source, split)]
    decides = {"shards": shards, "row_length": row_length, "seed": seed, "long": long, "window": WINDOW, "version": 1}
    name = f"{source}-{split}-{sha256_json(decides)[:16]}"
    places = [corpus.directory / "rows" / name, bedplate_home() / "rows" / name]
    laid_out = next((place for place in places if (place / "layout.json").is_file()), None)
    if laid_out is not None:
        return RowTable(laid_out)
    for place in places:
        try:
            with file_lock(place.parent / f".{name}.lock"):
                if not place.exists():
                    with atomic_directory(place) as directory:
                        _lay_out(directory, corpus, source, split, row_length, seed, long, quiet)
            return RowTable(place)
        except UsageError:
            if place == places[-1]:
                raise
    raise AssertionError("no place was tried")


def _lay_out(
    directory: Path, corpus: Corpus, source: str, split: Split, row_length: int, seed: int, long: Long, quiet: bool
) -> None:
    rows = tokens = lost = longer = end = 0
    documents = corpus.documents(source, split)
    with (
        (directory / "ends.bin").open("wb") as ends_file,
        (directory / "pieces.bin").open("wb") as pieces_file,
        Progress(f"rows of {source}", len(documents), "documents", quiet=quiet) as bar,
    ):
        for numbers in _windows(len(documents), seed, source):
            lengths = documents.lengths(numbers)
            longer += int((lengths > row_length).sum())
            pieces, cut = _pieces(numbers, lengths, row_length, long)
            lost += cut
            sizes = pieces["stop"] - pieces["start"]
            packed = best_fit(sizes.tolist(), row_length)
            order = [piece for row in packed for piece in row]
            ends = end + np.cumsum([len(row) for row in packed], dtype=np.int64)
            end += len(order)
            rows += len(packed)
            tokens += int(sizes.sum())
            ends_file.write(ends.astype("<i8").tobytes())
            pieces_file.write(pieces[order].tobytes())
            bar.advance(len(numbers))
    layout = RowLayout(rows, row_length, len(documents), long, longer, tokens, lost)
    atomic_write(directory / "layout.json", json.dumps(asdict(layout)) + "\n")


def _windows(documents: int, seed: int, source: str) -> Iterator[NDArray[np.int64]]:
    if documents:
        order = Permutation(documents, "documents", seed, source)
        for start in range(0, documents, WINDOW):
            yield order(np.arange(start, min(documents, start + WINDOW)))


def _pieces(
    numbers: NDArray[np.int64], lengths: NDArray[np.int64], row_length: int, long: Long
) -> tuple[NDArray[Any], int]:
    """The pieces of some documents, and how many tokens are in none."""
    if long == "drop":
        mask = lengths <= row_length
        lost = int(lengths[~mask].sum())
        numbers, lengths = numbers[mask], lengths[mask]
    elif long == "crop":
        lost = int(np.maximum(lengths - row_length, 0).sum())
        lengths = np.minimum(lengths, row_length)
    else:
        lost = 0
    counts = -(-lengths // row_length)
    pieces = np.empty(int(counts.sum()), _PIECE)
    pieces["document"] = np.repeat(numbers, counts)
    ordinals = np.arange(len(pieces)) - np.repeat(np.cumsum(counts) - counts, counts)
    pieces["start"] = ordinals * row_length
    pieces["stop"] = np.minimum(pieces["start"] + row_length, np.repeat(lengths, counts))
    return pieces, lost


def _mapped(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    """DataError where the file does not hold whole entries."""
    size = path.stat().st_size
    if size % dtype.itemsize:
        raise DataError(f"{path} is damaged: {size} bytes are not a whole number of entries; remove {path.parent}")
    return np.asarray(np.memmap(path, dtype=dtype, mode="r")) if size else np.empty(0, dtype)


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
    source once). Raises DataError for a corpus that has no documents in the split, ConfigError for a mixture of other
    sources."""

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
        # the recipe's weights, where it gives any
        sources = [corpus.sources[name] for name in self._tables]
        weights = {source.name: source.weight for source in sources if source.weight is not None}
        self.mixture = Mixture(self.config, rows, self.total, seed, weights)
        self._documents: dict[str, ShardDocuments] = {name: corpus.documents(name, split) for name in self._tables}
        self._orders: dict[tuple[str, int], Permutation] = {}

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
        """What became of each source's documents."""
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
