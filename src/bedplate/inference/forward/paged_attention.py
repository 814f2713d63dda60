"""Attention over keys and values in blocks.

A step of single tokens is one operation a layer; so are prompts' chunks where there is a kernel for them. Otherwise
blocks are gathered, group by group of alike spans.

Shapes: S sequences of a group, N tokens of a flat batch, P blocks of the pool, b tokens of one, K keys, G key-value
heads, H query heads, D features of one head, V of its value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bedplate.inference.forward.host_to_device import DeviceTensors, HostToDevice, Numbers
from bedplate.inference.forward.kv_write import write_kv
from bedplate.inference.forward.paged_op import paged_attention, places, tile_tokens
from bedplate.inference.forward.recurrent_states import RecurrentStates
from bedplate.inference.forward.spans import Padded, Span, grouped
from bedplate.models.layers.attention import whole_attention
from bedplate.models.layers.attention_options import PLAIN, AttentionOptions, KeysOf, Recurrence
from bedplate.models.layers.fused.operation import has_triton


class Pages(Protocol):
    """The part of a cache that attention reads: keys and values [P, b, G, D] of each layer, and the blocks of each
    row."""

    block: int
    dtype: torch.dtype
    device: torch.device
    states: RecurrentStates
    keys: list[Tensor]
    values: list[Tensor]
    latents: frozenset[int]
    """Layers whose values are the ends of their keys."""
    windows: dict[int, int | None]

    def table(self, row: int, window: int | None = None) -> Sequence[int]: ...


class PagedAttention:
    """Writes a flat batch's keys and values into the rows' blocks, and attends to those. most: as if a row had so many
    keys."""

    is_cached = True

    def __init__(
        self, cache: Pages, spans: Sequence[Span], transfer: HostToDevice, max_keys: int | None = None
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
        return [_PagedGroup(self._cache, group, len(self._at.row_N), transfer) for group in grouped(self._spans)]

    @property
    def _groups(self) -> list[_PagedGroup]:
        if self._grouped is None:
            self._grouped = [] if self._alone else self._in_groups(HostToDevice(self._cache.device))
        return self._grouped

    def _one_operation(self) -> bool:
        """Whether one operation does a layer: of single tokens everywhere, of more where there is a kernel."""
        if any(span.source for span in self._spans):
            return False
        kernel = self._cache.device.type == "cuda" and self._cache.dtype != torch.float64 and has_triton()
        return kernel or all(span.length == 1 for span in self._spans)

    def _table(self, window: int | None) -> Numbers:
        """Each row's blocks."""
        return tables_of(self._cache, self._spans, window, -(-self._max_keys // self._cache.block))

    def _token_blocks(self, window: int | None) -> Numbers:
        """The block of each token."""
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


def tables_of(cache: Pages, spans: Sequence[Span], window: int | None, width: int) -> Numbers:
    """Each row's first blocks [S, width]. Where it has none its own last one stands, whose numbers are masked: those of
    another row, which may not be finite, would take part in this one's products."""
    tables = np.empty((len(spans), width), dtype=np.int64)
    for number, span in enumerate(spans):
        table = cache.table(span.row, window)[:width]
        tables[number, : len(table)], tables[number, len(table) :] = table, table[-1]
        np.copyto(tables[number], table[-1], where=tables[number] < 0)
    return tables


class _PagedGroup:
    """Spans padded to one length, with the tables of the blocks they read."""

    def __init__(self, cache: Pages, numbered: Sequence[tuple[int, Span]], total: int, transfer: HostToDevice) -> None:
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
            # A shorter row's positions go on behind its last block, where they are masked.
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
