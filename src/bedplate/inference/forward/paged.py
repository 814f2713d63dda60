"""Keys and values in blocks that sequences share (PagedAttention, https://arxiv.org/abs/2309.06180).

A row is a table of blocks. Full blocks of a beginning are handed from the prefix cache to a row and back by reference,
without a copy; memory is taken a block at a time, so rows of all lengths fit beside each other. For devices where
moving memory costs more than gathering it.
Shapes: P blocks of the pool, b tokens of one, S sequences of a group, N tokens of a flat batch, K keys, G
key-value heads, H query heads, D features of one head.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property, partial

import torch
from torch import Tensor

from bedplate.core.errors import UnsupportedModelError
from bedplate.inference.forward.kv_cache import STEP, CachedAttend
from bedplate.inference.forward.pool import Pool
from bedplate.inference.forward.radix import Segment
from bedplate.inference.forward.spans import Padded, Span, grouped, span_index
from bedplate.inference.forward.states import Snapshot, States
from bedplate.inference.forward.stores import stores_of
from bedplate.models.layers.attention import whole_attention
from bedplate.models.layers.cross import KeysOf
from bedplate.models.layers.documents import Recurrence
from bedplate.models.layers.how import PLAIN, How
from bedplate.models.specs import TextSpec
from bedplate.models.specs.cache import held

BLOCK = 16

Blocks = dict[int | None, tuple[int, ...]]
"""Of each window that layers have (None: of those that see everything), blocks in order."""
WINDOWED = 4
"""Where some layers see everything, those with a window have room for one token in so many: a running row needs no more
than its window, and what is saved of earlier tokens for others is let go first."""


class PagedSegment:
    """Whole blocks of a sequence, counted as used for as long as this is held; and the states after the last token."""

    def __init__(self, cache: PagedCache, blocks: Blocks, snapshot: Snapshot | None = None) -> None:
        self._cache, self.blocks, self.snapshot = cache, blocks, snapshot

    @property
    def count(self) -> int:
        """How many blocks its tokens are."""
        return max(map(len, self.blocks.values()))

    @property
    def nbytes(self) -> int:
        own = self.count * self._cache.block * self._cache.token_bytes
        return own + (0 if self.snapshot is None else self.snapshot.nbytes)

    @property
    def resumes(self) -> bool:
        return self.snapshot is not None

    def split(self, at: int) -> tuple[PagedSegment, PagedSegment]:
        at //= self._cache.block
        first = PagedSegment(self._cache, {window: blocks[:at] for window, blocks in self.blocks.items()})
        second = PagedSegment(self._cache, {window: blocks[at:] for window, blocks in self.blocks.items()})
        second.snapshot = self.snapshot
        return first, second

    def release(self) -> None:
        self.snapshot = None
        self._cache.let_go(self.blocks)


class PagedCache:
    """Pools of blocks, one for each window that layers have. A row's layers with a window take blocks as it is computed
    and let go of those that neither its next tokens nor the prefix cache will ask for. reclaim: asks the prefix cache
    to let go of so many bytes, and says whether it did. pinned: bytes that it never will."""

    copies = False

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
        self.windows = {one.layer: one.window for one in of_tokens}
        self.forgets = any(window is not None for window in self.windows.values())
        each = {window: 1 if window is None else WINDOWED for window in self.windows.values()}
        each = each if None in each else dict.fromkeys(each, 1)
        taken = sum(one.values / each[one.window] for one in of_tokens) * dtype.itemsize
        self.blocks = max(int(limit_bytes // (block * taken)), 1)
        self.pools = {
            window: Pool(max(self.blocks // part, 1), partial(self._clear, window)) for window, part in each.items()
        }
        self.dtype, self.device = dtype, device
        self.latents = frozenset(one.layer for one in of_tokens if one.kind == "latent")
        stores = Counter(store for one in of_tokens for store in stores_of(one))
        # Memory that is not touched: most of a large pool may never be used.
        self._data = {
            store: torch.empty(
                count, self.pools[store.window].blocks, block, store.heads, store.size, dtype=dtype, device=device
            )
            for store, count in stores.items()
        }
        layers = {store: iter(data.unbind(0)) for store, data in self._data.items()}
        nothing = torch.empty(0, dtype=dtype, device=device)
        self.keys, self.values = [nothing] * spec.main.layers, [nothing] * spec.main.layers
        for one in of_tokens:
            found = [next(layers[store]) for store in stores_of(one)]
            self.keys[one.layer] = found[0]
            # A latent is one key, whose last features are the value.
            self.values[one.layer] = found[1] if len(found) > 1 else found[0][..., one.key_size :]
        self._reclaim, self._pinned = reclaim, pinned
        self._tables: dict[int, dict[int | None, list[int]]] = {}

    def _clear(self, window: int | None, blocks: Sequence[int]) -> None:
        """Zeros in these blocks of the layers with this window."""
        index = torch.tensor(blocks, device=self.device)
        for store, data in self._data.items():
            if store.window == window:
                data.index_fill_(1, index, 0)

    @property
    def longest(self) -> int | None:
        """Of a row that has all of the pools."""
        bound = [
            pool.blocks * self.block
            for window, pool in self.pools.items()
            if window is None or pool.blocks < self._most(window)
        ]
        return min(bound, default=None)

    def _most(self, window: int) -> int:
        """Blocks that a row has of the layers with this window, however long it is: its window, a step, and as much
        again that is not saved yet."""
        return self._count(window + 2 * self.step) + 1

    @property
    def free_blocks(self) -> int:
        """Of the layers that see everything, or else of those that have most room."""
        return max(self.pools.values(), key=lambda pool: pool.blocks).free

    def saved_bytes(self, depth: int | None) -> int:
        """Of one saved token: blocks hold all layers, whatever is in them."""
        return self.token_bytes

    def room(self, lengths: Sequence[int]) -> bool:
        """Whether the rows fit beside what is pinned; shared blocks are counted for each of them, and states, which
        stand beside the pools, as if they were in them."""
        beside = (self._pinned() + len(lengths) * self.states.nbytes) // (self.block * self.token_bytes)
        return len(lengths) <= 1 or all(
            sum(self._held(length, window) for length in lengths) <= pool.blocks - beside
            for window, pool in self.pools.items()
        )

    def _held(self, length: int, window: int | None) -> int:
        """Blocks of a row at most."""
        count = self._count(length)
        return count if window is None else min(count, self._most(window))

    def reserve(self, lengths: dict[int, int]) -> dict[int, int]:
        if self.states and max(lengths, default=-1) >= self.states.rows:
            self.states.reserve(max(max(lengths) + 1, 2 * self.states.rows))
        for row, length in lengths.items():
            tables = self._row(row)
            if None in tables:
                self._grow(tables[None], None, length)
        return {}

    def _row(self, row: int) -> dict[int | None, list[int]]:
        if row not in self._tables:
            self._tables[row] = {window: [] for window in self.pools}
        return self._tables[row]

    def _grow(self, table: list[int], window: int | None, length: int) -> None:
        while len(table) < self._count(length):
            table.append(self._take(window))

    def _count(self, length: int) -> int:
        return -(-length // self.block)

    def _take(self, window: int | None) -> int:
        pool = self.pools[window]
        # A segment's blocks may still be used by rows, so that giving it up frees nothing yet.
        while not pool.free and self._reclaim(self.block * self.token_bytes):
            pass
        if not pool.free:
            raise MemoryError(f"all {pool.blocks} blocks of the cache are in use; ask for less at once")
        return pool.take()

    def let_go(self, blocks: Blocks) -> None:
        """One user less of each block."""
        for window, of_window in blocks.items():
            self.pools[window].let_go(of_window)

    def rewinds(self, row: int, to: int) -> bool:
        if to and not self.states.is_at(row, to):
            return False
        tables, b = self._row(row), self.block
        return all(-1 not in tables[w][max(to - w + 1, 0) // b : self._count(to)] for w in tables if w is not None)

    def save(
        self, row: int, begin: int, end: int, depth: int | None = None, snapshot: bool = True
    ) -> PagedSegment | None:
        part = slice(begin // self.block, end // self.block)
        blocks: Blocks = {window: tuple(table[part]) for window, table in self._row(row).items()}
        if any(-1 in of_window for of_window in blocks.values()):
            return None
        kept = self.states.save(row, end, depth) if snapshot else None
        for window, of_window in blocks.items():
            self.pools[window].share(of_window)
        return PagedSegment(self, blocks, kept)

    def load(self, row: int, begin: int, segment: Segment, count: int) -> None:
        """Hands over whole blocks. The row has exactly `begin` tokens."""
        assert isinstance(segment, PagedSegment)
        for window, table in self._row(row).items():
            assert len(table) * self.block == begin
            blocks = segment.blocks[window][: count // self.block]
            self.pools[window].share(blocks)
            table.extend(blocks)
        if self.states:
            if row >= self.states.rows:
                self.states.reserve(max(row + 1, 2 * self.states.rows))
            whole = count == segment.count * self.block
            self.states.load(row, begin + count, segment.snapshot if whole else None)

    def free(self, row: int) -> None:
        tables = self._tables.pop(row, {})
        self.let_go({window: tuple(block for block in table if block >= 0) for window, table in tables.items()})
        self.states.forget(row)

    def attend(self, spans: Sequence[Span]) -> CachedAttend:
        for span in spans if self.forgets else ():
            self._move_on(span)
        self.states.begin(spans)
        return PagedAttention(self, spans)

    def _move_on(self, span: Span) -> None:
        """Blocks of layers with windows: those of the span are taken, those before what it sees, and before what may
        not be saved yet, let go."""
        for window, table in self._row(span.row).items():
            if window is None:
                continue
            gone = max(span.start - window + 1 - self.step, 0) // self.block
            self.pools[window].let_go([block for block in table[:gone] if block >= 0])
            table[:gone] = [-1] * len(table[:gone])
            self._grow(table, window, span.end)

    def commit(self) -> None:
        self.states.commit()

    def close(self) -> None:
        self._data, self.keys, self.values, self.pools, self._tables = {}, [], [], {}, {}
        self._reclaim, self._pinned = lambda n: False, lambda: 0
        self.states.close()

    def table(self, row: int, window: int | None = None) -> Sequence[int]:
        """The row's blocks of the layers with this window, in order; −1 for those that it has let go."""
        return self._tables[row][window]


class PagedAttention:
    """Writes a flat batch's keys and values into the rows' blocks, then attends group by group over gathered ones."""

    keeps = True

    def __init__(self, cache: PagedCache, spans: Sequence[Span]) -> None:
        self._cache, self._spans = cache, spans
        rows, positions = (index.tolist() for index in span_index(spans, torch.device("cpu")))
        self._places = list(zip(rows, positions, strict=True))
        self._offsets_N = torch.tensor(positions, device=cache.device) % cache.block
        self._blocks: dict[int | None, Tensor] = {}
        self._alone = len(spans) == 1 and spans[0].start == 0

    @cached_property
    def _groups(self) -> list[_PagedGroup]:
        groups = [] if self._alone else grouped(self._spans)
        return [_PagedGroup(self._cache, group, len(self._places)) for group in groups]

    def _blocks_N(self, window: int | None) -> Tensor:
        if window not in self._blocks:
            b = self._cache.block
            found = [self._cache.table(row, window)[at // b] for row, at in self._places]
            self._blocks[window] = torch.tensor(found, device=self._cache.device)
        return self._blocks[window]

    def write(self, layer: int, k_NGD: Tensor, v_NGV: Tensor) -> None:
        blocks_N = self._blocks_N(self._cache.windows[layer])
        self._cache.keys[layer][blocks_N, self._offsets_N] = k_NGD
        if layer not in self._cache.latents:
            self._cache.values[layer][blocks_N, self._offsets_N] = v_NGV

    def __call__(self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGV: Tensor, how: How = PLAIN) -> Tensor:
        self.write(layer, k_BTGD[0], v_BTGV[0])
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        if self._alone:
            return whole_attention(q_BTHD, k_BTGD, v_BTGV, how, causal=True)
        out_NHV = q_BTHD.new_empty(*q_BTHD.shape[1:3], v_BTGV.shape[3])
        for group in self._groups:
            out_NHV[group.padded.tokens_N] = group(q_BTHD[0], keys, values, how, self._cache.windows[layer])
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
        self._cache, self.padded = cache, Padded(numbered, total, cache.device, cache.dtype)
        self._tables: dict[int | None, Tensor] = {}

    def _tables_SP(self, window: int | None) -> Tensor:
        """Tables of one length. Where a row has no block its own last one stands, whose numbers are masked: those of
        another row, which may not be finite, would take part in this one's products."""
        if window not in self._tables:
            most = -(-self.padded.keys // self._cache.block)
            tables = [self._cache.table(span.row, window)[:most] for span in self.padded.spans]
            filled = [[*(t[-1] if at < 0 else at for at in t), *[t[-1]] * (most - len(t))] for t in tables]
            self._tables[window] = torch.tensor(filled, device=self._cache.device)
        return self._tables[window]

    def __call__(self, q_NHD: Tensor, keys: Tensor, values: Tensor, how: How, window: int | None) -> Tensor:
        if window is not None and how.window is not None:
            near, b = self.padded.near(how.window), self._cache.block
            tables_SP = self._tables_SP(window)
            # A shorter row's positions go on behind its last block, where they are masked.
            blocks_SK = tables_SP.gather(1, (near.position_SK // b).clamp(max=tables_SP.shape[1] - 1))
            at = (blocks_SK, near.position_SK % b)
            return self.padded.attend_near(q_NHD, keys[at], values[at], how, near)
        own = slice(self.padded.first, self.padded.keys)
        return self.padded.attend(q_NHD, self._gathered(keys, own), self._gathered(values, own), how)

    def across(self, q_NHD: Tensor, keys: Tensor, values: Tensor, how: How) -> Tensor:
        read = slice(self.padded.sources)
        return self.padded.across(q_NHD, self._gathered(keys, read), self._gathered(values, read), how)

    def _gathered(self, pool_PbGD: Tensor, places: slice) -> Tensor:
        return pool_PbGD[self._tables_SP(None)].flatten(1, 2)[:, places].transpose(1, 2)
