"""Which documents each row of a source holds: laid out once, kept on disk, memory-mapped.

Documents are taken in a shuffled order, a window of them at a time, and each window is packed by best fit; so memory
holds one window, however large the source. The table is found again by what decides it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bedplate.core.errors import DataError, UsageError
from bedplate.core.files import atomic_directory, atomic_write, bedplate_home, file_lock, sha256_json
from bedplate.core.progress import Progress
from bedplate.data.corpus.manifest import Split
from bedplate.data.corpus.shards import Corpus
from bedplate.data.packing import DocumentPiece, best_fit, check_row_length
from bedplate.data.permutation import Permutation

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
    for place in places:
        if (place / "layout.json").is_file():
            return RowTable(place)
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
