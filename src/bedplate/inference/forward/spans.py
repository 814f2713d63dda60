"""The spans of a flat batch (which tokens of which rows it holds), and padded attention over groups of similar spans.

Shapes: S sequences of a group, N tokens of a flat batch, T tokens of one sequence, K keys a sequence may see, C places
of a row's keys, G key-value heads, H query heads, D features of one head's query and key, V of its value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bedplate.inference.forward.host_to_device import HostToDevice, Numbers
from bedplate.models.layers.attention import masked_attention
from bedplate.models.layers.attention_options import AttentionOptions


@dataclass(frozen=True)
class Span:
    """New tokens of one sequence: `length` of them from absolute position `start`, cached in `row`. source: tokens at
    the beginning of the row that an encoder has read; only cross-attention sees them."""

    row: int
    start: int
    length: int
    source: int = 0

    @property
    def end(self) -> int:
        return self.start + self.length


class Padded:
    """Queries of a group of spans as a block [S, T], the mask of what they see, and the way back to flat tokens.

    Its index arrays join the transfer, unless one of them is read before that is sent.
    """

    def __init__(
        self, numbered: Sequence[tuple[int, Span]], total: int, dtype: torch.dtype, transfer: HostToDevice
    ) -> None:
        spans = self.spans = [span for _, span in numbered]
        self._T, self.keys = max(s.length for s in spans), max(s.end for s in spans)
        begin_S = np.array([begin for begin, _ in numbered])
        self._start_S, length_S = np.array([s.start for s in spans]), np.array([s.length for s in spans])
        offset_T = np.arange(self._T)
        inside_ST = offset_T < length_S[:, None]
        query_ST = begin_S[:, None] + np.where(inside_ST, offset_T, 0)
        self._uniform = bool(inside_ST.all())
        self.whole = np.array_equal(query_ST.reshape(-1), np.arange(total))
        self._tokens_N = transfer.add(query_ST[inside_ST])
        self._lengths_S = None if self._uniform else transfer.add(length_S)
        self._query_SxT = transfer.add(query_ST.reshape(-1))
        self._back_N = transfer.add(inside_ST.reshape(-1).nonzero()[0])
        # Padded queries see what the span's first token sees, so that no row of the softmax is empty.
        self._sees_ST = np.where(inside_ST, self._start_S[:, None] + offset_T, self._start_S[:, None])
        self._see_ST = transfer.add(self._sees_ST)
        self._ends_S = np.array([span.end for span in spans])
        source_S = np.array([span.source for span in spans])
        self._source_S = transfer.add(source_S)
        self.first, self.sources = int(source_S.min()), int(source_S.max())
        """The first key of a sequence, and the maximum of the encoder's tokens."""
        self._masked = self._T > 1 or self.sources > self.first or bool((self._start_S + 1 != self.keys).any())
        self._dtype = dtype
        self._folded: Tensor | None = None
        self._nearby: dict[int | None, Nearby] = {}

    @property
    def tokens_N(self) -> Tensor:
        """The flat indices of the group's tokens."""
        return self._tokens_N.tensor

    @property
    def lengths_S(self) -> Tensor | None:
        """The spans' lengths; None where they are equal."""
        return None if self._lengths_S is None else self._lengths_S.tensor

    def _mask(self, repeats: int) -> Tensor | None:
        """The mask added to the scores [S, 1, repeats · T, K], on the keys' device; None where all queries see all
        keys."""
        if self._folded is None and self._masked:
            seen_STK = self.keys_in_window(None).seen_STK
            mask_STK = torch.zeros(seen_STK.shape, dtype=self._dtype, device=seen_STK.device)
            mask_STK.masked_fill_(~seen_STK, -torch.inf)
            self._folded = mask_STK[:, None].repeat(1, 1, repeats, 1)
        return self._folded

    def attend(self, q_NHD: Tensor, k_SGKD: Tensor, v_SGKV: Tensor, options: AttentionOptions) -> Tensor:
        """Attention outputs [N', H, V] of the group's tokens, in the order of `tokens_N`, over keys from `first` on."""
        (S, G), (H, D), T, V = k_SGKD.shape[:2], q_NHD.shape[1:], self._T, v_SGKV.shape[3]
        if not options.is_plain:
            return self.attend_near(
                q_NHD, k_SGKD.transpose(1, 2), v_SGKV.transpose(1, 2), options, self.keys_in_window(None)
            )
        # The query heads of one key-value head become query rows: enable_gqa would copy all keys in every layer.
        q = self.block(q_NHD).view(S, T, G, H // G, D).permute(0, 2, 3, 1, 4).reshape(S, G, (H // G) * T, D)
        out = F.scaled_dot_product_attention(q, k_SGKD, v_SGKV, attn_mask=self._mask(H // G), scale=options.scale)
        return self.flat(out.view(S, G, H // G, T, V).permute(0, 3, 1, 2, 4).reshape(S, T, H, V))

    def attend_near(
        self, q_NHD: Tensor, k_SKGD: Tensor, v_SKGV: Tensor, options: AttentionOptions, nearby: Nearby
    ) -> Tensor:
        """`attend` over the keys of `nearby`."""
        visible = options.apply_window(nearby.seen_STK, nearby.distance_STK, True)
        return self.flat(masked_attention(self.block(q_NHD), k_SKGD, v_SKGV, visible, options, nearby.distance_STK))

    def cross_attend(self, q_NHD: Tensor, k_SGKD: Tensor, v_SGKV: Tensor, options: AttentionOptions) -> Tensor:
        """Attention outputs [N', H, V] over the encoder's keys, from position 0 to before `sources`."""
        source_S = self._source_S.tensor
        read_SK = torch.arange(self.sources, device=source_S.device) < source_S[:, None]
        read_STK = read_SK[:, None].expand(-1, self._T, -1)
        k_SKGD, v_SKGV = k_SGKD.transpose(1, 2), v_SGKV.transpose(1, 2)
        return self.flat(masked_attention(self.block(q_NHD), k_SKGD, v_SKGV, read_STK, options))

    def keys_in_window(self, window: int | None) -> Nearby:
        """The keys from the first one that a span's first token sees in its window; computed once for each window."""
        if window not in self._nearby:
            low = self.first
            nearest = low if window is None else np.maximum(self._start_S - window + 1, low)
            max_keys, sees_ST = int((self._ends_S - nearest).max()), self._see_ST.tensor
            # Behind the first key that a span's first token sees: padding stands where that does.
            position_SK = torch.arange(max_keys, device=sees_ST.device).expand(len(self.spans), -1)
            position_SK = position_SK + (low if window is None else (sees_ST[:, :1] - window + 1).clamp(min=low))
            distance_STK = position_SK[:, None] - sees_ST[:, :, None]
            seen_STK = (distance_STK <= 0) & (position_SK >= self._source_S.tensor[:, None])[:, None]
            self._nearby[window] = Nearby(position_SK, distance_STK, seen_STK)
        return self._nearby[window]

    def block(self, x_N: Tensor) -> Tensor:
        """Rows of flat tokens [N, ...] as a block [S, T, ...], padded with a span's first token."""
        rows = x_N if self.whole else x_N.index_select(0, self._query_SxT.tensor)
        return rows.view(len(self.spans), self._T, *x_N.shape[1:])

    def flat(self, x_ST: Tensor) -> Tensor:
        """A block [S, T, ...] as the group's tokens [N', ...], in the order of `tokens_N`."""
        tokens = x_ST.flatten(0, 1)
        return tokens if self._uniform else tokens.index_select(0, self._back_N.tensor)


@dataclass(frozen=True, eq=False)
class Nearby:
    """Positions of the keys that a group's spans read, the distance of each from each query (0 is the query's own), and
    which of them a query may see."""

    position_SK: Tensor
    distance_STK: Tensor
    seen_STK: Tensor


def span_index(spans: Sequence[Span]) -> tuple[Numbers, Numbers]:
    """Row and position of every token of a flat batch, int64 [N] each."""
    lengths = np.array([span.length for span in spans])
    rows = np.repeat([span.row for span in spans], lengths)
    begins = np.array([span.start for span in spans]) - (lengths.cumsum() - lengths)
    return rows, np.arange(len(rows)) + np.repeat(begins, lengths)


# One more group costs about ten small operations in every layer: worth it where it saves the reading of so many bytes
# of padded keys and values by a processor, or by a device, which reads faster than it begins operations.
GROUP_BYTES, DEVICE_GROUP_BYTES = 1 << 21, 1 << 26
# Rows that are not neighbours are copied to be read together, which costs a key as much as so many queries read it.
COPY_QUERIES = 4


def grouped(
    spans: Sequence[Span], key_bytes: float, *, copies: bool = False, device: str = "cpu"
) -> list[list[tuple[int, Span]]]:
    """Groups spans, each with the index of its first token, so that little padding is read. key_bytes: of one token's
    key and value in a layer. copies: neighbouring rows are copied too."""
    begin = 0
    numbered: list[tuple[int, Span]] = []
    for span in spans:
        numbered.append((begin, span))
        begin += span.length
    # Single tokens in the order of their rows, of which neighbours are read in place; but those behind as many others.
    numbered.sort(key=lambda n: (n[1].length, n[1].end if n[1].length > 1 else n[1].end.bit_length(), n[1].row))
    group_queries = (GROUP_BYTES if device == "cpu" else DEVICE_GROUP_BYTES) / key_bytes
    groups: list[list[tuple[int, Span]]] = []
    cost = longest = keys = 0
    adjacent = True
    for numbered_span in numbered:
        span = numbered_span[1]
        alone = span.end * (span.length + COPY_QUERIES * copies)
        if groups:
            T, K = max(longest, span.length), max(keys, span.end)
            together = adjacent and not copies and span.row == groups[-1][-1][1].row + 1
            cost_together = (len(groups[-1]) + 1) * K * (T + COPY_QUERIES * (not together))
            if cost_together <= cost + alone + group_queries:
                groups[-1].append(numbered_span)
                cost, longest, keys, adjacent = cost_together, T, K, together
                continue
        groups.append([numbered_span])
        cost, longest, keys, adjacent = alone, span.length, span.end, True
    return groups
