"""Packing: several examples or documents in one row, none seeing another, no token lost.

`pack_examples` puts a batch of examples into one row without padding; the tokens that all of them start with are
computed once, as the row's segment 0. `pack_documents` fills rows of a fixed length, by best fit
(https://arxiv.org/abs/2404.10830) or in sequence.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from numpy.typing import NDArray

from bedplate.core.errors import DataError
from bedplate.models.packed.placement import PlacedDocument, Placement
from bedplate.training.batch import NO_TARGET, PackedBatch, TrainingExample
from bedplate.training.texts import LabelledText

MIN_PREFIX = 4
"""Shorter common prefixes are not worth one more document in the attention."""


def common_prefix(examples: Sequence[TrainingExample]) -> int:
    """How many leading tokens all examples share, short of the last token before any that carries loss.

    The token that predicts the first loss-carrying one stays outside, because each example needs its own prediction.
    """
    limit = min(example.first_loss - 1 for example in examples)
    first, last = min(e.ids[:limit] for e in examples), max(e.ids[:limit] for e in examples)
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=True)) if a != b), limit)


def check_length(example: TrainingExample | LabelledText, context_length: int | None) -> None:
    """DataError where an example is longer than the context."""
    if context_length is not None and len(example.ids) > context_length:
        raise DataError(
            f"example {example.id!r} has {len(example.ids)} tokens, but the context holds {context_length}; "
            "shorten it or leave it out (nothing is cut silently)"
        )


def pack_examples(
    examples: Sequence[TrainingExample],
    *,
    share_prefix: bool = True,
    min_prefix: int = MIN_PREFIX,
    context_length: int | None = None,
) -> PackedBatch:
    """One row [1, T] with every example as a document; nothing is padded or cut.

    share_prefix: compute the common prefix once, when there are several examples and it has at least `min_prefix`
    tokens. Raises DataError when there are no examples, or one is longer than `context_length`.
    """
    if not examples:
        raise DataError("a batch needs at least one example")
    for example in examples:
        check_length(example, context_length)
    sources = [example.source for example in examples]
    share_prefix = share_prefix and not any(sources)  # what follows another text is no shared beginning
    prefix = common_prefix(examples) if share_prefix and len(examples) > 1 else 0
    prefix = prefix if prefix >= min_prefix else 0
    tokens = list(examples[0].ids[:prefix])
    segments, targets = [0] * prefix, [NO_TARGET] * prefix
    for number, example in enumerate(examples, start=1):
        tokens += example.ids[prefix:]
        segments += [number] * (len(example.ids) - prefix)
        following = zip(example.ids[prefix + 1 :], example.loss[prefix + 1 :], strict=True)
        targets += [token if learned else NO_TARGET for token, learned in following]
        targets.append(NO_TARGET)
    batch = PackedBatch.of(
        torch.tensor([tokens]),
        torch.tensor([segments]),
        torch.tensor([targets]),
        [example.id for example in examples],
        [sum(example.loss) for example in examples],
        Placement.of_lengths([prefix, *(len(example.ids) - prefix for example in examples)]),
    )
    if not any(sources):
        return batch
    if not all(sources):
        missing = next(example.id for example in examples if not example.source)
        raise DataError(f"example {missing!r} has no text for the encoder, but others of its batch do")
    numbers = torch.arange(1, len(sources) + 1).repeat_interleave(torch.tensor([len(one) for one in sources]))
    read = torch.tensor([[token for one in sources for token in one]])
    placement = Placement.of_lengths([0, *map(len, sources)])
    return replace(batch, sources=read, source_segments=numbers[None], source_placement=placement)


# --- documents in rows of one length


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
    """Lays documents of these lengths into rows; every token gets exactly one place.

    best_fit splits only documents longer than a row, and puts each piece, longest first, where it leaves the least
    room. sequential concatenates in order and cuts at row ends, so only the last row has padding. Raises DataError
    for an empty document or a row shorter than 2 tokens.
    """
    if row_length < 2:
        raise DataError(f"a row of {row_length} tokens has nothing to predict; use at least 2")
    for number, length in enumerate(lengths):
        if length < 1:
            raise DataError(f"document {number} is empty; leave it out")
    rows = _best_fit(lengths, row_length) if method == "best_fit" else _sequential(lengths, row_length)
    pieces: dict[int, int] = {}
    for row in rows:
        for piece in row:
            pieces[piece.document] = pieces.get(piece.document, 0) + 1
    return PackedRows(
        tuple(tuple(row) for row in rows),
        row_length,
        len(lengths),
        sum(count > 1 for count in pieces.values()),
        sum(lengths),
        sum(lengths) - len(lengths),
    )


def _best_fit(lengths: Sequence[int], row_length: int) -> list[list[DocumentPiece]]:
    pieces = [
        DocumentPiece(number, start, min(start + row_length, length))
        for number, length in enumerate(lengths)
        for start in range(0, length, row_length)
    ]
    pieces.sort(key=len, reverse=True)
    rows: list[list[DocumentPiece]] = []
    room: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for piece in pieces:
        at = bisect_left(room, (len(piece), -1))
        free, row = room.pop(at) if at < len(room) else (row_length, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(piece)
        if free > len(piece):
            insort(room, (free - len(piece), row))
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


def rows_batch(
    rows: Sequence[Sequence[DocumentPiece]],
    documents: Sequence[Sequence[int] | NDArray[Any]],
    ids: Sequence[str],
    row_length: int,
) -> PackedBatch:
    """Some packed rows as a batch [B, row_length]. The last token of a piece predicts the document's next token, if
    there is one, although that stands in another piece: splitting loses no target."""
    shape = (len(rows), row_length)
    tokens, segments = torch.zeros(shape, dtype=torch.int64), torch.full(shape, -1)
    targets = torch.full(shape, NO_TARGET)
    names: list[str] = []
    losses: list[int] = []
    placed: list[PlacedDocument] = []
    for r, row in enumerate(rows):
        at = 0
        for number, piece in enumerate(row, start=1):
            document, end = documents[piece.document], at + len(piece)
            following = document[piece.start + 1 : piece.stop + 1]
            tokens[r, at:end] = torch.tensor(document[piece.start : piece.stop])
            segments[r, at:end] = number
            targets[r, at : at + len(following)] = torch.tensor(following, dtype=torch.int64)
            names.append(ids[piece.document])
            losses.append(len(following))
            placed.append(PlacedDocument(r * row_length + at, r * row_length + end, row=r, segment=number))
            at = end
    return PackedBatch.of(tokens, segments, targets, names, losses, Placement(shape, tuple(placed)))
