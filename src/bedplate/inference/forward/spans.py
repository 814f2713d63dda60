"""The spans of a flat batch: which tokens of which rows it holds, and how alike ones are computed together.

Shapes: S sequences of a group, N tokens of a flat batch, T tokens of one sequence, K keys a sequence may see, C places
of a row's keys, G key-value heads, H query heads, D features of one head's query and key, V of its value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bedplate.models.layers.attention import masked_attention
from bedplate.models.layers.how import How


@dataclass(frozen=True)
class Span:
    """New tokens of one sequence: `length` of them from absolute position `start`, kept in `row` of the cache.

    source: how many tokens stand before the sequence in its row, which an encoder has read: only attention across sees
    them, and positions are counted after them.
    """

    row: int
    start: int
    length: int
    source: int = 0

    @property
    def end(self) -> int:
        return self.start + self.length


class Padded:
    """Queries of a group of spans as a block [S, T], the mask of what they see, and the way back to flat tokens."""

    def __init__(
        self, numbered: Sequence[tuple[int, Span]], total: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        spans = self.spans = [span for _, span in numbered]
        self._T, self.keys = max(s.length for s in spans), max(s.end for s in spans)
        begin_S = torch.tensor([begin for begin, _ in numbered])
        start_S = torch.tensor([span.start for span in spans])
        length_S = torch.tensor([span.length for span in spans])
        offset_T = torch.arange(self._T)
        inside_ST = offset_T < length_S[:, None]
        query_ST = begin_S[:, None] + torch.where(inside_ST, offset_T, torch.zeros_like(offset_T))
        self.tokens_N = query_ST[inside_ST].to(device)
        self._even = bool(inside_ST.all())
        self.lengths_S = None if self._even else length_S.to(device)
        """Of the spans, where they differ."""
        self.whole = torch.equal(query_ST.reshape(-1), torch.arange(total))
        self._query_SxT = query_ST.reshape(-1).to(device)
        self._back_N = inside_ST.reshape(-1).nonzero()[:, 0].to(device)
        # Padded queries see what the span's first token sees, so that no row of the softmax is empty.
        sees_ST = torch.where(inside_ST, start_S[:, None] + offset_T, start_S[:, None])
        self._sees_ST, self._device = sees_ST, device
        self._starts, self._ends = [span.start for span in spans], [span.end for span in spans]
        self._source_S = torch.tensor([span.source for span in spans])
        self.first, self.sources = int(self._source_S.min()), int(self._source_S.max())
        """The first key of a sequence, and the most tokens that an encoder has read."""
        self._mask_STK: Tensor | None = None
        if self._T > 1 or self.sources > self.first or bool((start_S + 1 != self.keys).any()):
            at_K = torch.arange(self.first, self.keys)
            seen = (at_K <= sees_ST[:, :, None]) & (at_K >= self._source_S[:, None, None])
            mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, -torch.inf)
            self._mask_STK = mask.to(device)
        self._read_STK: Tensor | None = None
        self._folded: Tensor | None = None
        self._nearby: dict[int | None, Nearby] = {}

    def attend(self, q_NHD: Tensor, k_SGKD: Tensor, v_SGKV: Tensor, how: How) -> Tensor:
        """Attention outputs [N', H, V] of the group's tokens, in the order of `tokens_N`, over keys from `first` on."""
        (S, G), (H, D), T, V = k_SGKD.shape[:2], q_NHD.shape[1:], self._T, v_SGKV.shape[3]
        if not how.plain:
            return self.attend_near(q_NHD, k_SGKD.transpose(1, 2), v_SGKV.transpose(1, 2), how, self.near(None))
        # The query heads of one key-value head become query rows: enable_gqa would copy all keys in every layer.
        q = self.block(q_NHD).view(S, T, G, H // G, D).permute(0, 2, 3, 1, 4).reshape(S, G, (H // G) * T, D)
        if self._mask_STK is not None and self._folded is None:
            self._folded = self._mask_STK[:, None].repeat(1, 1, H // G, 1)
        out = F.scaled_dot_product_attention(q, k_SGKD, v_SGKV, attn_mask=self._folded, scale=how.scale)
        return self.flat(out.view(S, G, H // G, T, V).permute(0, 3, 1, 2, 4).reshape(S, T, H, V))

    def attend_near(self, q_NHD: Tensor, k_SKGD: Tensor, v_SKGV: Tensor, how: How, near: Nearby) -> Tensor:
        """The same over the keys of `near`."""
        seen = how.within(near.seen_STK, near.distance_STK, True)
        return self.flat(masked_attention(self.block(q_NHD), k_SKGD, v_SKGV, seen, how, near.distance_STK))

    def across(self, q_NHD: Tensor, k_SGKD: Tensor, v_SGKV: Tensor, how: How) -> Tensor:
        """Attention outputs [N', H, V] over what the encoder has read, keys from position 0 to before `sources`."""
        if self._read_STK is None:
            read_SK = torch.arange(self.sources) < self._source_S[:, None]
            self._read_STK = read_SK[:, None].expand(-1, self._T, -1).to(self._device)
        k_SKGD, v_SKGV = k_SGKD.transpose(1, 2), v_SGKV.transpose(1, 2)
        return self.flat(masked_attention(self.block(q_NHD), k_SKGD, v_SKGV, self._read_STK, how))

    def near(self, window: int | None) -> Nearby:
        """The keys from the first one on that a span's first token sees in its window, made once for each window."""
        if window not in self._nearby:
            low = self.first
            first_S = [low if window is None else max(start - window + 1, low) for start in self._starts]
            most = self.keys - low if window is None else max(map(int.__sub__, self._ends, first_S))
            position_SK = torch.tensor(first_S)[:, None] + torch.arange(most)
            distance_STK = position_SK[:, None] - self._sees_ST[:, :, None]
            seen_STK = (distance_STK <= 0) & (position_SK >= self._source_S[:, None])[:, None]
            made = (one.to(self._device) for one in (position_SK, distance_STK, seen_STK))
            self._nearby[window] = Nearby(*made)
        return self._nearby[window]

    def block(self, x_N: Tensor) -> Tensor:
        """Rows of flat tokens [N, ...] as a block [S, T, ...], padded with a span's first token."""
        found = x_N if self.whole else x_N.index_select(0, self._query_SxT)
        return found.view(len(self.spans), self._T, *x_N.shape[1:])

    def flat(self, x_ST: Tensor) -> Tensor:
        """A block [S, T, ...] as the group's tokens [N', ...], in the order of `tokens_N`."""
        found = x_ST.flatten(0, 1)
        return found if self._even else found.index_select(0, self._back_N)


@dataclass(frozen=True, eq=False)
class Nearby:
    """Positions of the keys that a group's spans read, how far they are from each query (0 is the query's own), and
    which of them a query may see."""

    position_SK: Tensor
    distance_STK: Tensor
    seen_STK: Tensor


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
