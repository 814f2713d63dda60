"""Loss on held-out texts: nats per token, and bits per byte, which do not depend on the tokenizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bedplate.pretraining.plan.sizes import RowShape
from bedplate.pretraining.run.data import HeldOut
from bedplate.training.batch import PackedBatch
from bedplate.training.objectives.corrupting import Corrupting, corrupted
from bedplate.training.objectives.objective import AnyModel, CorruptionVocabulary, TextObjective, evaluate_loss
from bedplate.training.raw_text import held_batches, held_loss

NATS = math.log(2)


@dataclass(frozen=True)
class HeldScore:
    """documents, bytes: of the texts. tokens: that are predicted. bits_per_byte counts a text's first token, before
    which nothing stands, as one of all: log2 of the vocabulary. Where not all of a text is said in its order, it is the
    bits of a token that is said over the bytes that a token has on average. target: what is counted in the place of
    tokens; only of tokens there are bits a byte."""

    name: str
    general: bool
    documents: int
    bytes: int
    tokens: int
    nats_per_token: float
    bits_per_byte: float | None
    target: str = "token"


@dataclass(frozen=True)
class HeldBatches:
    """Some documents of a held-out part, ready to be asked."""

    name: str
    general: bool
    documents: int
    bytes: int
    batches: Sequence[PackedBatch]
    first_bits: float
    objective: Corrupting | None = None
    all_tokens: int = 0

    def score(self, model: AnyModel) -> HeldScore:
        """What the model makes of them."""
        if self.objective is not None:
            return self._undone(model, self.objective)
        nats, tokens = held_loss(model, self.batches), sum(batch.target_count for batch in self.batches)
        assert nats is not None
        bits = nats * tokens / NATS + self.first_bits
        return HeldScore(self.name, self.general, self.documents, self.bytes, tokens, nats, bits / self.bytes)

    def _undone(self, model: AnyModel, objective: Corrupting) -> HeldScore:
        tokens = sum(batch.target_count for batch in self.batches)
        nats = evaluate_loss(model, self.batches, objective)[objective.name]
        predicts_tokens = objective.target == "token"
        bits = nats / NATS / (self.bytes / self.all_tokens) if predicts_tokens else None
        return HeldScore(self.name, self.general, self.documents, self.bytes, tokens, nats, bits, objective.target)


def part_of(holdout: HeldOut, limit: int | None) -> HeldOut:
    """The first documents of at most `limit` tokens (at least one; None: all)."""
    chosen = tokens = 0
    for ids in holdout.ids:
        if chosen and limit is not None and tokens + len(ids) > limit:
            break
        chosen, tokens = chosen + 1, tokens + len(ids)
    return replace(holdout, ids=holdout.ids[:chosen], texts=holdout.texts[:chosen])


def held_out(
    holdout: HeldOut,
    rows: RowShape,
    vocabulary: int,
    starts: bool,
    limit: int | None = None,
    objective: TextObjective | None = None,
    words: CorruptionVocabulary | None = None,
) -> HeldBatches:
    """`part_of` it. starts: texts begin with a token that the tokenizer sets, which is not predicted and costs nothing.
    objective, with the words it is about: what was done to the texts the model learns from, and is to these, the same
    each time."""
    holdout = part_of(holdout, limit)
    named = {str(number): ids for number, ids in enumerate(holdout.ids)}
    chosen, tokens = len(holdout.ids), sum(map(len, holdout.ids))
    first = 0.0 if starts else chosen * math.log2(vocabulary)
    batches = held_batches(named, rows.length, rows.micro)
    if words is None or objective is None or objective.likelihood:
        return HeldBatches(holdout.name, holdout.general, chosen, max(1, holdout.bytes), batches, first)
    assert isinstance(objective, Corrupting)
    corrupt = objective.corruption(words)
    batches = [corrupted(batch, corrupt, seed=0) for batch in batches]
    return HeldBatches(holdout.name, holdout.general, chosen, max(1, holdout.bytes), batches, first, objective, tokens)
