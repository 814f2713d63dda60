"""Which tokens of packed rows are computed together, and which keys any of them sees.

A row is cut into blocks of at most `BLOCK` tokens: short documents that stand beside each other, or a piece of a long
one. What a block needs of keys are one or two slices, so that no token is gathered or padded, and hardly a score is
computed for nothing: work and memory follow the tokens, not documents × the longest of them.

Shapes: n tokens of a block, K keys of it, m of them whose scores need a mask.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bedplate.models.packed.placement import PlacedDocument, Placement

BLOCK = 96
"""Larger blocks compute more scores that the mask throws away, smaller ones make more calls."""


@dataclass(frozen=True, eq=False)
class TokenBlock:
    """Queries `start` to `stop` of the flattened rows. keys: slices of the flattened keys, one behind the other. mask:
    [n, m], added to the scores of the last m keys (`as_mask`); None: every query sees all of them."""

    start: int
    stop: int
    keys: tuple[tuple[int, int], ...]
    mask: Tensor | None

    @property
    def key_count(self) -> int:
        return sum(stop - start for start, stop in self.keys)


def batch_blocks(blocks: Sequence[TokenBlock], max_size: int) -> list[tuple[TokenBlock, ...]]:
    """The blocks in groups that can be computed as one: as many queries, as many keys in one slice, the same mask. Of
    packed rows most are a piece of one long document, and alike. max_size: of queries × keys in a group, where it has
    several blocks."""
    waiting: dict[tuple[int, int, int], list[TokenBlock]] = {}
    groups: list[tuple[TokenBlock, ...]] = []
    for block in blocks:
        n, K = block.stop - block.start, block.key_count
        if len(block.keys) > 1 or 2 * n * K > max_size:
            groups.append((block,))
            continue
        key = n, K, id(block.mask)
        group = waiting.setdefault(key, [])
        group.append(block)
        if (len(group) + 1) * n * K > max_size:
            groups.append(tuple(waiting.pop(key)))
    return [*groups, *map(tuple, waiting.values())]


@dataclass(frozen=True)
class _Cut:
    """A block before its mask is made. last: how many of the keys need one. shape: what that depends on, where other
    blocks may have the same one."""

    start: int
    stop: int
    keys: tuple[tuple[int, int], ...]
    last: int
    shape: tuple[int, ...] | None


class Cutting:
    """The blocks of one kind of layer. causal: no token sees those behind it. window: as `AttentionOptions.window`, and
    shorter than the longest document."""

    def __init__(self, placement: Placement, causal: bool, window: int | None, device: torch.device) -> None:
        self._causal, self._window, self._device = causal, window, device
        self._numbers_N, self._positions_N = placement.numbers_N.to(device), placement.positions_N.to(device)
        masks: dict[tuple[int, ...], Tensor] = {}
        self.blocks: list[TokenBlock] = []
        for cut in self._cuts(placement.documents):
            mask = None
            if cut.last:
                mask = masks.get(cut.shape) if cut.shape is not None else None
                mask = self._mask(cut) if mask is None else mask
                if cut.shape is not None:  # a long document has many pieces of one shape
                    masks[cut.shape] = mask
            self.blocks.append(TokenBlock(cut.start, cut.stop, cut.keys, mask))

    @property
    def back(self) -> int | None:
        """How many tokens before it a token sees."""
        if self._window is None:
            return None
        return self._window - 1 if self._causal else self._window // 2

    def _cuts(self, documents: Sequence[PlacedDocument]) -> Iterator[_Cut]:
        for group in adjacent_groups(documents):
            if len(group) > 1:
                yield self._group(group)
            else:
                yield from self._pieces(group[0])

    def _group(self, group: Sequence[PlacedDocument]) -> _Cut:
        """Whole documents beside each other."""
        first, start, stop = group[0], group[0].start, group[-1].stop
        skipped = 0 if self.back is None else max(0, first.shared - self.back)
        keys = _slices((first.prefix + skipped, first.prefix + first.shared), (start, stop))
        count = sum(end - begin for begin, end in keys)
        return _Cut(start, stop, keys, self._masked(stop - start, count), None)

    def _masked(self, token_count: int, count: int) -> int:
        """How many of a block's keys get a mask, where its own tokens need one: without a window all of them see what
        is before them."""
        return token_count if self._window is None else count

    def _pieces(self, document: PlacedDocument) -> Iterator[_Cut]:
        """A document by itself, in pieces of equal size (about)."""
        for start, stop in pieces(document.start, document.stop):
            begin, end = (document.shared + at - document.start for at in (start, stop))
            low, high = 0 if self.back is None else max(0, begin - self.back), end
            if not self._causal:
                high = document.whole if self.back is None else min(document.whole, end + self.back)
            offset = document.start - document.shared
            keys = _slices(
                (document.prefix + low, document.prefix + document.shared),
                (max(document.start, offset + low), offset + high),
            )
            needed = self._causal or self._window is not None
            last = self._masked(end - begin, high - low) if needed else 0
            # What is masked are the last keys: where they stand beside the queries is all that it depends on.
            yield _Cut(start, stop, keys, last, (end - begin, last, high - begin))

    def _mask(self, cut: _Cut) -> Tensor:
        at = torch.cat([torch.arange(*span, device=self._device) for span in cut.keys])[-cut.last :]
        theirs, ours = self._numbers_N[at], self._numbers_N[cut.start : cut.stop, None]
        distance = self._positions_N[at] - self._positions_N[cut.start : cut.stop, None]
        # Of the keys that a block has, those before its own tokens are its documents' prefix, or its one document's.
        visible = (theirs == ours) | (at < cut.start)
        if self._causal:
            visible &= distance <= 0
        if self.back is not None:
            visible &= distance.abs() <= self.back
        return as_mask(visible)


def adjacent_groups(documents: Sequence[PlacedDocument], max_tokens: int = BLOCK) -> Iterator[list[PlacedDocument]]:
    """Documents in groups: those that stand directly beside each other, behind one prefix, and have at most so many
    tokens together; a longer one by itself."""
    group: list[PlacedDocument] = []
    for document in documents:
        if group:
            before = group[-1]
            adjacent = before.stop == document.start and before[2:4] == document[2:4]
            if not adjacent or document.stop - group[0].start > max_tokens:
                yield group
                group = []
        group.append(document)
    if group:
        yield group


def pieces(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """From start to stop in pieces of at most `BLOCK`, of equal size (about)."""
    count = -(-(stop - start) // BLOCK)
    edges = [start + (stop - start) * i // count for i in range(count + 1)]
    return itertools.pairwise(edges)


def as_mask(seen_nm: Tensor) -> Tensor:
    """What is added to scores, float32: 0 where a key is seen, else −∞."""
    return torch.zeros(seen_nm.shape, device=seen_nm.device).masked_fill_(~seen_nm, -torch.inf)


def _slices(*slices: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Those that hold something."""
    return tuple((start, stop) for start, stop in slices if start < stop)
