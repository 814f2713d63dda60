"""Packs several examples or documents into one row, none attending to another, with no target lost.

`pack_examples` puts a batch of examples into one row without padding; a prefix that all of them share is computed once,
as segment 0, and tokens that no prediction reads are left out. `rows_batch` takes documents that
`bedplate.data.packing` has laid out in rows of a fixed length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from numpy.typing import NDArray

from bedplate.core.errors import DataError
from bedplate.data.packing import DocumentPiece, fill_rows, placed
from bedplate.models.packed.placement import PlacedDocument, Placement
from bedplate.training.batch import NO_TARGET, LabelledText, PackedBatch, TrainingExample

MIN_PREFIX = 4
"""Shorter common prefixes are not worth one more document in the attention."""


def common_prefix(examples: Sequence[TrainingExample]) -> int:
    """Number of leading tokens that all examples share, excluding the token before any that carries loss.

    The token that predicts the first loss-carrying one is excluded because each example needs its own prediction.
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
    """Packs every example as a document into one row [1, T] without padding.

    Tokens from an example's last target on are left out, as no prediction reads them. share_prefix: compute the common
    prefix once, if several examples share at least `min_prefix` tokens. DataError without examples, or for one longer
    than `context_length`.
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
        tokens += example.ids[prefix : example.last_loss]
        segments += [number] * (example.last_loss - prefix)
        predicted = slice(prefix + 1, example.last_loss + 1)
        following = zip(example.ids[predicted], example.loss[predicted], strict=True)
        targets += [token if learned else NO_TARGET for token, learned in following]
    batch = PackedBatch.of(
        torch.tensor([tokens]),
        torch.tensor([segments]),
        torch.tensor([targets]),
        [example.id for example in examples],
        [sum(example.loss) for example in examples],
        Placement.of_lengths([prefix, *(example.last_loss - prefix for example in examples)]),
    )
    if not any(sources):
        return batch
    if not all(sources):
        missing = next(example.id for example in examples if not example.source)
        raise DataError(f"example {missing!r} has no text for the encoder, but others of its batch do")
    numbers = torch.arange(1, len(sources) + 1).repeat_interleave(torch.tensor([len(source) for source in sources]))
    read = torch.tensor([[token for source in sources for token in source]])
    placement = Placement.of_lengths([0, *map(len, sources)])
    return replace(batch, sources=read, source_segments=numbers[None], source_placement=placement)


# --- documents in rows of one length


def rows_batch(
    rows: Sequence[Sequence[DocumentPiece]],
    documents: Sequence[Sequence[int] | NDArray[Any]],
    ids: Sequence[str],
    row_length: int,
) -> PackedBatch:
    """A batch [B, row_length] of packed rows. The last token of a piece predicts the document's next token, even when
    that is in another piece, so that splitting loses no target."""
    filled = fill_rows(rows, documents, row_length, NO_TARGET)
    shape = (len(rows), row_length)
    places = [
        PlacedDocument(row * row_length + start, row * row_length + stop, row=row, segment=segment)
        for _, row, start, stop, segment in placed(rows)
    ]
    return PackedBatch.of(
        torch.from_numpy(filled.tokens),
        torch.from_numpy(filled.segments),
        torch.from_numpy(filled.targets),
        [ids[piece.document] for row in rows for piece in row],
        filled.followed,
        Placement(shape, tuple(places)),
    )
