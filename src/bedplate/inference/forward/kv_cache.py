"""The KV cache of running sequences: its protocol, and the implementation in contiguous slots, one per row, with the
attention that reads them.

A layer with a window keeps a ring of its last tokens: position p is stored at p % C, where C is the ring's capacity. In
a layer that keeps all tokens C exceeds every position, so that one rule serves both.

Shapes: R rows (slots), S sequences of a batch or group, N tokens of a flat batch, C tokens that a layer has room for, K
keys a sequence may see, M layers of one size, G key-value heads, H query heads, D features of one head, V of its value.
"""

from __future__ import annotations

import math
import mmap
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple, Protocol
from weakref import ref

import numpy as np
import torch
from torch import Tensor

from bedplate.core.errors import UsageError
from bedplate.core.memory import forget_pages, zeros_on_demand
from bedplate.inference.forward.cache_ops import write_kv
from bedplate.inference.forward.host_to_device import DeviceTensors, HostToDevice, Numbers
from bedplate.inference.forward.radix import Segment
from bedplate.inference.forward.recurrent_states import RecurrentStates, Snapshot
from bedplate.inference.forward.spans import Padded, Span, grouped, span_index
from bedplate.models.layers.attention import Attend, whole_attention
from bedplate.models.layers.attention_options import PLAIN, AttentionOptions, CrossAttend, KeysOf, Recurrence
from bedplate.models.specs import TextSpec
from bedplate.models.specs.cache import LayerCache, row_layout


class Store(NamedTuple):
    """The tensor of keys or values that layers with these heads, features and window (None: every token) share."""

    heads: int
    size: int
    window: int | None


def stores_of(layer_cache: LayerCache) -> tuple[Store, ...]:
    """The stores of a layer's keys and values; one store where a latent serves as both."""
    if layer_cache.cache_type == "latent":
        return (Store(1, layer_cache.key_size + layer_cache.value_size, None),)
    return Store(layer_cache.heads, layer_cache.key_size, layer_cache.window), Store(
        layer_cache.heads, layer_cache.value_size, layer_cache.window
    )


def layer_views(
    stores: Mapping[Store, Tensor], layout: Sequence[LayerCache], layers: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Each layer's keys and values as views of its stores; nothing for layers without any."""
    of_store = {store: iter(data.unbind(0)) for store, data in stores.items()}
    keys, values = ([torch.empty(0)] * layers for _ in range(2))
    for layer_cache in layout:
        tensors = [next(of_store[store]) for store in stores_of(layer_cache)]
        keys[layer_cache.layer] = tensors[0]
        # A latent is one key, whose last features are the value.
        values[layer_cache.layer] = tensors[1] if len(tensors) > 1 else tensors[0][..., layer_cache.key_size :]
    return keys, values


class SlotSegment:
    """A copy of n tokens' keys and values, [M, G, n, D] for each `Store`, with the recurrent states after the last of
    them."""

    def __init__(self, tokens: int, data: Sequence[Tensor], snapshot: Snapshot | None = None) -> None:
        self.tokens, self.data, self.snapshot = tokens, data, snapshot

    @property
    def nbytes(self) -> int:
        data_bytes = sum(part.numel() * part.element_size() for part in self.data)
        return data_bytes + (0 if self.snapshot is None else self.snapshot.nbytes)

    @property
    def resumes(self) -> bool:
        return self.snapshot is not None

    def split(self, at: int) -> tuple[SlotSegment, SlotSegment]:
        # Copies: views would keep the whole tensor alive after the other half was evicted.
        first, second = ([part[..., s, :].clone() for part in self.data] for s in (slice(at), slice(at, None)))
        return SlotSegment(at, first), SlotSegment(self.tokens - at, second, self.snapshot)

    def release(self) -> None:
        self.data, self.snapshot = (), None


STEP = 512
"""Default of the maximum tokens of one row in one pass."""


class CachedAttend(Attend, CrossAttend, Protocol):
    """Attention of a flat batch over a cache. write: stores keys and values of an encoder's output (a decoder's own are
    stored when it attends)."""

    def write(self, layer: int, k_NGD: Tensor, v_NGV: Tensor) -> None: ...


class KVCache(Protocol):
    """The cache of running sequences' keys and values. Rows are numbers; a row's tokens are at positions 0, 1, 2 …

    reserve: makes room for so many tokens in each of these rows; all others may lose their contents. rewinds: whether
    the row can continue from position `to`, as if it had no later tokens. save: copies tokens begin … end of a row for
    the prefix cache, of the first `depth` layers or all; None where the row no longer has them all; snapshot: with the
    row's states, where they are those after the last token. load: writes the first `count` tokens of a segment as the
    row's tokens from `begin` on. attend: attention of a flat batch [1, N] of these spans, each to its row's earlier
    tokens and causally to itself; its indices go to the device with the transfer. commit: ends the pass over the spans
    last attended, and keeps what it computed. trim: gives back the memory that is not needed while no row is in use.
    """

    block: int
    """Saved segments are multiples of so many tokens."""
    copies: bool
    """Whether loading copies a segment into the row's room, or appends it by reference."""
    token_bytes: int
    """Bytes of one token's keys and values over all layers."""
    step: int
    """Maximum tokens of one row in a pass; unlimited for a row that begins in it."""
    forgets: bool
    """Whether early tokens of a row become unavailable for saving; the last `2 · step` always are available."""
    states: RecurrentStates
    """The recurrent states of rows. A segment has a snapshot of them where it was saved at the row's own position."""

    @property
    def longest(self) -> int | None:
        """Maximum tokens of a row that has the whole cache to itself; None: unbounded."""
        ...

    def saved_bytes(self, depth: int | None) -> int:
        """Bytes of one saved token at this depth, without its snapshot."""
        ...

    def room(self, lengths: Sequence[int], parts: int = 1) -> bool:
        """Whether rows of these lengths fit together, into one of so many equal parts of the cache."""
        ...

    def reserve(self, lengths: Mapping[int, int]) -> None: ...
    def rewinds(self, row: int, to: int) -> bool: ...
    def save(
        self, row: int, begin: int, end: int, depth: int | None = None, snapshot: bool = True
    ) -> Segment | None: ...
    def load(self, row: int, begin: int, segment: Segment, count: int) -> None: ...
    def free(self, row: int) -> None: ...
    def attend(self, spans: Sequence[Span], transfer: HostToDevice | None = None) -> CachedAttend: ...
    def commit(self) -> None: ...
    def trim(self) -> None: ...
    def close(self) -> None: ...


class SlotCache:
    """One contiguous slot per running sequence; all slots have the same capacity, which grows with the longest.

    On a processor a slot takes no memory for capacity that was never written: pages are provided on demand (vAttention,
    https://arxiv.org/abs/2405.04437). So rows of all lengths fit together, a short row beside a long one costs what it
    contains, and growth copies only what rows contain. What rows that are not in use still contain is given back where
    `limit_bytes` would be exceeded, and all of it by `trim`.

    Keys and values of the layers of one `Store` are one tensor [M, R, G, C, D], first layers first, so that saving or
    loading a prefix is one copy. C is the capacity, or under a window what is read and saved of it (`_ring`). A latent
    and its rotary key are stored side by side, as one key [G=1, key_size + value_size] whose last features are the
    value. Recurrent states are separate (`states`). UnsupportedModelError for layers that cache anything else.
    """

    block = 1
    copies = True
    longest = None

    def __init__(
        self, spec: TextSpec, dtype: torch.dtype, device: torch.device, limit_bytes: int = 1 << 40, step: int = STEP
    ) -> None:
        self._spec, self.dtype, self.device, self.step = spec, dtype, device, step
        layout = row_layout(spec)
        self._layout = [layer_cache for layer_cache in layout if not layer_cache.of_sequence]
        self.states = RecurrentStates(layout, dtype, device)
        self.forgets = any(layer_cache.window is not None for layer_cache in self._layout)
        self.token_bytes = self.saved_bytes(None)
        self.key_bytes = max(self.token_bytes, 1) / max(len(self._layout), 1)
        """Of a token's key and value in one layer."""
        self.limit_bytes = limit_bytes
        self._on_demand = device.type == "cpu"
        self._window_bytes = Counter[int | None]()
        """Bytes of a token in the layers of each window."""
        for store, count in self._stores(None).items():
            self._window_bytes[store.window] += count * store.heads * store.size * dtype.itemsize
        self.rows = self.capacity = 0
        self._data: dict[Store, Tensor] = {}
        self._ends: dict[int, int] = {}
        # How far each row is written, and which rows contain other rows' tokens behind their own.
        self._reach: dict[int, int] = {}
        self._stale: set[int] = set()
        self.latents = frozenset(entry.layer for entry in self._layout if entry.cache_type == "latent")
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.trim()

    def saved_bytes(self, depth: int | None) -> int:
        return sum(layer_cache.values for layer_cache in self._of(depth)) * self.dtype.itemsize

    def _of(self, depth: int | None) -> list[LayerCache]:
        return [layer_cache for layer_cache in self._layout if depth is None or layer_cache.layer < depth]

    def _stores(self, depth: int | None) -> Counter[Store]:
        """The stores of the first layers, with their number of tensors [R, G, C, D]."""
        return Counter(store for layer_cache in self._of(depth) for store in stores_of(layer_cache))

    def _ring(self, window: int | None, capacity: int) -> int:
        """Places of a row: the tokens of a step and those that its first token sees, and as many again for the previous
        step, which the prefix cache may not have saved yet."""
        return capacity if window is None else min(capacity, window + 2 * self.step)

    def _bytes(self, lengths: Collection[int]) -> int:
        """The memory of rows of these lengths."""
        if not self._on_demand:
            lengths = len(lengths) * [max(lengths, default=0)]
        per_window = (
            n * (sum(lengths) if window is None else sum(self._ring(window, length) for length in lengths))
            for window, n in self._window_bytes.items()
        )
        return sum(per_window) + len(lengths) * self.states.nbytes

    def room(self, lengths: Sequence[int], parts: int = 1) -> bool:
        """Whether rows of these lengths fit: one always does; more while they stay under the limit."""
        return len(lengths) <= 1 or self._bytes(lengths) <= self.limit_bytes // parts

    def reserve(self, lengths: Mapping[int, int]) -> None:
        rows, longest = max(lengths, default=0) + 1, max(lengths.values(), default=0)
        if rows > self.rows or longest > self.capacity:
            for row in self._reach.keys() - lengths.keys():
                self._reach.pop(row)
            new_rows = self.rows if rows <= self.rows else max(rows, 2 * self.rows)
            new_capacity = self.capacity if longest <= self.capacity else max(longest, 2 * self.capacity)
            new_capacity = max(longest, min(new_capacity, self._spec.sequence_length))
            if not self._on_demand and self._bytes(new_rows * [new_capacity]) > self.limit_bytes:
                new_rows, new_capacity = rows, longest
            self._allocate(new_rows, new_capacity)
        if self._on_demand:
            self._release(lengths)

    def _allocate(self, rows: int, capacity: int) -> None:
        """Replaces the data by larger data with the same contents; all of it at once, so that an out-of-memory error
        changes nothing."""
        new_data = {
            store: self._zeros(count, rows, store.heads, self._ring(store.window, capacity), store.size)
            for store, count in self._stores(None).items()
        }
        self.states.reserve(rows)
        for store, old in self._data.items():
            new = new_data[store]
            # A ring whose size changes with the capacity has not wrapped around: positions keep their places.
            shared = min(new.shape[3], old.shape[3])
            for old_layer, new_layer in zip(old, new, strict=True):
                for row, reach in self._reach.items():
                    new_layer[row, :, : min(shared, reach)] = old_layer[row, :, : min(shared, reach)]
                if self._on_demand:  # at most one layer is there twice
                    forget_pages(old_layer.data_ptr(), old_layer.nbytes)
        self._data = new_data
        self.rows, self.capacity = rows, capacity
        self.keys, self.values = layer_views(self._data, self._layout, self._spec.main.layers)

    def _zeros(self, *shape: int) -> Tensor:
        """Zeros: masked positions enter products, where NaN of uninitialized memory would spread."""
        size = math.prod(shape) * self.dtype.itemsize
        if not (self._on_demand and size):
            return torch.zeros(shape, dtype=self.dtype, device=self.device)
        return torch.frombuffer(zeros_on_demand(size), dtype=self.dtype).view(shape)

    def _release(self, lengths: Mapping[int, int]) -> None:
        """Gives back what rows that are not in use contain, then what others contain behind these lengths, until there
        is room for rows of these lengths."""
        reaches = self._reach | {row: max(length, self._reach.get(row, 0)) for row, length in lengths.items()}
        if sum(reaches.values()) * self.token_bytes + len(reaches) * self.states.nbytes <= self.limit_bytes:
            return  # without a look at windows
        for row, reach in sorted(self._reach.items(), key=lambda written: written[0] in lengths):
            if self._bytes(reaches.values()) <= self.limit_bytes:
                return
            if (begin := lengths.get(row, 0)) < reach:
                self._discard(row, begin, reach)
                self._reach[row] = reaches[row] = begin

    def _discard(self, row: int, begin: int, end: int) -> None:
        """Zeroes a row's places from `begin` to before `end`, and gives back their whole pages."""
        for data in self._data.values():
            # In a ring that has wrapped around, a row of fewer tokens than it has places left what lies behind them.
            last, edge = min(end, data.shape[3]), mmap.PAGESIZE // (data.shape[4] * data.element_size()) + 1
            if begin >= last:
                continue
            data[:, row, :, begin : min(begin + edge, last)] = 0
            data[:, row, :, max(begin, last - edge) : last] = 0
            if last - begin <= 2 * edge:
                continue  # a page or two, which are zeros now
            for heads in data[:, row]:
                for places in heads[:, begin:last]:
                    forget_pages(places.data_ptr(), places.nbytes)

    def trim(self) -> None:
        self._data, self._reach, self._ends, self._stale = {}, {}, {}, set()
        self.keys, self.values, self.rows, self.capacity = [], [], 0, 0  # where there is no memory, `reserve` allocates
        self.states.close()
        self._allocate(1, min(256, self._spec.sequence_length))

    def rewinds(self, row: int, to: int) -> bool:
        if to > self._reach.get(row, 0) or (to and not self.states.is_at(row, to)):
            return False
        return all(self._has(row, max(to - store.window + 1, 0), store) for store in self._data if store.window)

    def _has(self, row: int, begin: int, store: Store) -> bool:
        """Whether the ring still has the row's tokens from `begin` on."""
        return begin >= self._ends.get(row, 0) - self._data[store].shape[3]

    def save(
        self, row: int, begin: int, end: int, depth: int | None = None, snapshot: bool = True
    ) -> SlotSegment | None:
        counts = self._stores(depth)
        if not all(self._has(row, begin, store) for store in counts):
            return None
        parts: list[Tensor] = []
        for store, data in self._data.items():
            first = begin % data.shape[3]
            if first + end - begin <= data.shape[3]:
                parts.append(data[: counts[store], row, :, first : first + end - begin].clone())
            else:
                at = torch.arange(begin, end, device=self.device) % data.shape[3]
                parts.append(data[: counts[store], row].index_select(2, at))
        return SlotSegment(end - begin, parts, self.states.save(row, end, depth) if snapshot else None)

    @torch.inference_mode()
    def load(self, row: int, begin: int, segment: Segment, count: int) -> None:
        assert isinstance(segment, SlotSegment)
        self._ends[row] = begin + count
        self._reach[row] = max(self._reach.get(row, 0), begin + count)
        self.states.load(row, begin + count, segment.snapshot if count == segment.tokens else None)
        for data, part in zip(self._data.values(), segment.data, strict=True):
            C = data.shape[3]
            skipped = max(count - C, 0)
            first = (begin + skipped) % C
            if first + count - skipped <= C:
                data[: len(part), row, :, first : first + count - skipped] = part[..., skipped:count, :]
            else:
                at = torch.arange(begin + skipped, begin + count, device=self.device) % C
                data[: len(part), row].index_copy_(2, at, part[..., skipped:count, :])

    def free(self, row: int) -> None:
        """Marks the slot: it is cleared when another row reads it, unless that row begins with the same tokens."""
        self._stale.add(row)

    def _clear(self, span: Span) -> None:
        """Zeroes the places behind a span that contain another row's tokens: masked values still enter products,
        through which infinities and NaN of one request would reach another."""
        self._stale.discard(span.row)
        if self._on_demand:
            self._discard(span.row, span.end, self._reach[span.row])
        else:
            for data in self._data.values():
                data[:, span.row, :, span.end : self._reach[span.row]] = 0
        self._reach[span.row] = span.end

    def attend(self, spans: Sequence[Span], transfer: HostToDevice | None = None) -> CachedAttend:
        self.note(spans)
        for span in spans:
            if span.row in self._stale:
                self._clear(span)
        self.states.begin(spans)
        return SlotAttention(self, spans, HostToDevice(self.device) if transfer is None else transfer)

    def commit(self) -> None:
        self.states.commit()

    def close(self) -> None:
        self._data, self.keys, self.values = {}, [], []
        self.states.close()

    def note(self, spans: Sequence[Span]) -> None:
        """Records how far a pass will write each row, which determines what its rings contain."""
        for span in spans:
            self._reach[span.row] = max(self._reach.get(span.row, 0), span.end)
        if not self.forgets:
            return
        if len(spans) > 1 or spans[0].start > 0:
            longest = max(span.length for span in spans)
            if longest > self.step:
                raise UsageError(f"a pass has {longest} tokens of one row, and this cache takes {self.step} at a time")
        for span in spans:
            self._ends[span.row] = span.end if span.start == 0 else max(self._ends.get(span.row, 0), span.end)


class SlotAttention:
    """Writes a flat batch's keys and values into the slots, then attends group by group of similar spans."""

    is_cached = True

    def __init__(self, cache: SlotCache, spans: Sequence[Span], transfer: HostToDevice) -> None:
        self._cache, self._spans, self._transfer = cache, spans, transfer
        self._rows, self._positions = span_index(spans)
        self._end = max(span.end for span in spans)
        self._longest = max(span.length for span in spans)
        self._written: dict[int, ref[Tensor]] = {}
        self._rings: dict[int | None, tuple[DeviceTensors | None, DeviceTensors, DeviceTensors]] = {}
        self._place(None)
        for capacity in {keys.shape[2] for keys in cache.keys if keys.dim() == 4}:
            if self._end > capacity:
                self._place(capacity)
        # A lone sequence from its start needs no mask: torch's causal kernel skips half the work.
        self._alone = len(spans) == 1 and spans[0].start == 0
        groups = [] if self._alone else grouped(spans, cache.key_bytes, device=cache.device.type)
        self._groups = [_SlotGroup(group, len(self._rows), cache.dtype, transfer) for group in groups]

    def write(self, layer: int, k_NGD: Tensor, v_NGV: Tensor) -> None:
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        written, rows, places = self._rings[keys.shape[2] if self._end > keys.shape[2] else None]
        if written is not None:
            k_NGD, v_NGV = k_NGD[written.tensor], v_NGV[written.tensor]
        if layer in self._cache.latents:
            keys[rows.tensor, :, places.tensor] = k_NGD
        else:
            write_kv(keys.transpose(1, 2), values.transpose(1, 2), rows.tensor, places.tensor, k_NGD, v_NGV)

    def _place(self, capacity: int | None) -> None:
        """Which tokens are written (None: all; never two to one place) and where, for one ring capacity (None:
        unbounded)."""
        rows, positions, written = self._rows, self._positions, None
        if capacity is not None and self._longest > capacity:
            ends = np.repeat([span.end for span in self._spans], [span.length for span in self._spans])
            (written,) = (positions >= ends - capacity).nonzero()
            rows, positions = rows[written], positions[written]
        places: Numbers = positions if capacity is None else positions % capacity
        add = self._transfer.add
        self._rings[capacity] = None if written is None else add(written), add(rows), add(places)

    def __call__(
        self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGV: Tensor, options: AttentionOptions = PLAIN
    ) -> Tensor:
        # Layers that share keys and values pass those of an earlier layer, which are written already.
        written = self._written.get(layer)
        if written is None or written() is not k_BTGD:
            self.write(layer, k_BTGD[0], v_BTGV[0])
            self._written[layer] = ref(k_BTGD)
        if self._alone:
            return whole_attention(q_BTHD, k_BTGD, v_BTGV, options, causal=True)
        return self._mix_groups(layer, q_BTHD, lambda group, q, keys, values: group(q, keys, values, options))

    def cross_attend(self, layer: int, q_BTHD: Tensor, options: AttentionOptions, keys_of: KeysOf) -> Tensor:
        return self._mix_groups(layer, q_BTHD, lambda group, q, k, v: group.cross_attend(q, k, v, options))

    def _mix_groups(
        self, layer: int, q_BTHD: Tensor, mix: Callable[[_SlotGroup, Tensor, Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Applies `mix` to each group's queries and the layer's keys and values; outputs in the tokens' order."""
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        if self._groups[0].padded.whole:
            return mix(self._groups[0], q_BTHD[0], keys, values)[None]
        out_NHV = q_BTHD.new_empty(*q_BTHD.shape[1:3], values.shape[3])
        for group in self._groups:
            out_NHV[group.padded.tokens_N] = mix(group, q_BTHD[0], keys, values)
        return out_NHV[None]

    def recur(self, layer: int, run: Recurrence, x_BTC: Tensor) -> Tensor:
        return self._cache.states.recur(layer, run, x_BTC, [group.padded for group in self._groups])


class _SlotGroup:
    """Spans padded to one length T, with the rows that they read."""

    def __init__(
        self, numbered: Sequence[tuple[int, Span]], total: int, dtype: torch.dtype, transfer: HostToDevice
    ) -> None:
        spans = [span for _, span in numbered]
        self.padded = Padded(numbered, total, dtype, transfer)
        rows = [span.row for span in spans]
        together = rows == list(range(rows[0], rows[0] + len(rows)))
        self._view = slice(rows[0], rows[0] + len(rows)) if together else None
        self._rows_S = transfer.add(rows)

    def __call__(self, q_NHD: Tensor, keys: Tensor, values: Tensor, options: AttentionOptions) -> Tensor:
        K, C = self.padded.keys, keys.shape[2]
        if options.window is not None:
            nearby = self.padded.keys_in_window(options.window)
            # Reading the whole row with a mask is cheaper than gathering, unless the row is much longer.
            if K > C or 2 * nearby.position_SK.shape[1] < K:
                at = (self._rows_S.tensor[:, None], slice(None), nearby.position_SK % C)
                return self.padded.attend_near(q_NHD, keys[at], values[at], options, nearby)
        key_range = slice(self.padded.first, K)
        return self.padded.attend(q_NHD, self._picked(keys, key_range), self._picked(values, key_range), options)

    def cross_attend(self, q_NHD: Tensor, keys: Tensor, values: Tensor, options: AttentionOptions) -> Tensor:
        read = slice(self.padded.sources)
        return self.padded.cross_attend(q_NHD, self._picked(keys, read), self._picked(values, read), options)

    def _picked(self, kept_RGCD: Tensor, places: slice) -> Tensor:
        """The keys or values of the group's rows at these places."""
        if self._view is not None:
            return kept_RGCD[self._view, :, places]
        return kept_RGCD[:, :, places].index_select(0, self._rows_S.tensor)
