"""Raw text for next-token prediction: encodes documents, holds some out, and packs the others into rows.

Pretraining and continued pretraining both use it, so that they hold out, count and evaluate documents alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bedplate.core.files import sha256_bytes
from bedplate.data.documents import Document
from bedplate.text.tokenizer import Tokenizer
from bedplate.training.batch import PackedBatch
from bedplate.training.loop import evaluate_loss
from bedplate.training.objectives.language import NextToken
from bedplate.training.objectives.objective import AnyModel
from bedplate.training.sources import DocumentSource

_AT_ONCE = 512
"""Texts encoded per call; few, because encodings are many times as large as their ids."""


@dataclass(frozen=True)
class EncodedText:
    """Tokens (int32) by document id, each with its end token: those to train on, and those held out. texts: the
    held-out texts."""

    learned: dict[str, np.ndarray]
    heldout: dict[str, np.ndarray]
    texts: dict[str, str]


def encode_text(documents: Sequence[Document], tokenizer: Tokenizer, seed: int, heldout_share: float) -> EncodedText:
    """Encodes the documents in an order drawn from `seed`, and holds out the first `heldout_share` of them. Texts begin
    with the tokenizer's start token; control tokens in them are encoded as plain characters."""
    ordered = sorted(documents, key=lambda d: sha256_bytes(f"{seed}/text/{d.id}\0{d.text}".encode()))
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    ids_by_document: dict[str, np.ndarray] = {}
    for start in range(0, len(ordered), _AT_ONCE):
        chunk = ordered[start : start + _AT_ONCE]
        encoded = tokenizer.encode_batch([d.text for d in chunk], parse_special=False)
        for document, ids in zip(chunk, encoded, strict=True):
            if ids:
                ids_by_document[document.id] = np.array([*tokenizer.prompt_start, *ids, *end], dtype=np.int32)
    names = list(ids_by_document)
    heldout_count = round(len(names) * heldout_share)
    texts = {d.id: d.text for d in ordered}
    return EncodedText(
        {name: ids_by_document[name] for name in names[heldout_count:]},
        {name: ids_by_document[name] for name in names[:heldout_count]},
        {name: texts[name] for name in names[:heldout_count]},
    )


def first_tokens(documents: Mapping[str, np.ndarray], tokens: int) -> dict[str, np.ndarray]:
    """The first documents with `tokens` tokens together; the last one is cut there."""
    selected: dict[str, np.ndarray] = {}
    for name, ids in documents.items():
        if tokens < 2:
            break
        selected[name] = ids[:tokens]
        tokens -= len(ids)
    return selected


def heldout_batches(heldout: Mapping[str, np.ndarray], row: int, micro_rows: int) -> list[PackedBatch]:
    """Held-out documents in rows of `row` tokens, `micro_rows` at a time; none where there are no documents."""
    if not heldout:
        return []
    return [batch for step in DocumentSource(list(heldout.values()), row, micro_rows) for batch in step]


def heldout_loss(model: AnyModel, batches: Sequence[PackedBatch]) -> float | None:
    """Nats per token on held-out documents; None where there are none."""
    return evaluate_loss(model, batches, NextToken())["next_token"] if batches else None
