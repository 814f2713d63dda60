"""The paged KV cache: keys and values in blocks that sequences share (PagedAttention,
https://arxiv.org/abs/2309.06180).

A row is a table of blocks. Full blocks of a prefix pass between the prefix cache and rows by reference, without a copy;
memory is allocated one block at a time, so rows of all lengths fit together. For devices where copying memory costs
more than gathering it.

A decode step is one operation per layer, and so are prompt chunks where there is a kernel for them. Otherwise blocks
are gathered, group by group of similar spans.

Shapes: P blocks of the pool, b tokens of one, S sequences of a group, N tokens of a flat batch, K keys, G key-value
heads, H query heads, D features of one head, V of its value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from bedplate.core.errors import UnsupportedModelError
from bedplate.inference.forward.cache_ops import paged_attention, places, tile_tokens, write_kv
from bedplate.inference.forward.host_to_device import DeviceTensors, HostToDevice, Numbers
from bedplate.inference.forward.kv_cache import STEP, CachedAttend, layer_views, stores_of
from bedplate.inference.forward.radix import Segment
from bedplate.inference.forward.recurrent_states import RecurrentStates, Snapshot
from bedplate.inference.forward.spans import Padded, Span, grouped
from bedplate.models.layers.attention import whole_attention
from bedplate.models.layers.attention_options import PLAIN, AttentionOptions, KeysOf, Recurrence
from bedplate.models.layers.fused.custom_ops import has_triton
from bedplate.models.specs import TextSpec
from bedplate.models.specs.cache import row_layout

BLOCK = 16
SCRATCH_ROW = -1
"""The padding row, whose only block is the scratch block."""


Blocks = dict[int | None, tuple[int, ...]]
"""Blocks in order, by the window of the layers they are for (None: layers that see everything)."""
WINDOWED_DIVISOR = 4
"""Where some layers see everything, layers with a window get one block for so many of theirs: a running row needs no
more than its window, and saved blocks of earlier tokens are evicted first."""


class PagedSegment:
    """Whole blocks of a sequence, counted as used until released, with the recurrent states after the last token."""

    def __init__(self, cache: PagedCache, blocks: Blocks, snapshot: Snapshot | None = None) -> None:
        self._cache, self.blocks, self.snapshot = cache, blocks, snapshot

    @property
    def count(self) -> int:
        """The number of blocks that its tokens fill."""
        return max(map(len, self.blocks.values()))

    @property
    def nbytes(self) -> int:
        block_bytes = self.count * self._cache.block * self._cache.token_bytes
        return block_bytes + (0 if self.snapshot is None else self.snapshot.nbytes)

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
        self._cache.release_blocks(self.blocks)


class PagedCache:
    """The cache as pools of blocks, one pool per window size of the layers.

    Layers with a window free blocks that neither the row's next tokens nor the prefix cache will need. reclaim: asks
    the prefix cache to free so many bytes; returns whether it did. pinned: bytes that it never frees. scratch: each
    pool has one extra block for padding rows; by default on CUDA devices, where steps are recorded.
    """

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
        scratch: bool | None = None,
        reclaim: Callable[[int], bool] = lambda n: False,
        pinned: Callable[[], int] = lambda: 0,
    ) -> None:
        self.block, self.step = block, step
        self.scratch = device.type == "cuda" if scratch is None else scratch
        layout = row_layout(spec)
        self.states = RecurrentStates(layout, dtype, device)
        of_tokens = [layer_cache for layer_cache in layout if not layer_cache.of_sequence]
        if not of_tokens:
            raise UnsupportedModelError("a cache of blocks is for keys and values, and no layer has any: use slots")
        self.token_bytes = sum(layer_cache.values for layer_cache in of_tokens) * dtype.itemsize
        self.key_bytes = self.token_bytes / len(of_tokens)
        self.windows = {layer_cache.layer: layer_cache.window for layer_cache in of_tokens}
        self.forgets = any(window is not None for window in self.windows.values())
        divisors = {window: 1 if window is None else WINDOWED_DIVISOR for window in self.windows.values()}
        divisors = divisors if None in divisors else dict.fromkeys(divisors, 1)
        bytes_per_token = sum(layer.values / divisors[layer.window] for layer in of_tokens) * dtype.itemsize
        self.blocks = max(int(limit_bytes // (block * bytes_per_token)), 1)
        self.pools = {
            window: BlockPool(max(self.blocks // part, 1), partial(self._clear, window))
            for window, part in divisors.items()
        }
        self.dtype, self.device = dtype, device
        self.latents = frozenset(layer_cache.layer for layer_cache in of_tokens if layer_cache.cache_type == "latent")
        # Uninitialized: most of a large pool may never be used.
        self._data = {
            store: torch.empty(
                *(count, self.pools[store.window].blocks + self.scratch, block, store.heads, store.size),
                dtype=dtype,
                device=device,
            )
            for store, count in Counter(store for layer_cache in of_tokens for store in stores_of(layer_cache)).items()
        }
        self.keys, self.values = layer_views(self._data, of_tokens, spec.main.layers)
        if self.scratch:
            for window, pool in self.pools.items():
                self._clear(window, [pool.blocks])
        self._reclaim, self._pinned = reclaim, pinned
        self._tables: dict[int, dict[int | None, list[int]]] = {}

    def _clear(self, window: int | None, blocks: Sequence[int]) -> None:
        """Zeroes these blocks of the layers with this window."""
        index = HostToDevice(self.device).add(blocks).tensor
        for store, data in self._data.items():
            if store.window == window:
                data.index_fill_(1, index, 0)

    @property
    def longest(self) -> int | None:
        """The longest row that the pools can hold alone."""
        bound = [
            pool.blocks * self.block
            for window, pool in self.pools.items()
            if window is None or pool.blocks < self._max_blocks(window)
        ]
        return min(bound, default=None)

    def _max_blocks(self, window: int) -> int:
        """Maximum blocks of a row in layers with this window, whatever its length: the window, one step, and as many
        again that are not saved yet."""
        return self._count(window + 2 * self.step) + 1

    def saved_bytes(self, depth: int | None) -> int:
        """Bytes of one saved token; blocks hold all layers, at any depth."""
        return self.token_bytes

    def room(self, lengths: Sequence[int], parts: int = 1) -> bool:
        """Whether rows of these lengths fit beside pinned blocks. Shared blocks count for each row; states, which are
        stored outside of the pools, count as if they were in them."""
        reserved_blocks = (self._pinned() + len(lengths) * self.states.nbytes) // (self.block * self.token_bytes)
        return len(lengths) <= 1 or all(
            sum(self._row_blocks(length, window) for length in lengths) <= (pool.blocks - reserved_blocks) // parts
            for window, pool in self.pools.items()
        )

    def _row_blocks(self, length: int, window: int | None) -> int:
        """Maximum blocks of a row of this length."""
        count = self._count(length)
        return count if window is None else min(count, self._max_blocks(window))

    def reserve(self, lengths: Mapping[int, int]) -> None:
        if self.states and max(lengths, default=-1) >= self.states.rows:
            self.states.reserve(max(max(lengths) + 1, 2 * self.states.rows))
        for row, length in lengths.items():
            tables = self._row(row)
            if None in tables:
                self._grow(tables[None], None, length)

    def _row(self, row: int) -> dict[int | None, list[int]]:
        if row not in self._tables:
            self._tables[row] = {window: [] for window in self.pools}
        return self._tables[row]

    def _grow(self, table: list[int], window: int | None, length: int) -> None:
        while len(table) < self._count(length):
            table.append(self._allocate_block(window))

    def _count(self, length: int) -> int:
        return -(-length // self.block)

    def _allocate_block(self, window: int | None) -> int:
        pool = self.pools[window]
        # Rows may still use an evicted segment's blocks, so evicting it may free nothing.
        while not pool.free and self._reclaim(self.block * self.token_bytes):
            pass
        if not pool.free:
            raise MemoryError(f"all {pool.blocks} blocks of the cache are in use; ask for less at once")
        return pool.allocate()

    def release_blocks(self, blocks: Blocks) -> None:
        """Ends one use of each block."""
        for window, of_window in blocks.items():
            self.pools[window].release(of_window)

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
        states = self.states.save(row, end, depth) if snapshot else None
        for window, of_window in blocks.items():
            self.pools[window].share(of_window)
        return PagedSegment(self, blocks, states)

    def load(self, row: int, begin: int, segment: Segment, count: int) -> None:
        """Appends whole blocks to a row that has exactly `begin` tokens."""
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
        self.release_blocks({window: tuple(block for block in table if block >= 0) for window, table in tables.items()})
        self.states.forget(row)

    def attend(self, spans: Sequence[Span], transfer: HostToDevice | None = None) -> CachedAttend:
        for span in spans if self.forgets else ():
            self._move_on(span)
        self.states.begin(spans)
        return PagedAttention(self, spans, HostToDevice(self.device) if transfer is None else transfer)

    def attend_padded(self, spans: Sequence[Span], rows: int, blocks: int, transfer: HostToDevice) -> CachedAttend:
        """`attend` of single tokens, padded to a number of rows and of blocks per row for a recording; padding uses the
        scratch block."""
        for span in spans if self.forgets else ():
            self._move_on(span)
        padded_spans = [*spans, *[Span(SCRATCH_ROW, 0, 1)] * (rows - len(spans))]
        return PagedAttention(self, padded_spans, transfer, max_keys=blocks * self.block)

    def _move_on(self, span: Span) -> None:
        """Allocates the span's blocks in layers with windows, and frees blocks that precede both what it sees and what
        may not be saved yet."""
        for window, table in self._row(span.row).items():
            if window is None:
                continue
            expired = max(span.start - window + 1 - self.step, 0) // self.block
            self.pools[window].release([block for block in table[:expired] if block >= 0])
            table[:expired] = [-1] * len(table[:expired])
            self._grow(table, window, span.end)

    def commit(self) -> None:
        self.states.commit()

    def trim(self) -> None:
        """Does nothing: the pools are allocated as a whole."""

    def close(self) -> None:
        self._data, self.keys, self.values, self.pools, self._tables = {}, [], [], {}, {}
        self._reclaim, self._pinned = lambda n: False, lambda: 0
        self.states.close()

    def table(self, row: int, window: int | None = None) -> Sequence[int]:
        """The row's blocks in layers with this window, in order; −1 for freed ones."""
        if row == SCRATCH_ROW:
            return (self.pools[window].blocks,)
        return self._tables[row][window]


CLEAR_BATCH = 16
"""Maximum number of blocks zeroed at once."""


class BlockPool:
    """The blocks of the layers of one window, with the number of uses of each.

    Allocated blocks are zeroed: masked values still enter products, where infinities and NaN of another request, or of
    uninitialized memory, would spread. clear: zeroes blocks; called for up to `CLEAR_BATCH` at once, when needed.
    """

    def __init__(self, blocks: int, clear: Callable[[Sequence[int]], None]) -> None:
        self.blocks = blocks
        self._used, self._cleared = list(range(blocks - 1, -1, -1)), list[int]()
        self._uses = [0] * blocks
        self._clear = clear

    @property
    def free(self) -> int:
        """The number of unused blocks."""
        return len(self._used) + len(self._cleared)

    def allocate(self) -> int:
        if not self._cleared:
            batch = self._used[-CLEAR_BATCH:]
            self._clear(batch)
            del self._used[-CLEAR_BATCH:]
            self._cleared = batch
        block = self._cleared.pop()
        self._uses[block] = 1
        return block

    def share(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self._uses[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Ends one use of each block."""
        for block in blocks:
            self._uses[block] -= 1
            if self._uses[block] == 0:
                self._used.append(block)


class PagedAttention:
    """Writes a flat batch's keys and values into the rows' blocks, and attends to those. most: number of keys to assume
    for every row (a recording's)."""

    is_cached = True

    def __init__(
        self, cache: PagedCache, spans: Sequence[Span], transfer: HostToDevice, max_keys: int | None = None
    ) -> None:
        self._cache, self._spans = cache, spans
        self._at, self._max_keys = places(spans), max(span.end for span in spans) if max_keys is None else max_keys
        at, add = self._at, transfer.add
        self._row_N, self._position_N, self._tile_2U = add(at.row_N), add(at.position_N), add(at.tile_2U)
        self._span_3S = add(np.stack([at.begin_S, at.start_S, at.length_S]))
        self._tables = {window: add(self._table(window)) for window in {*cache.windows.values()}}
        self._blocks = {window: add(self._token_blocks(window)) for window in self._tables}
        self._lengths = at.length_S.tolist()
        self._offset_N = add(at.position_N % cache.block)
        self._alone = max_keys is None and len(spans) == 1 and spans[0].start == 0
        self._at_once = self._one_operation()
        # Latents are one tensor for keys and values; states are computed row by row.
        needs_groups = not self._at_once or bool(cache.latents) or bool(cache.states)
        self._grouped = None if self._alone or not needs_groups else self._in_groups(transfer)

    def _in_groups(self, transfer: HostToDevice) -> list[_PagedGroup]:
        cache = self._cache
        groups = grouped(self._spans, cache.key_bytes, copies=True, device=cache.device.type)
        return [_PagedGroup(cache, group, len(self._at.row_N), transfer) for group in groups]

    @property
    def _groups(self) -> list[_PagedGroup]:
        if self._grouped is None:
            self._grouped = [] if self._alone else self._in_groups(HostToDevice(self._cache.device))
        return self._grouped

    def _one_operation(self) -> bool:
        """Whether a layer is one operation: always for single tokens, for more where there is a kernel."""
        if any(span.source for span in self._spans):
            return False
        kernel = self._cache.device.type == "cuda" and self._cache.dtype != torch.float64 and has_triton()
        return kernel or all(span.length == 1 for span in self._spans)

    def _table(self, window: int | None) -> Numbers:
        return tables_of(self._cache, self._spans, window, -(-self._max_keys // self._cache.block))

    def _token_blocks(self, window: int | None) -> Numbers:
        return self._table(window)[self._at.row_N, self._at.position_N // self._cache.block]

    def write(self, layer: int, k_NGD: Tensor, v_NGV: Tensor) -> None:
        keys, values, blocks = self._cache.keys[layer], self._cache.values[layer], self._blocks
        blocks_N, offset_N = blocks[self._cache.windows[layer]].tensor, self._offset_N.tensor
        if layer in self._cache.latents:
            keys[blocks_N, offset_N] = k_NGD
        else:
            write_kv(keys, values, blocks_N, offset_N, k_NGD, v_NGV)

    def __call__(
        self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGV: Tensor, options: AttentionOptions = PLAIN
    ) -> Tensor:
        keys, values, window = self._cache.keys[layer], self._cache.values[layer], self._cache.windows[layer]
        latent = layer in self._cache.latents
        if self._at_once and not self._alone and options.bias is None and not latent:
            out_NHV = paged_attention(
                *(q_BTHD[0], k_BTGD[0], v_BTGV[0], keys, values, self._tables[window].tensor, self._row_N.tensor),
                *(self._position_N.tensor, self._span_3S.tensor, self._tile_2U.tensor, tile_tokens(self._spans)),
                *(self._max_keys, options.scale, options.softcap, options.window, options.sinks),
            )
            return out_NHV[None]
        self.write(layer, k_BTGD[0], v_BTGV[0])
        if self._alone:
            return whole_attention(q_BTHD, k_BTGD, v_BTGV, options, causal=True)
        out_NHV = q_BTHD.new_empty(*q_BTHD.shape[1:3], v_BTGV.shape[3])
        for group in self._groups:
            out_NHV[group.padded.tokens_N] = group(q_BTHD[0], keys, values, options, window)
        return out_NHV[None]

    def cross_attend(self, layer: int, q_BTHD: Tensor, options: AttentionOptions, keys_of: KeysOf) -> Tensor:
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        out_NHV = q_BTHD.new_empty(*q_BTHD.shape[1:3], values.shape[3])
        for group in self._groups:
            out_NHV[group.padded.tokens_N] = group.cross_attend(q_BTHD[0], keys, values, options)
        return out_NHV[None]

    def recur(self, layer: int, run: Recurrence, x_BTC: Tensor) -> Tensor:
        return self._cache.states.recur(layer, run, x_BTC, [group.padded for group in self._groups])


def tables_of(cache: PagedCache, spans: Sequence[Span], window: int | None, width: int) -> Numbers:
    """Each row's first blocks [S, width], padded with the row's own last block: masked values of other rows' blocks,
    which may not be finite, would enter this row's products."""
    tables = np.empty((len(spans), width), dtype=np.int64)
    for number, span in enumerate(spans):
        table = cache.table(span.row, window)[:width]
        tables[number, : len(table)], tables[number, len(table) :] = table, table[-1]
        np.copyto(tables[number], table[-1], where=tables[number] < 0)
    return tables


class _PagedGroup:
    """Spans padded to one length, with the tables of the blocks that they read."""

    def __init__(
        self, cache: PagedCache, numbered: Sequence[tuple[int, Span]], total: int, transfer: HostToDevice
    ) -> None:
        self._block, self.padded = cache.block, Padded(numbered, total, cache.dtype, transfer)
        max_blocks, spans = -(-self.padded.keys // cache.block), self.padded.spans
        self._tables: dict[int | None, DeviceTensors] = {
            window: transfer.add(tables_of(cache, spans, window, max_blocks)) for window in {*cache.windows.values()}
        }

    def __call__(
        self, q_NHD: Tensor, keys: Tensor, values: Tensor, options: AttentionOptions, window: int | None
    ) -> Tensor:
        if window is not None and options.window is not None:
            nearby, b = self.padded.keys_in_window(options.window), self._block
            tables_SP = self._tables[window].tensor
            # Positions beyond a shorter row's last block are masked.
            blocks_SK = tables_SP.gather(1, (nearby.position_SK // b).clamp(max=tables_SP.shape[1] - 1))
            at = (blocks_SK, nearby.position_SK % b)
            return self.padded.attend_near(q_NHD, keys[at], values[at], options, nearby)
        key_range = slice(self.padded.first, self.padded.keys)
        return self.padded.attend(q_NHD, self._gathered(keys, key_range), self._gathered(values, key_range), options)

    def cross_attend(self, q_NHD: Tensor, keys: Tensor, values: Tensor, options: AttentionOptions) -> Tensor:
        read = slice(self.padded.sources)
        return self.padded.cross_attend(q_NHD, self._gathered(keys, read), self._gathered(values, read), options)

    def _gathered(self, pool_PbGD: Tensor, places: slice) -> Tensor:
        return pool_PbGD[self._tables[None].tensor].flatten(1, 2)[:, places].transpose(1, 2)
