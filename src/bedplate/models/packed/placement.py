"""Where the documents of packed rows stand, as plain numbers: known where a batch is made, so that nobody reads them
back from a device.

Shapes: B rows, T tokens a row, N = B·T tokens of the flattened rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor


class PlacedDocument(NamedTuple):
    """Tokens `start` to `stop` of the flattened rows: a document, or the prefix that a row's documents share.

    Before it stand `shared` tokens of its row's prefix, from `prefix` on; none before the prefix itself. row, segment:
    its number there (see `Inputs.segments`).
    """

    start: int
    stop: int
    prefix: int = 0
    shared: int = 0
    row: int = 0
    segment: int = 1

    @property
    def token_count(self) -> int:
        """How many tokens it has itself."""
        return self.stop - self.start

    @property
    def whole(self) -> int:
        """How many it has with what is shared."""
        return self.shared + self.stop - self.start


@dataclass(frozen=True)
class Placement:
    """shape: of the rows. documents: in the order of the flattened rows; what is in none of them is padding."""

    shape: tuple[int, int]
    documents: tuple[PlacedDocument, ...]

    @classmethod
    def of(cls, segments_BT: Tensor) -> Placement:
        """Placement of rows with these `Inputs.segments`, which are read from their device."""
        B, T = segments_BT.shape
        if not B * T:
            return cls((B, T), ())
        flat = segments_BT.reshape(-1).cpu()
        begins_here = torch.ones_like(flat, dtype=torch.bool)
        begins_here[1:] = flat[1:] != flat[:-1]
        begins_here[::T] = True
        begin = begins_here.nonzero().squeeze(1)
        edges = itertools.pairwise([*begin.tolist(), B * T])
        runs = zip(edges, flat[begin].tolist(), strict=True)
        return cls((B, T), tuple(_placed(runs, T)))

    @classmethod
    def of_lengths(cls, lengths: Sequence[int]) -> Placement:
        """Placement of one row without padding: `lengths` of its prefix (or 0) and of each document."""
        prefix, *documents = lengths
        placed = [PlacedDocument(0, prefix, segment=0)] if prefix else []
        at = prefix
        for number, length in enumerate(documents, 1):
            placed.append(PlacedDocument(at, at + length, 0, prefix, 0, number))
            at += length
        return cls((1, at), tuple(placed))

    @property
    def padded(self) -> bool:
        return sum(document.token_count for document in self.documents) < self.shape[0] * self.shape[1]

    @property
    def longest(self) -> int:
        """Tokens of the longest document, with what is shared."""
        return max((document.whole for document in self.documents), default=0)

    @cached_property
    def numbers_N(self) -> Tensor:
        """The number of each token's document in `documents`, int64 on the CPU; −1: padding."""
        numbers = torch.full((self.shape[0] * self.shape[1],), -1)
        for number, document in enumerate(self.documents):
            numbers[document.start : document.stop] = number
        return numbers

    @cached_property
    def positions_N(self) -> Tensor:
        """Position of each token in its document, counted from the shared prefix on, int64 on the CPU; 0 for
        padding."""
        positions = torch.zeros(self.shape[0] * self.shape[1], dtype=torch.int64)
        for document in self.documents:
            positions[document.start : document.stop] = torch.arange(document.shared, document.whole)
        return positions


def _placed(runs: Iterable[tuple[tuple[int, int], int]], row_length: int) -> Iterable[PlacedDocument]:
    prefixes: dict[int, tuple[int, int]] = {}
    for (start, stop), segment in runs:
        row = start // row_length
        if segment == 0:
            prefixes[row] = (start, stop - start)
            yield PlacedDocument(start, stop, row=row, segment=0)
        elif segment > 0:
            prefix, shared = prefixes.get(row, (0, 0))
            yield PlacedDocument(start, stop, prefix, shared, row, segment)
