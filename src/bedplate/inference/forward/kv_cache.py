"""Keys and values of running sequences on contiguous slots, one slot a row, and the attention that reads them.

Shapes: R rows (slots), S sequences of a batch, N tokens of a flat batch, T tokens of one sequence, C capacity, K keys a
sequence may see, M layers' keys and values of one size, G key-value heads, H query heads, D features of one head.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from bedplate.inference.forward.radix import Segment
from bedplate.models.layers.attention import Attend, masked_attention, whole_attention
from bedplate.models.layers.how import PLAIN, How
from bedplate.models.specs.cache import keys_and_values
from bedplate.models.specs.transformer import TransformerSpec


@dataclass(frozen=True)
class Span:
    """New tokens of one sequence: `length` of them from absolute position `start`, kept in `row` of the cache."""

    row: int
    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length


class KVCache(Protocol):
    """Where running sequences keep keys and values. Rows are numbers; a row's tokens are at positions 0, 1, 2 …"""

    block: int
    """Saved segments are multiples of so many tokens."""
    copies: bool
    """Whether loading copies a segment into reserved room, or hands it over to a row that has none of its own yet."""
    token_bytes: int
    """Bytes of one token's keys and values over all layers."""

    def saved_bytes(self, depth: int | None) -> int:
        """Bytes of one token of a segment saved with this depth."""
        ...

    def room(self, lengths: Sequence[int]) -> bool:
        """Whether rows of these lengths fit together."""
        ...

    def reserve(self, lengths: dict[int, int]) -> dict[int, int]:
        """Makes room for so many tokens in each of these rows. Returns {} or, where these rows had to be renumbered
        and what others held is lost, the new number of each."""
        ...

    def save(self, row: int, begin: int, end: int, depth: int | None = None) -> Segment:
        """Tokens begin … end of a row, for the prefix cache: of the first `depth` layers, or all."""
        ...

    def load(self, row: int, begin: int, segment: Segment, count: int) -> None:
        """The first `count` tokens of a segment as the row's tokens from `begin` on."""
        ...

    def free(self, row: int) -> None:
        """The row is no longer used."""
        ...

    def attend(self, spans: Sequence[Span]) -> Attend:
        """Attention of a flat batch [1, N] of these spans, each to its row's earlier tokens and causally to itself."""
        ...


class SlotSegment:
    """A copy of n tokens' keys and values: of each size that there is, those of its layers [M, G, n, D]."""

    def __init__(self, data: Sequence[Tensor]) -> None:
        self.data = data

    @property
    def nbytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in self.data)

    def split(self, at: int) -> tuple[SlotSegment, SlotSegment]:
        # Copies, because a view would keep the whole alive after the other half was evicted.
        first, second = ([part[..., s, :].clone() for part in self.data] for s in (slice(at), slice(at, None)))
        return SlotSegment(first), SlotSegment(second)

    def release(self) -> None:
        self.data = ()


class SlotCache:
    """One contiguous slot per running sequence; all slots have the same capacity, which grows with the longest.

    Layers' keys and values of one size stand in one tensor [M, R, G, C, D], first layers first, so that to keep a
    beginning, or to give it to a row, is one copy. UnsupportedModelError for layers that keep anything else.
    """

    block = 1
    copies = True

    def __init__(
        self, spec: TransformerSpec, dtype: torch.dtype, device: torch.device, limit_bytes: int = 1 << 40
    ) -> None:
        self._spec, self.dtype, self.device = spec, dtype, device
        self._layout = keys_and_values(spec, "a cache of slots")
        self.token_bytes = self.saved_bytes(None)
        self.limit_bytes = limit_bytes
        self.rows = self.capacity = 0
        self._data: dict[tuple[int, int], Tensor] = {}
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._allocate(1, min(256, spec.context_length), ())

    def saved_bytes(self, depth: int | None) -> int:
        return sum(one.values for one in self._layout[:depth]) * self.dtype.itemsize

    def _sizes(self, depth: int | None) -> list[tuple[int, int]]:
        """Heads and features of each layer's keys and values, alternately."""
        return [(one.heads, size) for one in self._layout[:depth] for size in (one.key_size, one.value_size)]

    def room(self, lengths: Sequence[int]) -> bool:
        """One row always fits; more, as long as all rows at the longest one's length stay under the limit."""
        return len(lengths) <= 1 or len(lengths) * max(lengths) * self.token_bytes <= self.limit_bytes

    def reserve(self, lengths: dict[int, int]) -> dict[int, int]:
        rows, longest = max(lengths, default=0) + 1, max(lengths.values(), default=0)
        if rows <= self.rows and longest <= self.capacity:
            return {}
        wanted_rows = self.rows if rows <= self.rows else max(rows, 2 * self.rows)
        wanted = self.capacity if longest <= self.capacity else max(longest, 2 * self.capacity)
        wanted = max(longest, min(wanted, self._spec.context_length))
        if wanted_rows * wanted * self.token_bytes <= self.limit_bytes:
            self._allocate(wanted_rows, wanted, list(range(self.rows)))
            return {}
        # Doubling would be too much: just what is needed, with the rows moved together.
        fitting = self.limit_bytes // (len(lengths) * self.token_bytes)
        kept = [row for row in sorted(lengths) if row < self.rows]
        self._allocate(len(lengths), max(longest, min(fitting, wanted)), kept)
        return {row: number for number, row in enumerate(sorted(lengths))}

    def _allocate(self, rows: int, capacity: int, kept: Sequence[int]) -> None:
        sizes, shared = self._sizes(None), min(capacity, self.capacity)
        for (heads, size), count in Counter(sizes).items():
            # Zeros, not whatever was there: masked positions take part in products, where NaN would spread.
            data = torch.zeros(count, rows, heads, capacity, size, dtype=self.dtype, device=self.device)
            for number, row in enumerate(kept):
                data[:, number, :, :shared] = self._data[heads, size][:, row, :, :shared]
            self._data[heads, size] = data
        self.rows, self.capacity = rows, capacity
        each = {size: iter(data.unbind(0)) for size, data in self._data.items()}
        found = [next(each[size]) for size in sizes]
        self.keys, self.values = found[::2], found[1::2]

    def save(self, row: int, begin: int, end: int, depth: int | None = None) -> SlotSegment:
        counts = Counter(self._sizes(depth))
        return SlotSegment([data[: counts[size], row, :, begin:end].clone() for size, data in self._data.items()])

    @torch.inference_mode()
    def load(self, row: int, begin: int, segment: Segment, count: int) -> None:
        assert isinstance(segment, SlotSegment)
        for data, part in zip(self._data.values(), segment.data, strict=True):
            data[: len(part), row, :, begin : begin + count] = part[..., :count, :]

    def free(self, row: int) -> None:
        """A slot has nothing to give back."""

    def attend(self, spans: Sequence[Span]) -> Attend:
        return SlotAttention(self, spans)


class SlotAttention:
    """Writes a flat batch's keys and values into the slots, then attends group by group of alike spans."""

    def __init__(self, cache: SlotCache, spans: Sequence[Span]) -> None:
        self._cache, device = cache, cache.device
        self._rows_N, self._positions_N = span_index(spans, device)
        # A lone sequence from its start needs no mask: torch's causal kernel skips half the work.
        self._alone = len(spans) == 1 and spans[0].start == 0
        total = len(self._rows_N)
        self._groups = [] if self._alone else [_SlotGroup(g, total, device, cache.dtype) for g in grouped(spans)]

    def __call__(self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGV: Tensor, how: How = PLAIN) -> Tensor:
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        keys[self._rows_N, :, self._positions_N] = k_BTGD[0]
        values[self._rows_N, :, self._positions_N] = v_BTGV[0]
        if self._alone:
            return whole_attention(q_BTHD, k_BTGD, v_BTGV, how, causal=True)
        if self._groups[0].padded.whole:
            return self._groups[0](q_BTHD[0], keys, values, how)[None]
        out_NHV = q_BTHD.new_empty(*q_BTHD.shape[1:3], v_BTGV.shape[3])
        for group in self._groups:
            out_NHV[group.padded.tokens_N] = group(q_BTHD[0], keys, values, how)
        return out_NHV[None]


class _SlotGroup:
    """Spans padded to one length T, with the rows they read."""

    def __init__(
        self, numbered: Sequence[tuple[int, Span]], total: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        spans = [span for _, span in numbered]
        self.padded = Padded(numbered, total, device, dtype)
        rows = [span.row for span in spans]
        self._K = max(span.end for span in spans)
        together = rows == list(range(rows[0], rows[0] + len(rows)))
        self._view = slice(rows[0], rows[0] + len(rows)) if together else None
        self._rows_S = torch.tensor(rows, device=device)

    def __call__(self, q_NHD: Tensor, keys: Tensor, values: Tensor, how: How) -> Tensor:
        if self._view is not None:
            k_SGKD, v_SGKV = keys[self._view, :, : self._K], values[self._view, :, : self._K]
        else:
            k_SGKD = keys[:, :, : self._K].index_select(0, self._rows_S)
            v_SGKV = values[:, :, : self._K].index_select(0, self._rows_S)
        return self.padded.attend(q_NHD, k_SGKD, v_SGKV, how)


class Padded:
    """Queries of a group of spans as a block [S, T], the mask of what they see, and the way back to flat tokens."""

    def __init__(
        self, numbered: Sequence[tuple[int, Span]], total: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        spans = [span for _, span in numbered]
        S, self._T, K = len(spans), max(s.length for s in spans), max(s.end for s in spans)
        begin_S = torch.tensor([begin for begin, _ in numbered])
        start_S = torch.tensor([span.start for span in spans])
        length_S = torch.tensor([span.length for span in spans])
        offset_T = torch.arange(self._T)
        inside_ST = offset_T < length_S[:, None]
        query_ST = begin_S[:, None] + torch.where(inside_ST, offset_T, torch.zeros_like(offset_T))
        self.tokens_N = query_ST[inside_ST].to(device)
        self._even = bool(inside_ST.all())
        self.whole = torch.equal(query_ST.reshape(-1), torch.arange(total))
        self._query_SxT = query_ST.reshape(-1).to(device)
        self._back_N = inside_ST.reshape(-1).nonzero()[:, 0].to(device)
        # Padded queries see what the span's first token sees, so that no row of the softmax is empty.
        sees_ST = torch.where(inside_ST, start_S[:, None] + offset_T, start_S[:, None])
        self._sees_ST, self._K, self._device = sees_ST, K, device
        self._mask_STK: Tensor | None = None
        if self._T > 1 or bool((start_S + 1 != K).any()):
            seen = torch.arange(K) <= sees_ST[:, :, None]
            mask = torch.zeros(S, self._T, K, dtype=dtype).masked_fill(~seen, -torch.inf)
            self._mask_STK = mask.to(device)
        self._folded: Tensor | None = None

    def attend(self, q_NHD: Tensor, k_SGKD: Tensor, v_SGKV: Tensor, how: How) -> Tensor:
        """Attention outputs [N', H, V] of the group's tokens, in the order of `tokens_N`."""
        (S, G), (H, D), T, V = k_SGKD.shape[:2], q_NHD.shape[1:], self._T, v_SGKV.shape[3]
        flat = q_NHD if self.whole else q_NHD.index_select(0, self._query_SxT)
        if how.plain:
            # The query heads of one key-value head become query rows: enable_gqa would copy all keys in every layer.
            q = flat.view(S, T, G, H // G, D).permute(0, 2, 3, 1, 4).reshape(S, G, (H // G) * T, D)
            if self._mask_STK is not None and self._folded is None:
                self._folded = self._mask_STK[:, None].repeat(1, 1, H // G, 1)
            out = F.scaled_dot_product_attention(q, k_SGKD, v_SGKV, attn_mask=self._folded, scale=how.scale)
            out = out.view(S, G, H // G, T, V).permute(0, 3, 1, 2, 4).reshape(S * T, H, V)
        else:
            distance = (torch.arange(self._K) - self._sees_ST[:, :, None]).to(self._device)
            seen, k, v = how.within(distance <= 0, distance, True), k_SGKD.transpose(1, 2), v_SGKV.transpose(1, 2)
            out = masked_attention(flat.view(S, T, H, D), k, v, seen, how, distance).reshape(S * T, H, V)
        return out if self._even else out.index_select(0, self._back_N)


def span_index(spans: Sequence[Span], device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and position of every token of a flat batch, int64 [N] each."""
    lengths = torch.tensor([span.length for span in spans])
    rows = torch.tensor([span.row for span in spans]).repeat_interleave(lengths)
    starts = torch.tensor([span.start for span in spans])
    begins = lengths.cumsum(0) - lengths
    positions = torch.arange(int(lengths.sum())) + (starts - begins).repeat_interleave(lengths)
    return rows.to(device), positions.to(device)


# One more group costs some ten small operations in every layer: worth it where it saves so many padded scores.
GROUP_COST = 32 * 1024


def grouped(spans: Sequence[Span]) -> list[list[tuple[int, Span]]]:
    """Spans of a flat batch, each with its first token's number, in groups whose padding wastes little."""
    begin = 0
    numbered: list[tuple[int, Span]] = []
    for span in spans:
        numbered.append((begin, span))
        begin += span.length
    numbered.sort(key=lambda n: (n[1].length, n[1].row if n[1].length == 1 else n[1].end))
    groups: list[list[tuple[int, Span]]] = []
    longest = keys = 0
    for entry in numbered:
        span = entry[1]
        T, K = max(longest, span.length), max(keys, span.end)
        size = len(groups[-1]) if groups else 0
        apart = size * longest * keys + span.length * span.end + GROUP_COST
        if groups and (size + 1) * T * K <= apart:
            groups[-1].append(entry)
            longest, keys = T, K
        else:
            groups.append([entry])
            longest, keys = span.length, span.end
    return groups
