"""Every way to cut tokens in two known ones.

A vocabulary of 262,144 tokens has over a million cuts, and half of them join known tokens. All are looked up at once by
rolling hashes (Karp and Rabin, https://doi.org/10.1147/rd.312.0249) in a table with open addressing. Equal texts have
equal hashes, so none is missed; what was found is compared character by character, and where unequal texts shared a
hash the tokens are cut one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BASE = 0x5851F42D4C957F2D
"""Odd, so that it has an inverse modulo 2^64: the multiplier of Knuth's MMIX generator."""
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
"""2^64 divided by the golden ratio (Fibonacci hashing): the product's high bits hang on all bits of a hash."""
_WINDOW = 1 << 15
"""Tokens at once, so that what is computed of them stays in the processor's cache."""


def cuts(vocabulary: Sequence[str], order: Sequence[int]) -> list[tuple[str, str]]:
    """The pairs of known tokens that join to the tokens of `order` (places in `vocabulary`), token by token in that
    order; of one token's the one with the longer left part first. The known ones are all different."""
    hashed = _Hashed.of(vocabulary)
    table = _Table.of(hashed.whole)
    all_pairs: list[tuple[str, str]] = []
    for begin in range(0, len(order), _WINDOW):
        window = order[begin : begin + _WINDOW]
        pairs = _looked_up(vocabulary, np.array(window, np.int64), hashed, table)
        all_pairs += _one_by_one(vocabulary, window) if pairs is None else pairs
    return all_pairs


def _one_by_one(vocabulary: Sequence[str], order: Sequence[int]) -> list[tuple[str, str]]:
    token_set = set(vocabulary)
    tokens = (vocabulary[index] for index in order)
    pairs = ((token[:cut], token[cut:]) for token in tokens for cut in range(len(token) - 1, 0, -1))
    return [pair for pair in pairs if token_set.issuperset(pair)]


def _looked_up(
    vocabulary: Sequence[str], order: NDArray[np.int64], hashed: _Hashed, table: _Table
) -> list[tuple[str, str]] | None:
    """None where a part was taken for another one of the same hash."""
    cut_counts = np.maximum(hashed.lengths[order] - 1, 0)
    whole = np.repeat(order, cut_counts)
    cut = np.repeat(np.cumsum(cut_counts), cut_counts) - np.arange(len(whole))
    left = table.lookup(hashed.left(whole, cut))
    whole, cut, left = (values[left >= 0] for values in (whole, cut, left))
    right = table.lookup(hashed.right(whole, cut))
    whole, cut, left, right = (values[right >= 0] for values in (whole, cut, left, right))
    right_length = hashed.lengths[whole] - cut
    if not (hashed.equals(left, whole, 0 * cut, cut) and hashed.equals(right, whole, cut, right_length)):
        return None
    tokens = map(vocabulary.__getitem__, whole.tolist())
    return [(token[:at], token[at:]) for token, at in zip(tokens, cut.tolist(), strict=True)]


@dataclass(frozen=True, eq=False)
class _Hashed:
    """Texts, whose parts have hashes: polynomials of their characters, modulo 2^64."""

    characters: NDArray[np.uint32]
    lengths: NDArray[np.int64]
    starts: NDArray[np.int64]
    """Where each begins in all characters."""
    sums: NDArray[np.uint64]
    """Of all characters before a place; character i of a text, and one more so that none is 0, counts _BASE^i times."""
    back: NDArray[np.uint64]
    """_BASE^-i, by which a part from character i on is as if it began there."""

    @classmethod
    def of(cls, texts: Sequence[str]) -> _Hashed:
        characters = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), "<u4")
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        starts = np.cumsum(lengths) - lengths
        longest = int(lengths.max(initial=0))
        sums = np.zeros(len(characters) + 1, np.uint64)
        inside = np.arange(len(characters)) - np.repeat(starts, lengths)
        np.cumsum(_powers(_BASE, longest)[inside] * (characters + np.uint64(1)), out=sums[1:])
        return cls(characters, lengths, starts, sums, _powers(pow(_BASE, -1, 1 << 64), longest))

    @property
    def whole(self) -> NDArray[np.uint64]:
        return self.left(np.arange(len(self.lengths)), self.lengths)

    def left(self, texts: NDArray[np.int64], cut: NDArray[np.int64]) -> NDArray[np.uint64]:
        starts = self.starts[texts]
        return self.sums[starts + cut] - self.sums[starts]

    def right(self, texts: NDArray[np.int64], cut: NDArray[np.int64]) -> NDArray[np.uint64]:
        starts = self.starts[texts]
        return (self.sums[starts + self.lengths[texts]] - self.sums[starts + cut]) * self.back[cut]

    def equals(
        self, texts: NDArray[np.int64], wholes: NDArray[np.int64], begin: NDArray[np.int64], count: NDArray[np.int64]
    ) -> bool:
        """Whether each text is the `count` characters of the other one from its `begin` on."""
        if not np.array_equal(self.lengths[texts], count):
            return False
        inside = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        ours = self.characters[np.repeat(self.starts[texts], count) + inside]
        return np.array_equal(ours, self.characters[np.repeat(self.starts[wholes] + begin, count) + inside])


def _powers(base: int, count: int) -> NDArray[np.uint64]:
    """Modulo 2^64, from the zeroth on."""
    return np.cumprod(np.array([1, *[base] * count], np.uint64))


@dataclass(frozen=True, eq=False)
class _Table:
    """Hashes, found again by open addressing (linear probing), many at a time."""

    hashes: NDArray[np.uint64]
    slots: NDArray[np.int32]
    """By place: which hash stands there, -1 for none. At most a quarter of the places are taken."""

    @classmethod
    def of(cls, hashes: NDArray[np.uint64]) -> _Table:
        table = cls(hashes, np.full(1 << (4 * len(hashes)).bit_length(), -1, np.int32))
        places, waiting = table._places(hashes), np.arange(len(hashes))
        while len(waiting):
            free = waiting[table.slots[places[waiting]] < 0]
            table.slots[places[free]] = free  # of several at one place, one stays
            waiting = waiting[table.slots[places[waiting]] != waiting]
            table._step(places, waiting)
        return table

    def lookup(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The number of each in the table; -1 where there is none."""
        indices = np.full(len(hashes), -1, np.int64)
        places, queries = self._places(hashes), np.arange(len(hashes))
        while len(queries):
            occupants = self.slots[places[queries]]
            queries, occupants = queries[occupants >= 0], occupants[occupants >= 0]
            is_match = self.hashes[occupants] == hashes[queries]
            indices[queries[is_match]] = occupants[is_match]
            queries = queries[~is_match]
            self._step(places, queries)
        return indices

    def _places(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        bits = len(self.slots).bit_length() - 1
        # of a table of one place there are no high bits to take
        return ((hashes * _SPREAD) >> np.uint64(min(64 - bits, 63))).astype(np.int64) & (len(self.slots) - 1)

    def _step(self, places: NDArray[np.int64], queries: NDArray[np.int64]) -> None:
        places[queries] = (places[queries] + 1) & (len(self.slots) - 1)
