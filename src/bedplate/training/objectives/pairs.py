"""Texts that belong together, for an embedder to learn from: packed into one row, none seeing another.

Shapes: P pairs.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bedplate.core.errors import DataError
from bedplate.training.sources import ALONE, EpochSource, Shard
from bedplate.training.texts import Texts, in_one_row

Ids = tuple[int, ...]


@dataclass(frozen=True)
class TextPair:
    """Token ids of a text, of one that is to be near it, and of any number that are hard to tell from that one and are
    not to be. DataError for a text without tokens."""

    anchor: Ids
    positive: Ids
    id: str
    negatives: tuple[Ids, ...] = ()

    def __post_init__(self) -> None:
        if not all((self.anchor, self.positive, *self.negatives)):
            raise DataError(f"pair {self.id!r} has a text without tokens, so nothing can be learned from it")


@dataclass(frozen=True)
class PairBatch(Texts):
    """P anchors, then their P positives in the same order, then all negatives. texts: how many these are."""

    texts: int


def pack_pairs(pairs: Sequence[TextPair]) -> PairBatch:
    """The pairs as one micro-batch. DataError when there are none."""
    if not pairs:
        raise DataError("a batch needs at least one pair")
    anchors, positives = [pair.anchor for pair in pairs], [pair.positive for pair in pairs]
    texts = [*anchors, *positives, *(negative for pair in pairs for negative in pair.negatives)]
    return PairBatch(*in_one_row(texts), tuple(pair.id for pair in pairs), len(texts))


class PairSource(EpochSource[PairBatch]):
    """Batches of pairs, shuffled anew each epoch. A rank's share of a step is one micro-batch, since its texts are told
    from each other; pairs that do not fill a step at the end of an epoch are left out of that epoch.

    content: the sha256 of what the pairs were made from; by default their own. Raises DataError for fewer pairs than
    one step or than ranks, two of one id, or a text longer than `context_length`.
    """

    made_of = "pairs"

    def __init__(
        self,
        pairs: Sequence[TextPair],
        batch_size: int,
        *,
        seed: int = 0,
        epochs: int = 1,
        context_length: int | None = None,
        content: str | None = None,
        shard: Shard = ALONE,
    ) -> None:
        if batch_size < max(2, shard[1]):
            raise DataError(f"batch_size is {batch_size}: in a step there must be 2 pairs, and one for each rank")
        if len(pairs) < batch_size:
            raise DataError(f"{len(pairs)} pairs do not fill a step of {batch_size}")
        _check(pairs, context_length)
        self._pairs, self._seed = pairs, seed
        settings = {"batch_size": batch_size, "epochs": epochs, "seed": seed}
        super().__init__(len(pairs) // batch_size * batch_size, batch_size, epochs, shard, content, settings)

    def _everything(self) -> Any:
        return [[pair.id, pair.anchor, pair.positive, *pair.negatives] for pair in self._pairs]

    def _steps(self, epoch: int) -> list[list[int]]:
        order = list(range(len(self._pairs)))
        random.Random(f"{self._seed}/{epoch}").shuffle(order)
        size = self._step_size
        return [order[start : start + size] for start in range(0, len(order) - size + 1, size)]

    def _micro_batches(self, numbers: list[int]) -> Iterator[PairBatch]:
        yield pack_pairs([self._pairs[number] for number in numbers])


def _check(pairs: Iterable[TextPair], context_length: int | None) -> None:
    ids: set[str] = set()
    for pair in pairs:
        if pair.id in ids:
            raise DataError(f"two pairs have the id {pair.id!r}; ids must differ, so that errors can name one")
        ids.add(pair.id)
        longest = max(map(len, (pair.anchor, pair.positive, *pair.negatives)))
        if context_length is not None and longest > context_length:
            raise DataError(
                f"pair {pair.id!r} has a text of {longest} tokens, but the context holds {context_length}; shorten it "
                "or leave it out (nothing is cut silently)"
            )
