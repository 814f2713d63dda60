"""Raw text as what next-token prediction learns from: documents encoded, some kept apart, the others packed into rows.

Who trains a base on text goes through here, from nothing or further: which documents are kept, how long is trained and
what a kept document costs the model must not differ between them.
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
from bedplate.training.objectives import AnyModel, NextToken
from bedplate.training.sources import DocumentSource

_AT_ONCE = 512
"""Texts that are encoded together: their encodings are many times as large as their ids."""


@dataclass(frozen=True)
class EncodedText:
    """Id → tokens (int32), each with the end that documents are learned to have: those to learn, and those kept apart.
    texts: of the latter, as they were."""

    learned: dict[str, np.ndarray]
    held: dict[str, np.ndarray]
    texts: dict[str, str]


def encode_text(documents: Sequence[Document], tokenizer: Tokenizer, seed: int, held: float) -> EncodedText:
    """The documents in an order that `seed` draws, of which the first `held` (a share) are kept apart. What the
    tokenizer sets before a text stands there, control tokens in it are the characters they are written with."""
    ordered = sorted(documents, key=lambda d: sha256_bytes(f"{seed}/text/{d.id}\0{d.text}".encode()))
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    found: dict[str, np.ndarray] = {}
    for start in range(0, len(ordered), _AT_ONCE):
        some = ordered[start : start + _AT_ONCE]
        encoded = tokenizer.encode_batch([d.text for d in some], parse_special=False)
        for document, ids in zip(some, encoded, strict=True):
            if ids:
                found[document.id] = np.array([*tokenizer.prompt_start, *ids, *end], dtype=np.int32)
    names = list(found)
    kept = round(len(names) * held)
    texts = {d.id: d.text for d in ordered}
    return EncodedText(
        {name: found[name] for name in names[kept:]},
        {name: found[name] for name in names[:kept]},
        {name: texts[name] for name in names[:kept]},
    )


def first_tokens(documents: Mapping[str, np.ndarray], tokens: int) -> dict[str, np.ndarray]:
    """The first documents of so many tokens together; the last one is cut where they end."""
    found: dict[str, np.ndarray] = {}
    for name, ids in documents.items():
        if tokens < 2:
            break
        found[name] = ids[:tokens]
        tokens -= len(ids)
    return found


def held_batches(held: Mapping[str, np.ndarray], row: int, micro_rows: int) -> list[PackedBatch]:
    """Kept documents in rows of `row` tokens, so many at a time; none where there are no documents."""
    if not held:
        return []
    return [batch for step in DocumentSource(list(held.values()), row, micro_rows) for batch in step]


def held_loss(model: AnyModel, batches: Sequence[PackedBatch]) -> float | None:
    """Nats a token on kept documents; None where there are none."""
    return evaluate_loss(model, batches, NextToken())["next_token"] if batches else None
