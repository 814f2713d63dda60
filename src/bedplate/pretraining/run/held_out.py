"""What a model makes of texts that were kept from it: nats a token, and bits a byte, which no tokenizer changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bedplate.pretraining.run.corpus import HeldOut, Rows
from bedplate.training.batch import PackedBatch
from bedplate.training.objectives import AnyModel
from bedplate.training.raw_text import held_batches, held_loss

NATS = math.log(2)


@dataclass(frozen=True)
class HeldScore:
    """documents, bytes: of the texts. tokens: that are predicted. bits_per_byte counts a text's first token, before
    which nothing stands, as one of all: log2 of the vocabulary."""

    name: str
    general: bool
    documents: int
    bytes: int
    tokens: int
    nats_per_token: float
    bits_per_byte: float


@dataclass(frozen=True)
class HeldBatches:
    """Some documents of a held-out part, ready to be asked."""

    name: str
    general: bool
    documents: int
    bytes: int
    batches: Sequence[PackedBatch]
    first_bits: float

    def score(self, model: AnyModel) -> HeldScore:
        """What the model makes of them."""
        nats, tokens = held_loss(model, self.batches), sum(batch.target_count for batch in self.batches)
        assert nats is not None
        bits = nats * tokens / NATS + self.first_bits
        return HeldScore(self.name, self.general, self.documents, self.bytes, tokens, nats, bits / self.bytes)


def held_out(held: HeldOut, rows: Rows, vocabulary: int, starts: bool, limit: int | None = None) -> HeldBatches:
    """The first documents of at most `limit` tokens (at least one; None: all). starts: texts begin with a token that
    the tokenizer sets, which is not predicted and costs nothing."""
    chosen, tokens = 0, 0
    for ids in held.ids:
        if chosen and limit is not None and tokens + len(ids) > limit:
            break
        chosen, tokens = chosen + 1, tokens + len(ids)
    named = {str(number): ids for number, ids in enumerate(held.ids[:chosen])}
    size = sum(len(text.encode()) for text in held.texts[:chosen])
    first = 0.0 if starts else chosen * math.log2(vocabulary)
    batches = held_batches(named, rows.length, rows.micro)
    return HeldBatches(held.name, held.general, chosen, max(1, size), batches, first)
