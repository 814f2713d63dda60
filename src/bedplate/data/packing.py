"""Documents laid into rows of a fixed length, none cut unless it is longer than a row, and the rows filled with ids.

Best fit (https://arxiv.org/abs/2404.10830) or in sequence. Shapes: R rows, T tokens of a row.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bedplate.core.errors import DataError

PADDING_SEGMENT = -1
"""The segment of a place that no document stands in."""


@dataclass(frozen=True)
class DocumentPiece:
    """Tokens `start` to `stop` of document number `document`: the whole of it, unless it had to be split."""

    document: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class PackedRows:
    """Rows of pieces, with what became of the documents. tokens + padding = rows × row_length."""

    rows: tuple[tuple[DocumentPiece, ...], ...]
    row_length: int
    documents: int
    split_documents: int
    tokens: int
    targets: int

    @property
    def padding(self) -> int:
        return len(self.rows) * self.row_length - self.tokens


def pack_documents(
    lengths: Sequence[int], row_length: int, method: Literal["best_fit", "sequential"] = "best_fit"
) -> PackedRows:
    """Lays documents of these lengths into rows; every token gets exactly one place. best_fit splits only documents
    longer than a row, and puts each piece, longest first, where it leaves the least room. sequential concatenates and
    cuts at row ends. DataError for an empty document or rows under 2 tokens."""
    check_row_length(row_length)
    for number, length in enumerate(lengths):
        if length < 1:
            raise DataError(f"document {number} is empty; leave it out")
    if method == "best_fit":
        pieces = [
            DocumentPiece(number, start, min(start + row_length, length))
            for number, length in enumerate(lengths)
            for start in range(0, length, row_length)
        ]
        rows = [[pieces[i] for i in row] for row in best_fit([len(piece) for piece in pieces], row_length)]
    else:
        rows = _sequential(lengths, row_length)
    counts = Counter(piece.document for row in rows for piece in row)
    split, tokens = sum(count > 1 for count in counts.values()), sum(lengths)
    return PackedRows(tuple(map(tuple, rows)), row_length, len(lengths), split, tokens, tokens - len(lengths))


def check_row_length(row_length: int) -> None:
    """DataError for a row in which nothing follows anything."""
    if row_length < 2:
        raise DataError(f"a row of {row_length} tokens has nothing to predict; use at least 2")


def best_fit(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """The numbers of pieces of these lengths, none longer than a row, in rows: each piece, longest first, is put where
    it leaves the least room."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for piece in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        length = lengths[piece]
        at = bisect_left(room, (length, -1))
        free, row = room.pop(at) if at < len(room) else (row_length, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(piece)
        if free > length:
            insort(room, (free - length, row))
    return rows


def _sequential(lengths: Sequence[int], row_length: int) -> list[list[DocumentPiece]]:
    rows: list[list[DocumentPiece]] = []
    free = 0
    for number, length in enumerate(lengths):
        start = 0
        while start < length:
            if free == 0:
                rows.append([])
                free = row_length
            stop = min(length, start + free)
            rows[-1].append(DocumentPiece(number, start, stop))
            free -= stop - start
            start = stop
    return rows


class PlacedPiece(NamedTuple):
    """Where a piece stands: its row, the places there, and its number in the row, from 1."""

    piece: DocumentPiece
    row: int
    start: int
    stop: int
    segment: int


def placed(rows: Sequence[Sequence[DocumentPiece]]) -> Iterator[PlacedPiece]:
    """Every piece of the rows, one behind the other."""
    for r, row in enumerate(rows):
        at = 0
        for number, piece in enumerate(row, start=1):
            yield PlacedPiece(piece, r, at, at + len(piece), number)
            at += len(piece)


@dataclass(frozen=True)
class FilledRows:
    """int64 [R, T] each. segments: the piece's number in its row, from 1, −1 where there is none; targets: the token
    that follows in the same document, else `no_target`. followed: of each piece, how many tokens have a target."""

    tokens: NDArray[np.int64]
    segments: NDArray[np.int64]
    targets: NDArray[np.int64]
    followed: tuple[int, ...]


def fill_rows(
    rows: Sequence[Sequence[DocumentPiece]],
    documents: Sequence[Sequence[int] | NDArray[Any]],
    row_length: int,
    no_target: int,
) -> FilledRows:
    """The rows' ids. The last token of a piece predicts the document's next token, if there is one, although that
    stands in another piece: splitting loses no target."""
    shape = (len(rows), row_length)
    tokens, segments = np.zeros(shape, np.int64), np.full(shape, PADDING_SEGMENT, np.int64)
    targets = np.full(shape, no_target, np.int64)
    followed: list[int] = []
    for piece, row, start, stop, segment in placed(rows):
        ids = documents[piece.document][piece.start : piece.stop + 1]
        following = len(ids) - 1 if len(ids) > len(piece) else len(piece) - 1
        tokens[row, start:stop] = ids[: len(piece)]
        segments[row, start:stop] = segment
        targets[row, start : start + following] = ids[1 : following + 1]
        followed.append(following)
    return FilledRows(tokens, segments, targets, tuple(followed))
