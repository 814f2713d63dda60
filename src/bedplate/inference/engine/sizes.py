"""Derives an engine's token budget, row count and cache sizes from free memory, and opens its caches."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bedplate.inference.forward.kv_cache import KVCache, SlotCache
from bedplate.inference.forward.paged import BLOCK, PagedCache
from bedplate.inference.forward.radix import RadixTree
from bedplate.models.checkpoints.base import Base
from bedplate.models.specs import TextSpec
from bedplate.models.specs.cache import row_layout

STEP_TOKENS, ROWS = 512, 16
"""CPU defaults: matrix products of more tokens are no faster per token."""
DEVICE_ROWS, MAX_STEP_TOKENS = 128, 8192
PREFIX_BYTES, SLOT_BYTES = 1 << 30, 4 << 30
"""CPU defaults, and those of devices whose free memory is unknown."""
ACTIVATION_SHARE = 1 / 8
"""The fraction of a device's free memory left for the activations of a step."""
CACHE_SHARE = 0.9
"""The fraction of the rest for keys and values; library workspaces, adapters and fragmentation take the remainder."""


@dataclass(frozen=True)
class EngineSizes:
    """Token budget of a step, rows, and bytes of the prefix cache and of the running sequences' cache."""

    max_step_tokens: int
    max_rows: int
    cache_bytes: int
    slot_bytes: int


def engine_sizes(
    spec: TextSpec,
    dtype: torch.dtype,
    device: torch.device,
    free: int | None,
    *,
    max_step_tokens: int | None = None,
    max_rows: int | None = None,
    cache_bytes: int | None = None,
    slot_bytes: int | None = None,
) -> EngineSizes:
    """The given sizes; those that are None are derived from `free` bytes of memory (None: unknown)."""
    rows = (ROWS if device.type == "cpu" else DEVICE_ROWS) if max_rows is None else max_rows
    tokens = max_step_tokens or _step_tokens(spec, dtype, device, free)
    cache, slots = PREFIX_BYTES, SLOT_BYTES
    if free is not None and device.type == "cpu":
        cache, slots = min(cache, free // 4), min(slots, free // 2)
    elif free is not None:
        pool = max(int(CACHE_SHARE * (free - working_bytes(spec, dtype, tokens))), 0)
        # One pool for both: the prefix cache frees what running rows need.
        cache = pool * 3 // 4 if slot_bytes is None else max(pool - slot_bytes, 0)
        slots = pool - cache if cache_bytes is None else max(pool - cache_bytes, 0)
    return EngineSizes(
        tokens, rows, cache if cache_bytes is None else cache_bytes, slots if slot_bytes is None else slot_bytes
    )


def working_bytes(spec: TextSpec, dtype: torch.dtype, tokens: int) -> int:
    """Bytes of activations in a pass over `tokens` tokens: states, queries, keys, values and feed-forward features of
    one block, then float32 logits, their log-probabilities and one more copy."""
    attention, feedforward = spec.main.attention, spec.main.feedforward
    heads = 2 * (attention.heads + 2 * attention.kv_heads) * attention.head_dim
    block = 6 * spec.main.hidden_size + heads + 3 * feedforward.size
    return tokens * (block * dtype.itemsize + 3 * 4 * spec.vocab_size)


def _step_tokens(spec: TextSpec, dtype: torch.dtype, device: torch.device, free: int | None) -> int:
    tokens = STEP_TOKENS
    if device.type == "cpu" or free is None:
        return tokens
    while tokens < MAX_STEP_TOKENS and working_bytes(spec, dtype, 2 * tokens) <= ACTIVATION_SHARE * free:
        tokens *= 2
    return tokens


def open_caches(
    base: Base, cache_bytes: int, slot_bytes: int, paged: bool, step: int
) -> tuple[RadixTree, KVCache | None]:
    """Opens the prefix cache and the running sequences' cache (None for an encoder). paged: in blocks, unless all
    layers have recurrent states, which are not paged. step: maximum tokens of a row in one pass."""
    if not base.causal:
        return RadixTree(cache_bytes), None
    layout = row_layout(base.spec)
    if not paged or all(layer_cache.of_sequence for layer_cache in layout):
        slots = SlotCache(base.spec, base.dtype, base.device, slot_bytes, step)
        return RadixTree(cache_bytes, snapshots=bool(slots.states)), slots
    tree = RadixTree(cache_bytes, BLOCK, snapshots=any(layer_cache.of_sequence for layer_cache in layout))
    pool = cache_bytes + slot_bytes
    cache = PagedCache(
        base.spec, base.dtype, base.device, pool, step=step, reclaim=tree.reclaim, pinned=lambda: tree.pinned
    )
    return tree, cache
