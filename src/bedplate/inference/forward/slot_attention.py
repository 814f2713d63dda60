"""Attention over keys and values that stand on contiguous slots.

Shapes: R rows (slots), S sequences of a group, N tokens of a flat batch, C tokens that a layer has room for, K keys a
sequence may see, G key-value heads, H query heads, D features of one head, V of its value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol
from weakref import ref

import numpy as np
import torch
from torch import Tensor

from bedplate.inference.forward.host_to_device import DeviceTensors, HostToDevice, Numbers
from bedplate.inference.forward.kv_write import write_kv
from bedplate.inference.forward.recurrent_states import RecurrentStates
from bedplate.inference.forward.spans import Padded, Span, grouped, span_index
from bedplate.models.layers.attention import whole_attention
from bedplate.models.layers.attention_options import PLAIN, AttentionOptions, KeysOf, Recurrence


class Slots(Protocol):
    """The part of a cache that attention reads: keys and values [R, G, C, D] of each layer."""

    dtype: torch.dtype
    states: RecurrentStates
    keys: list[Tensor]
    values: list[Tensor]
    latents: frozenset[int]
    """Layers whose values are the ends of their keys."""


class SlotAttention:
    """Writes a flat batch's keys and values into the slots, then attends group by group of alike spans."""

    is_cached = True

    def __init__(self, cache: Slots, spans: Sequence[Span], transfer: HostToDevice) -> None:
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
        groups = [] if self._alone else grouped(spans)
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
        """Computes which tokens are written (None: all; never two to one place) and where, for a capacity (None: room
        for all)."""
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
        # Layers that share keys and values give those of an earlier one, which stand in their places then.
        written = self._written.get(layer)
        if written is None or written() is not k_BTGD:
            self.write(layer, k_BTGD[0], v_BTGV[0])
            self._written[layer] = ref(k_BTGD)
        if self._alone:
            return whole_attention(q_BTHD, k_BTGD, v_BTGV, options, causal=True)
        return self._mix_groups(layer, q_BTHD, lambda group, q, keys, values: group(q, keys, values, options))

    def cross_attend(self, layer: int, q_BTHD: Tensor, options: AttentionOptions, keys_of: KeysOf) -> Tensor:
        return self._mix_groups(
            layer, q_BTHD, lambda group, q, keys, values: group.cross_attend(q, keys, values, options)
        )

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
    """Spans padded to one length T, with the rows they read."""

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
            # To read all of the row and mask most is cheaper than to gather, where most is not much more.
            if K > C or 2 * nearby.position_SK.shape[1] < K:
                at = (self._rows_S.tensor[:, None], slice(None), nearby.position_SK % C)
                return self.padded.attend_near(q_NHD, keys[at], values[at], options, nearby)
        key_range = slice(self.padded.first, K)
        return self.padded.attend(q_NHD, self._picked(keys, key_range), self._picked(values, key_range), options)

    def cross_attend(self, q_NHD: Tensor, keys: Tensor, values: Tensor, options: AttentionOptions) -> Tensor:
        read = slice(self.padded.sources)
        return self.padded.cross_attend(q_NHD, self._picked(keys, read), self._picked(values, read), options)

    def _picked(self, kept_RGCD: Tensor, places: slice) -> Tensor:
        """The rows' keys or values at these places."""
        if self._view is not None:
            return kept_RGCD[self._view, :, places]
        return kept_RGCD[:, :, places].index_select(0, self._rows_S.tensor)
