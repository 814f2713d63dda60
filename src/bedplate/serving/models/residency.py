"""Keeps a bounded number of skins in memory (`ResidentPool`) and of their computed prompt prefixes (`SkinPrefixes`).

A skin is loaded when a call needs it, and the least recently used one is evicted, never one in use. When more skins are
requested at once than fit, calls queue: a skin that has been in memory for `TURN_SECONDS` accepts no new calls while
others wait, and is unloaded when its last call ends. Files are read and adapters moved in a thread, so that the event
loop and the engine go on. All methods of the pool belong to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol, TypeVar

from bedplate.inference.engine.engine import Engine
from bedplate.models.specs.cache import cache_layout

log = logging.getLogger("bedplate.serving")

TURN_SECONDS = 0.5
"""How long a skin in use may keep others waiting for its place. Loading one takes about 0.05 s."""

T = TypeVar("T")


class Loadable(Protocol):
    """A skin that can be loaded and unloaded. Both run in a thread, never at the same time."""

    @property
    def name(self) -> str: ...
    def load(self) -> None: ...
    def unload(self) -> None: ...


class Residency(Enum):
    UNLOADED = "registered"
    QUEUED = "waiting"
    LOADING = "loading"
    READY = "resident"
    LEAVING = "leaving"


class Replaced(Exception):
    """The skin was replaced or removed before it was loaded; its name has to be looked up again."""


class PooledSkin:
    """One skin in a pool: its state, the number of calls that use it, and the calls that wait for it."""

    def __init__(self, pool: ResidentPool, loadable: Loadable) -> None:
        self.pool, self.loadable = pool, loadable
        self.state = Residency.UNLOADED
        self.use_count = 0
        self.waiters: list[asyncio.Future[None]] = []
        self.since = 0.0
        """When it became ready, in `time.monotonic()` seconds."""
        self.yielding = False
        self.retired = False

    async def acquire(self) -> None:
        """Waits until it is in memory, where it stays until `release`. Raises Replaced, or the error of loading it."""
        if self.state is Residency.READY and not self.yielding:
            self.use_count += 1
            self.pool.used(self)
            return
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiters.append(ready)
        self.pool.request_load(self)
        try:
            await ready
        except BaseException:
            if ready in self.waiters:
                self.waiters.remove(ready)
            elif ready.done() and not ready.cancelled() and ready.exception() is None:
                self.release()  # it came in the very moment in which the call was given up
            raise

    def release(self) -> None:
        """Ends one `acquire`."""
        self.use_count -= 1
        self.pool.on_release(self)

    def retire(self) -> None:
        """Unloads it when its last call ends, because no name leads to it any more. Waiting calls get Replaced."""
        self.retired = True
        if self.state in {Residency.UNLOADED, Residency.QUEUED, Residency.LEAVING} or self.yielding:
            self.fail(Replaced())
        self.pool.on_release(self)

    def admit(self) -> None:
        waiters, self.waiters = self.waiters, []
        for ready in waiters:
            if not ready.done():
                self.use_count += 1
                ready.set_result(None)

    def fail(self, error: BaseException) -> None:
        waiters, self.waiters = self.waiters, []
        for ready in waiters:
            if not ready.done():
                ready.set_exception(error)


class ResidentPool:
    """Holds at most `capacity` skins in memory."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._ready: dict[PooledSkin, None] = {}
        """In the order of their last use."""
        self._moving: set[PooledSkin] = set()
        self._queue: deque[PooledSkin] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def resident(self) -> int:
        """Number of skins in memory, including those that are being loaded or unloaded."""
        return len(self._ready) + len(self._moving)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def used(self, skin: PooledSkin) -> None:
        self._ready[skin] = self._ready.pop(skin)

    def request_load(self, skin: PooledSkin) -> None:
        if skin.state is Residency.UNLOADED:
            self._enqueue(skin)
        self._advance()

    def on_release(self, skin: PooledSkin) -> None:
        """Called when a call has ended or the skin was retired."""
        if skin.state is Residency.READY and not skin.use_count and (skin.retired or skin.yielding):
            self._start(skin, Residency.LEAVING, self._unload(skin))
        self._advance()

    def _enqueue(self, skin: PooledSkin) -> None:
        skin.state = Residency.QUEUED
        self._queue.append(skin)

    def _advance(self) -> None:
        """Loads waiting skins into free places, evicts unused skins for the others, and then ends turns."""
        for skin in [skin for skin in self._queue if all(ready.done() for ready in skin.waiters)]:
            self._queue.remove(skin)  # those who waited for it have given up
            skin.state = Residency.UNLOADED
        while self._queue and self.resident < self.capacity:
            skin = self._queue.popleft()
            self._start(skin, Residency.LOADING, self._load(skin))
        missing = len(self._queue) - sum(skin.state is Residency.LEAVING for skin in self._moving)
        for skin in [skin for skin in self._ready if not skin.use_count][: max(missing, 0)]:
            self._start(skin, Residency.LEAVING, self._unload(skin))
            missing -= 1
        missing -= sum(skin.yielding for skin in self._ready)
        if missing > 0:
            self._ask_for_turns(missing)
        elif not self._queue:  # nobody waits for a place any more: those who were to go stay
            for skin in [skin for skin in self._ready if skin.yielding]:
                skin.yielding = False
                skin.admit()

    def _ask_for_turns(self, missing: int) -> None:
        current_time = time.monotonic()
        for skin in sorted(self._ready, key=lambda skin: skin.since):
            if skin.yielding:
                continue
            wait = skin.since + TURN_SECONDS - current_time
            if missing <= 0 or wait > 0:
                if missing > 0 and self._timer is None:
                    self._timer = asyncio.get_running_loop().call_later(wait + 0.001, self._timed)
                return
            skin.yielding = True
            missing -= 1

    def _timed(self) -> None:
        self._timer = None
        self._advance()

    def _start(self, skin: PooledSkin, state: Residency, work: Coroutine[Any, Any, None]) -> None:
        self._ready.pop(skin, None)
        self._moving.add(skin)
        skin.state = state
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load(self, skin: PooledSkin) -> None:
        try:
            await run_in_thread(skin.loadable.load)
        except BaseException as error:
            self._moving.discard(skin)
            skin.state = Residency.UNLOADED
            skin.fail(Replaced() if skin.retired else error)
            if not isinstance(error, Exception):
                raise
            log.error("the skin %s cannot be loaded: %s", skin.loadable.name, error, exc_info=error)
        else:
            self._moving.discard(skin)
            self._ready[skin] = None
            skin.state, skin.since = Residency.READY, time.monotonic()
            skin.admit()
            self.on_release(skin)
        self._advance()

    async def _unload(self, skin: PooledSkin) -> None:
        try:
            await run_in_thread(skin.loadable.unload)
        except Exception as error:
            log.error("unloading %s failed", skin.loadable.name, exc_info=error)
        finally:
            self._moving.discard(skin)
            skin.state, skin.yielding = Residency.UNLOADED, False
        if skin.waiters:
            self._enqueue(skin)
        self._advance()


async def run_in_thread(call: Callable[[], T]) -> T:
    """Calls in a thread that ends with the call, and its OpenMP pool with it: while a second pool exists, libgomp lets
    the workers of the engine's pool sleep between operations, and short calls take half as long again."""
    thread = ThreadPoolExecutor(1, "bedplate-load")
    try:
        return await asyncio.get_running_loop().run_in_executor(thread, call)
    finally:
        thread.shutdown(wait=False)


def run_apart(call: Callable[[], T]) -> T:
    """Calls in a thread of its own, as `run_in_thread` does, and waits: for code outside the event loop."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(call).result()


@dataclass(frozen=True)
class _PrefixKey:
    """The engine, adapter and tokens under which a prefix is cached."""

    engine: Engine
    adapter: str | None
    tokens: tuple[int, ...]


@dataclass
class _CachedPrefix:
    size: int
    owners: set[object] = field(default_factory=set[object])


class SkinPrefixes:
    """Keeps the keys and values of the fixed beginnings of skins' prompts, at most `limit` bytes of them."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.cached_bytes = 0
        """Bytes in use."""
        self._cached: OrderedDict[_PrefixKey, _CachedPrefix] = OrderedDict()
        self._places: dict[object, _PrefixKey | None] = {}
        self._lock = threading.Lock()
        self._pinning = threading.Lock()

    def used(self, owner: object) -> bool:
        """Whether the owner's prefix is cached (or it has none to cache). Marks it as used."""
        with self._lock:
            place = self._places.get(owner)
            if place is None:
                return True
            if place not in self._cached:
                return False
            self._cached.move_to_end(place)
            return True

    def add(self, owner: object, engine: Engine, tokens: Sequence[int], adapter: str | None) -> None:
        """Computes and caches a prefix for its owner, and evicts the least recently used. One larger than the limit is
        not cached: its requests share what they can among themselves."""
        size = prefix_bytes(engine, len(tokens))
        place = _PrefixKey(engine, adapter, tuple(tokens))
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

    def _make_room(self, size: int) -> list[_PrefixKey]:
        leaving: list[_PrefixKey] = []
        while self._cached and self.cached_bytes + size > self.limit:
            place, prefix = self._cached.popitem(last=False)
            self.cached_bytes -= prefix.size
            leaving.append(place)
        return leaving

    def forget(self, owner: object) -> None:
        """Removes the owner; a prefix without owners is no longer cached."""
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
    """Bytes of the keys and values of this many tokens. 0 for an encoder, which has no cache."""
    spec = engine.base.spec.main
    if spec.kind == "encoder":
        return 0
    values_per_token = sum(cache_part.values for cache_part in cache_layout(spec) if not cache_part.of_sequence)
    return values_per_token * engine.base.dtype.itemsize * tokens
