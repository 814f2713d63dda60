"""The beginnings that skins' prompts share, computed once and kept: those used last, up to a number of bytes.

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
class _Kept:
    size: int
    owners: set[object] = field(default_factory=set[object])


class Prefixes:
    """At most `limit` bytes of keys and values."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        """Bytes that are kept now."""
        self._kept: OrderedDict[_Place, _Kept] = OrderedDict()
        self._wanted: dict[object, _Place | None] = {}
        self._lock = threading.Lock()
        self._pinning = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def used(self, owner: object) -> bool:
        """Whether the owner's beginning is kept, which counts as its use. True also where there is none to keep."""
        with self._lock:
            place = self._wanted.get(owner)
            if place is None:
                return True
            if place not in self._kept:
                return False
            self._kept.move_to_end(place)
            return True

    def keep(self, owner: object, engine: Engine, tokens: Sequence[int], adapter: str | None) -> None:
        """Computes and keeps a beginning for its owner; others that were used longer ago go. One larger than the limit
        is not kept: its requests share what they can among themselves."""
        size = prefix_bytes(engine, len(tokens))
        place = _Place(engine, adapter, tuple(tokens))
        with self._pinning:
            with self._lock:
                if not tokens or size > self.limit:
                    self._wanted[owner] = None
                    return
                self._wanted[owner] = place
                known = self._kept.get(place)
                leaving = [] if known is not None else self._make_room(size)
            for gone in leaving:
                gone.engine.unpin(gone.tokens, gone.adapter, public=False)
            if known is None:
                engine.pin(tokens, adapter, public=False)
            with self._lock:
                kept = self._kept.setdefault(place, _Kept(size))
                self.held += 0 if known is not None else size
                kept.owners.add(owner)
                self._kept.move_to_end(place)

    def _make_room(self, size: int) -> list[_Place]:
        leaving: list[_Place] = []
        while self._kept and self.held + size > self.limit:
            place, kept = self._kept.popitem(last=False)
            self.held -= kept.size
            leaving.append(place)
        return leaving

    def forget(self, owner: object) -> None:
        """The owner needs its beginning no more; the last owner takes it along."""
        with self._pinning:
            with self._lock:
                place = self._wanted.pop(owner, None)
                kept = None if place is None else self._kept.get(place)
                if place is None or kept is None:
                    return
                kept.owners.discard(owner)
                if kept.owners:
                    return
                del self._kept[place]
                self.held -= kept.size
            place.engine.unpin(place.tokens, place.adapter, public=False)


def prefix_bytes(engine: Engine, tokens: int) -> int:
    """What the keys and values of so many tokens take. 0 for an encoder, which keeps none."""
    spec = engine.base.spec.main
    if spec.kind == "encoder":
        return 0
    each = sum(one.values for one in cache_layout(spec) if not one.of_sequence)
    return each * engine.base.dtype.itemsize * tokens
