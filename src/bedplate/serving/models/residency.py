"""Residency of skins in memory: a bounded number, loaded on demand, the least recently used evicted, none while in use.

Where more are wanted at once than fit, calls wait their turn: a skin that has been in memory for `TURN_SECONDS` is not
given to new calls while others queue, and leaves when its last call ends. Files are read and adapters moved in a
thread, so that the event loop and the engine go on. All methods belong to the event loop's thread.
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
"""How long a skin that is in use may keep others waiting for its place. Loading one takes some 0.05 s."""

T = TypeVar("T")


class Loadable(Protocol):
    """What comes and goes. Both are called in a thread, and never at once."""

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


class Moved(Exception):
    """The skin was replaced or removed before it could be loaded: look its name up again."""


class Guest:
    """One loadable in a pool: who uses it, and who waits for it."""

    def __init__(self, pool: ResidentPool, loadable: Loadable) -> None:
        self.pool, self.loadable = pool, loadable
        self.state = Residency.UNLOADED
        self.holders = 0
        self.waiters: list[asyncio.Future[None]] = []
        self.since = 0.0
        """When it became ready, in `time.monotonic()` seconds."""
        self.yielding = False
        self.retired = False

    async def acquire(self) -> None:
        """Waits until it is in memory, where it stays until `release`. Raises Moved, or what loading it raised."""
        if self.state is Residency.READY and not self.yielding:
            self.holders += 1
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
        """Ends one `hold`."""
        self.holders -= 1
        self.pool.on_release(self)

    def retire(self) -> None:
        """It is served under no name any more: it leaves when its last holder does. Whoever still waits gets Moved."""
        self.retired = True
        if self.state in {Residency.UNLOADED, Residency.QUEUED, Residency.LEAVING} or self.yielding:
            self.fail(Moved())
        self.pool.on_release(self)

    def admit(self) -> None:
        waiters, self.waiters = self.waiters, []
        for ready in waiters:
            if not ready.done():
                self.holders += 1
                ready.set_result(None)

    def fail(self, error: BaseException) -> None:
        waiters, self.waiters = self.waiters, []
        for ready in waiters:
            if not ready.done():
                ready.set_exception(error)


class ResidentPool:
    """At most `capacity` guests at once."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._ready: dict[Guest, None] = {}
        """In the order of their last use."""
        self._moving: set[Guest] = set()
        self._queue: deque[Guest] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def resident(self) -> int:
        """How many are in memory, those on their way included."""
        return len(self._ready) + len(self._moving)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def used(self, guest: Guest) -> None:
        self._ready[guest] = self._ready.pop(guest)

    def request_load(self, guest: Guest) -> None:
        if guest.state is Residency.UNLOADED:
            self._enqueue(guest)
        self._advance()

    def on_release(self, guest: Guest) -> None:
        """A holder has gone, or it was retired."""
        if guest.state is Residency.READY and not guest.holders and (guest.retired or guest.yielding):
            self._start(guest, Residency.LEAVING, self._unload(guest))
        self._advance()

    def _enqueue(self, guest: Guest) -> None:
        guest.state = Residency.QUEUED
        self._queue.append(guest)

    def _advance(self) -> None:
        """Gives free places to those who wait, makes places, and asks for turns."""
        for guest in [guest for guest in self._queue if all(ready.done() for ready in guest.waiters)]:
            self._queue.remove(guest)  # those who waited for it have given up
            guest.state = Residency.UNLOADED
        while self._queue and self.resident < self.capacity:
            guest = self._queue.popleft()
            self._start(guest, Residency.LOADING, self._load(guest))
        missing = len(self._queue) - sum(guest.state is Residency.LEAVING for guest in self._moving)
        for guest in [guest for guest in self._ready if not guest.holders][: max(missing, 0)]:
            self._start(guest, Residency.LEAVING, self._unload(guest))
            missing -= 1
        missing -= sum(guest.yielding for guest in self._ready)
        if missing > 0:
            self._ask_for_turns(missing)
        elif not self._queue:  # nobody waits for a place any more: those who were to go stay
            for guest in [guest for guest in self._ready if guest.yielding]:
                guest.yielding = False
                guest.admit()

    def _ask_for_turns(self, missing: int) -> None:
        current_time = time.monotonic()
        for guest in sorted(self._ready, key=lambda guest: guest.since):
            if guest.yielding:
                continue
            wait = guest.since + TURN_SECONDS - current_time
            if missing <= 0 or wait > 0:
                if missing > 0 and self._timer is None:
                    self._timer = asyncio.get_running_loop().call_later(wait + 0.001, self._timed)
                return
            guest.yielding = True
            missing -= 1

    def _timed(self) -> None:
        self._timer = None
        self._advance()

    def _start(self, guest: Guest, state: Residency, work: Coroutine[Any, Any, None]) -> None:
        self._ready.pop(guest, None)
        self._moving.add(guest)
        guest.state = state
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load(self, guest: Guest) -> None:
        try:
            await run_in_thread(guest.loadable.load)
        except BaseException as error:
            self._moving.discard(guest)
            guest.state = Residency.UNLOADED
            guest.fail(Moved() if guest.retired else error)
            if not isinstance(error, Exception):
                raise
            log.error("the skin %s cannot be loaded: %s", guest.loadable.name, error, exc_info=error)
        else:
            self._moving.discard(guest)
            self._ready[guest] = None
            guest.state, guest.since = Residency.READY, time.monotonic()
            guest.admit()
            self.on_release(guest)
        self._advance()

    async def _unload(self, guest: Guest) -> None:
        try:
            await run_in_thread(guest.loadable.unload)
        except Exception as error:
            log.error("unloading %s failed", guest.loadable.name, exc_info=error)
        finally:
            self._moving.discard(guest)
            guest.state, guest.yielding = Residency.UNLOADED, False
        if guest.waiters:
            self._enqueue(guest)
        self._advance()


async def run_in_thread(call: Callable[[], T]) -> T:
    """Calls in a thread that ends with the call, and its OpenMP pool with it: while a second pool exists, libgomp lets
    the workers of the engine's pool sleep between operations, and short calls take half as long again."""
    thread = ThreadPoolExecutor(1, "bedplate-load")
    try:
        return await asyncio.get_running_loop().run_in_executor(thread, call)
    finally:
        thread.shutdown(wait=False)


def apart_now(call: Callable[[], T]) -> T:
    """`apart`, where there is no event loop yet."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(call).result()


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
