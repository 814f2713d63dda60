"""Pinned prompt prefixes of skins in the engines' prefix caches: the most recently used ones, up to a number of bytes.

Two skins of one base that begin alike share one. Only requests of skins use what is kept here: a caller of the base who
guesses a skin's prompt must not find it cached. Methods may be called from any thread.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from bedplate.inference.engine.engine import Engine
from bedplate.models.specs.cache import cache_layout


@dataclass(frozen=True)
class _Place:
    """Where a beginning is kept: on which engine, under which adapter."""

    engine: Engine
    adapter: str | None
    tokens: tuple[int, ...]


@dataclass
class _CachedPrefix:
    size: int
    owners: set[object] = field(default_factory=set[object])


class SkinPrefixes:
    """At most `limit` bytes of keys and values."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.cached_bytes = 0
        """Bytes that are kept now."""
        self._cached: OrderedDict[_Place, _CachedPrefix] = OrderedDict()
        self._places: dict[object, _Place | None] = {}
        self._lock = threading.Lock()
        self._pinning = threading.Lock()

    def __len__(self) -> int:
        return len(self._cached)

    def used(self, owner: object) -> bool:
        """Whether the owner's beginning is kept, which counts as its use. True also where there is none to keep."""
        with self._lock:
            place = self._places.get(owner)
            if place is None:
                return True
            if place not in self._cached:
                return False
            self._cached.move_to_end(place)
            return True

    def add(self, owner: object, engine: Engine, tokens: Sequence[int], adapter: str | None) -> None:
        """Computes and keeps a beginning for its owner; others that were used longer ago go. One larger than the limit
        is not kept: its requests share what they can among themselves."""
        size = prefix_bytes(engine, len(tokens))
        place = _Place(engine, adapter, tuple(tokens))
        with self._pinning:
            with self._lock:
                if not tokens or size > self.limit:
                    self._places[owner] = None
                    return
                self._places[owner] = place
                existing = self._cached.get(place)
                leaving = [] if existing is not None else self._make_room(size)
            for evicted in leaving:
                evicted.engine.unpin(evicted.tokens, evicted.adapter, public=False)
            if existing is None:
                engine.pin(tokens, adapter, public=False)
            with self._lock:
                prefix = self._cached.setdefault(place, _CachedPrefix(size))
                self.cached_bytes += 0 if existing is not None else size
                prefix.owners.add(owner)
                self._cached.move_to_end(place)

    def _make_room(self, size: int) -> list[_Place]:
        leaving: list[_Place] = []
        while self._cached and self.cached_bytes + size > self.limit:
            place, prefix = self._cached.popitem(last=False)
            self.cached_bytes -= prefix.size
            leaving.append(place)
        return leaving

    def forget(self, owner: object) -> None:
        """The owner needs its beginning no more; the last owner takes it along."""
        with self._pinning:
            with self._lock:
                place = self._places.pop(owner, None)
                prefix = None if place is None else self._cached.get(place)
                if place is None or prefix is None:
                    return
                prefix.owners.discard(owner)
                if prefix.owners:
                    return
                del self._cached[place]
                self.cached_bytes -= prefix.size
            place.engine.unpin(place.tokens, place.adapter, public=False)


def prefix_bytes(engine: Engine, tokens: int) -> int:
    """What the keys and values of so many tokens take. 0 for an encoder, which keeps none."""
    spec = engine.base.spec.main
    if spec.kind == "encoder":
        return 0
    values_per_token = sum(cache_part.values for cache_part in cache_layout(spec) if not cache_part.of_sequence)
    return values_per_token * engine.base.dtype.itemsize * tokens
