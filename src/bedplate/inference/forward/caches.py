"""Which caches a base is run with."""

from __future__ import annotations

from bedplate.inference.forward.kv_cache import KVCache, SlotCache
from bedplate.inference.forward.paged import BLOCK, PagedCache
from bedplate.inference.forward.radix import RadixTree
from bedplate.models.checkpoints.base import Base
from bedplate.models.specs.cache import cache_layout


def open_caches(
    base: Base, cache_bytes: int, slot_bytes: int, paged: bool, step: int
) -> tuple[RadixTree, KVCache | None]:
    """The prefix cache, and the running sequences' own; none of the latter for an encoder. step: tokens of one row in
    one pass at most."""
    if not base.causal:
        return RadixTree(cache_bytes), None
    if not paged:
        slots = SlotCache(base.spec, base.dtype, base.device, slot_bytes, step)
        return RadixTree(cache_bytes, snapshots=bool(slots.states)), slots
    tree = RadixTree(
        cache_bytes, BLOCK, snapshots=any(layer_cache.of_sequence for layer_cache in cache_layout(base.spec))
    )
    pool = cache_bytes + slot_bytes
    cache = PagedCache(
        base.spec, base.dtype, base.device, pool, step=step, reclaim=tree.give_back, pinned=lambda: tree.pinned
    )
    return tree, cache
