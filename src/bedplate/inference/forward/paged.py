"""Keys and values in blocks that sequences share (PagedAttention, https://arxiv.org/abs/2309.06180).

A row is a table of blocks. Full blocks of a beginning are handed from the prefix cache to a row and back by reference,
without a copy; memory is taken a block at a time, so rows of all lengths fit beside each other. For devices where
moving memory costs more than gathering it.
Shapes: P blocks of the pool, b tokens of one, S sequences of a group, N tokens of a flat batch, K keys, G
key-value heads, H query heads, D features of one head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from bedplate.core.errors import UnsupportedModelError
from bedplate.inference.forward.kv_cache import STEP, CachedAttend
from bedplate.inference.forward.radix import Segment
from bedplate.inference.forward.spans import Padded, Span, grouped, span_index
from bedplate.inference.forward.states import Snapshot, States
from bedplate.models.layers.attention import whole_attention
from bedplate.models.layers.cross import KeysOf
from bedplate.models.layers.documents import Recurrence
from bedplate.models.layers.how import PLAIN, How
from bedplate.models.specs import TextSpec
from bedplate.models.specs.cache import held

BLOCK = 16


class PagedSegment:
    """Whole blocks of a sequence, counted as used for as long as this is held; and the states after the last token."""

    def __init__(self, cache: PagedCache, blocks: Sequence[int], snapshot: Snapshot | None = None) -> None:
        self._cache, self.blocks, self.snapshot = cache, tuple(blocks), snapshot

    @property
    def nbytes(self) -> int:
        own = len(self.blocks) * self._cache.block * self._cache.token_bytes
        return own + (0 if self.snapshot is None else self.snapshot.nbytes)

    @property
    def resumes(self) -> bool:
        return self.snapshot is not None

    def split(self, at: int) -> tuple[PagedSegment, PagedSegment]:
        at //= self._cache.block
        first, second = PagedSegment(self._cache, self.blocks[:at]), PagedSegment(self._cache, self.blocks[at:])
        second.snapshot = self.snapshot
        return first, second

    def release(self) -> None:
        self.snapshot = None
        self._cache.let_go(self.blocks)


class PagedCache:
    """A pool of blocks. reclaim: asks the prefix cache to let go of so many
    bytes, and says whether it did. pinned: bytes that it never will."""

    copies = False
    forgets = False

    def __init__(
        self,
        spec: TextSpec,
        dtype: torch.dtype,
        device: torch.device,
        limit_bytes: int,
        *,
        block: int = BLOCK,
        step: int = STEP,
        reclaim: Callable[[int], bool] = lambda n: False,
        pinned: Callable[[], int] = lambda: 0,
    ) -> None:
        self.block, self.step = block, step
        layout = held(spec)
        self.states = States(layout, dtype, device)
        of_tokens = [one for one in layout if not one.of_sequence]
        if not of_tokens:
            raise UnsupportedModelError("a cache of blocks is for keys and values, and no layer has any: use slots")
        self.token_bytes = sum(one.values for one in of_tokens) * dtype.itemsize
        self.blocks = max(limit_bytes // (block * self.token_bytes), 1)
        self.dtype, self.device = dtype, device
        self.latents = frozenset(one.layer for one in of_tokens if one.kind == "latent")
        nothing = torch.empty(0, dtype=dtype, device=device)
        self.keys, self.values = [nothing] * spec.main.layers, [nothing] * spec.main.layers
        for one in of_tokens:
            latent = one.kind == "latent"  # one key, whose last features are the value
            keys = self.keys[one.layer] = self._pool(one.heads, one.key_size + one.value_size * latent)
            self.values[one.layer] = keys[..., one.key_size :] if latent else self._pool(one.heads, one.value_size)
        self._reclaim, self._pinned = reclaim, pinned
        self._free = list(range(self.blocks - 1, -1, -1))
        self._uses = [0] * self.blocks
        self._tables: dict[int, list[int]] = {}

    def _pool(self, heads: int, size: int) -> Tensor:
        # Zeros: masked positions take part in products, where NaN would spread.
        return torch.zeros(self.blocks, self.block, heads, size, dtype=self.dtype, device=self.device)

    @property
    def free_blocks(self) -> int:
        return len(self._free)

    def saved_bytes(self, depth: int | None) -> int:
        """Of one saved token: blocks hold all layers, whatever is in them."""
        return self.token_bytes

    def room(self, lengths: Sequence[int]) -> bool:
        """Whether the rows fit beside what is pinned; shared blocks are counted for each of them, and states, which
        stand beside the pool, as if they were in it."""
        each = self.block * self.token_bytes
        beside = self._pinned() + len(lengths) * self.states.nbytes
        return len(lengths) <= 1 or sum(self._count(length) for length in lengths) <= self.blocks - beside // each

    def reserve(self, lengths: dict[int, int]) -> dict[int, int]:
        if self.states and max(lengths, default=-1) >= self.states.rows:
            self.states.reserve(max(max(lengths) + 1, 2 * self.states.rows))
        for row, length in lengths.items():
            table = self._tables.setdefault(row, [])
            while len(table) < self._count(length):
                table.append(self._take())
        return {}

    def _count(self, length: int) -> int:
        return -(-length // self.block)

    def _take(self) -> int:
        # A segment's blocks may still be used by rows, so that giving it up frees nothing yet.
        while not self._free and self._reclaim(self.block * self.token_bytes):
            pass
        if not self._free:
            raise MemoryError(f"all {self.blocks} blocks of the cache are in use; ask for less at once")
        found = self._free.pop()
        self._uses[found] = 1
        return found

    def let_go(self, blocks: Sequence[int]) -> None:
        """One user less of each block."""
        for block in blocks:
            self._uses[block] -= 1
            if self._uses[block] == 0:
                self._free.append(block)

    def rewinds(self, row: int, to: int) -> bool:
        return to == 0 or self.states.is_at(row, to)

    def save(self, row: int, begin: int, end: int, depth: int | None = None, snapshot: bool = True) -> PagedSegment:
        blocks = self._tables[row][begin // self.block : end // self.block]
        for block in blocks:
            self._uses[block] += 1
        return PagedSegment(self, blocks, self.states.save(row, end, depth) if snapshot else None)

    def load(self, row: int, begin: int, segment: Segment, count: int) -> None:
        """Hands over whole blocks. The row has exactly `begin` tokens."""
        assert isinstance(segment, PagedSegment)
        table = self._tables.setdefault(row, [])
        assert len(table) * self.block == begin
        for block in segment.blocks[: count // self.block]:
            self._uses[block] += 1
            table.append(block)
        if self.states:
            if row >= self.states.rows:
                self.states.reserve(max(row + 1, 2 * self.states.rows))
            whole = count == len(segment.blocks) * self.block
            self.states.load(row, begin + count, segment.snapshot if whole else None)

    def free(self, row: int) -> None:
        self.let_go(self._tables.pop(row, ()))
        self.states.forget(row)

    def attend(self, spans: Sequence[Span]) -> CachedAttend:
        self.states.begin(spans)
        return PagedAttention(self, spans)

    def commit(self) -> None:
        self.states.commit()

    def table(self, row: int) -> Sequence[int]:
        """The row's blocks, in order."""
        return self._tables[row]


class PagedAttention:
    """Writes a flat batch's keys and values into the rows' blocks, then attends group by group over gathered ones."""

    keeps = True

    def __init__(self, cache: PagedCache, spans: Sequence[Span]) -> None:
        self._cache, device, b = cache, cache.device, cache.block
        rows, positions = (index.tolist() for index in span_index(spans, torch.device("cpu")))
        blocks = [cache.table(row)[at // b] for row, at in zip(rows, positions, strict=True)]
        self._blocks_N = torch.tensor(blocks, device=device)
        self._offsets_N = torch.tensor(positions, device=device) % b
        self._alone = len(spans) == 1 and spans[0].start == 0
        self._spans = spans

    @cached_property
    def _groups(self) -> list[_PagedGroup]:
        groups = [] if self._alone else grouped(self._spans)
        return [_PagedGroup(self._cache, group, len(self._blocks_N)) for group in groups]

    def write(self, layer: int, k_NGD: Tensor, v_NGV: Tensor) -> None:
        self._cache.keys[layer][self._blocks_N, self._offsets_N] = k_NGD
        if layer not in self._cache.latents:
            self._cache.values[layer][self._blocks_N, self._offsets_N] = v_NGV

    def __call__(self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGV: Tensor, how: How = PLAIN) -> Tensor:
        self.write(layer, k_BTGD[0], v_BTGV[0])
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        if self._alone:
            return whole_attention(q_BTHD, k_BTGD, v_BTGV, how, causal=True)
        out_NHV = q_BTHD.new_empty(*q_BTHD.shape[1:3], v_BTGV.shape[3])
        for group in self._groups:
            out_NHV[group.padded.tokens_N] = group(q_BTHD[0], keys, values, how)
        return out_NHV[None]

    def across(self, layer: int, q_BTHD: Tensor, how: How, keys_of: KeysOf) -> Tensor:
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        out_NHV = q_BTHD.new_empty(*q_BTHD.shape[1:3], values.shape[3])
        for group in self._groups:
            out_NHV[group.padded.tokens_N] = group.across(q_BTHD[0], keys, values, how)
        return out_NHV[None]

    def recur(self, layer: int, run: Recurrence, x_BTC: Tensor) -> Tensor:
        return self._cache.states.recur(layer, run, x_BTC, [group.padded for group in self._groups])


class _PagedGroup:
    """Spans padded to one length, with the tables of the blocks they read."""

    def __init__(self, cache: PagedCache, numbered: Sequence[tuple[int, Span]], total: int) -> None:
        self.padded = Padded(numbered, total, cache.device, cache.dtype)
        most = -(-self.padded.keys // cache.block)
        tables = [list(cache.table(span.row)[:most]) for _, span in numbered]
        # Shorter rows are filled up with any block: what they would see there is masked.
        self._tables_SP = torch.tensor([t + [0] * (most - len(t)) for t in tables], device=cache.device)

    def __call__(self, q_NHD: Tensor, keys: Tensor, values: Tensor, how: How) -> Tensor:
        own = slice(self.padded.first, self.padded.keys)
        return self.padded.attend(q_NHD, self._gathered(keys, own), self._gathered(values, own), how)

    def across(self, q_NHD: Tensor, keys: Tensor, values: Tensor, how: How) -> Tensor:
        read = slice(self.padded.sources)
        return self.padded.across(q_NHD, self._gathered(keys, read), self._gathered(values, read), how)

    def _gathered(self, pool_PbGD: Tensor, places: slice) -> Tensor:
        return pool_PbGD[self._tables_SP].flatten(1, 2)[:, places].transpose(1, 2)
