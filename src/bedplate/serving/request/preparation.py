"""Thread pool for work on requests off the event loop, bounded in calls and bytes, in all and for each tenant.

Tokenizers, templates and JSON of strangers' texts take memory in proportion to the texts, and hold the interpreter.
Tenants take turns; what one of them has under way never takes the threads or the bytes that another could use at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import queue
import threading
import time
import types
import weakref
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Generator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from bedplate.core.memory import give_back
from bedplate.inference.engine.scheduler import fair_shares, may_queue
from bedplate.serving.schemas.http_errors import LimitError

T = TypeVar("T")

PART = 0.2
"""Seconds of processor in a second that all tenants' calls may take, beside the engines, before one of them waits."""
TIMES = 2.0
"""Nobody waits who has had at most so many times what the others have had on average."""
REFUSED = 3.0
"""How often a call counts that came to nothing."""
MAX_QUEUED_CALLS = 1024
"""Calls of one tenant that may wait for their turn."""
SECONDS = 0.25
"""What was spent counts less and less: after so long, less by a factor of e. So long may a burst have the interpreter:
a step of an engine that waits for it is as much later."""
PREPAID_DECAY = 0.95
"""Factor by which each call discounts the earlier ones in the mean that is paid ahead."""
LOOK_SECONDS = 0.25
"""Who waits looks again after so long at the latest: the others may have left."""
FORGOTTEN = 1e-4
"""Seconds of processor that are no longer remembered."""


@dataclass
class _Line:
    """A tenant's calls, one behind the other."""

    first: asyncio.Lock = field(default_factory=asyncio.Lock)
    calls: int = 0


class Pacing:
    """What was spent on each tenant lately. Used from one event loop only."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, used: Callable[[], float] = time.thread_time
    ) -> None:
        """clock: seconds. used: seconds of processor of the event loop's thread."""
        self._clock, self._used = clock, used
        self._spent: dict[str, float] = {}
        self._mean_call = 0.0
        """Seconds of a call. It is paid ahead: of calls that come at once, none has spent anything yet."""
        self._since = clock()
        self.lines: dict[str, _Line] = {}
        """Lines of the tenants whose calls wait or pass just now."""
        self.under_way: Counter[str] = Counter()
        """Calls whose turn has come and that are not over, by tenant."""
        self._idle = asyncio.Event()
        """Set for a moment when the last call of a tenant is over."""
        self._began = 0.0
        """When the coroutine that is metered just now was resumed, by the processor's clock."""

    async def turn(self, tenant: str) -> float:
        """Returns the seconds paid ahead, when it is the tenant's turn. LimitError where too many of its calls wait."""
        line = self.lines.setdefault(tenant, _Line())
        if line.calls >= MAX_QUEUED_CALLS:
            raise LimitError("too many of your requests are waiting here; wait for some to be answered", 1.0)
        line.calls += 1
        try:
            async with line.first:
                while seconds := self.wait(tenant):
                    if not self._is_delaying_others(tenant):
                        # What nobody else uses is not left idle, but calls pass no faster than they are worked on:
                        # who comes next finds few of them before it.
                        await asyncio.sleep(self._mean_call)
                        if not self._is_delaying_others(tenant):
                            break
                    else:
                        with contextlib.suppress(TimeoutError):
                            async with asyncio.timeout(min(seconds, LOOK_SECONDS)):
                                await self._idle.wait()
                self.spent(tenant, self._mean_call)
                return self._mean_call
        finally:
            line.calls -= 1
            if not line.calls:
                del self.lines[tenant]

    @types.coroutine
    def metered(self, tenant: str, work: Awaitable[T], prepaid: float = 0.0) -> Generator[Any, None, T]:
        """What `work` gives. What the loop's thread computes for it, each time that it goes on, is spent on the
        tenant, beyond the seconds paid ahead."""
        self.under_way[tenant] += 1
        try:
            return (yield from self._metered(tenant, work, prepaid))
        finally:
            self.under_way[tenant] -= 1
            if not self.under_way[tenant]:
                del self.under_way[tenant]
                self._idle.set()
                self._idle.clear()

    def _metered(self, tenant: str, work: Awaitable[T], prepaid: float) -> Generator[Any, None, T]:
        steps, used = work.__await__(), 0.0
        error = ended = awaited = None
        while True:
            began = self._began = self._used()
            try:
                awaited = steps.send(None) if error is None else steps.throw(error)
            except StopIteration as stopped:
                ended = stopped
            finally:
                error, seconds = None, self._used() - began
                used += seconds
                if used > prepaid:
                    self.spent(tenant, min(seconds, used - prepaid))
            if ended is not None:
                self.spent(tenant, min(0.0, used - prepaid))  # gives back what was not used
                self._mean_call += (1 - PREPAID_DECAY) * (used - self._mean_call)
                return ended.value
            try:
                yield awaited
            except BaseException as thrown:  # for the work to judge
                error = thrown

    def wait(self, tenant: str) -> float:
        """Seconds until what was spent on the tenant has become its part; 0 where it has."""
        self._decay()
        mine, total = self._spent.get(tenant, 0.0), sum(self._spent.values())
        rival_count = len(self._spent) - 1
        if not mine or not rival_count or total <= PART * SECONDS:
            return 0.0
        allowed = TIMES * (total - mine) / rival_count
        if mine > allowed:
            demand = {name: round(1e6 * value) for name, value in self._spent.items()}
            allowed = max(allowed, fair_shares(round(1e6 * PART * SECONDS), demand)[tenant] / 1e6)
        return SECONDS * math.log(mine / allowed) if mine > allowed + FORGOTTEN else 0.0

    def _is_delaying_others(self, tenant: str) -> bool:
        """Whether calls of other tenants are under way; not those that nothing was computed for lately."""
        return any(name != tenant and name in self._spent for name in self.under_way)

    def spent(self, tenant: str, seconds: float) -> None:
        """Seconds of processor that were spent on the tenant, in the loop or beside it."""
        self._spent[tenant] = max(0.0, self._spent.get(tenant, 0.0) + seconds)

    @property
    def tenants(self) -> int:
        return len(self._spent)  # who have asked lately

    def refused(self, tenant: str) -> None:
        """The call of the tenant that the loop is at came to nothing."""
        self.spent(tenant, (REFUSED - 1.0) * (self._used() - self._began))

    def _decay(self) -> None:
        current_time = self._clock()
        decay = math.exp((self._since - current_time) / SECONDS)
        self._spent = {name: decay * value for name, value in self._spent.items() if decay * value > FORGOTTEN}
        self._since = current_time


MAX_BEGUN_PER_ROUND = 8
"""Requests that begin in one round of the event loop: each takes about a millisecond of it."""


class Door:
    """Lets few requests begin in each round of the event loop, callers taking turns, so that what else the loop is to
    do waits for few, however many come at once. Used from one event loop only."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._begun = 0
        """Requests that have begun in this round."""

    async def enter(self, caller: str) -> None:
        """Returns when a request of this caller may begin."""
        loop = asyncio.get_running_loop()
        if not self._begun:
            loop.call_soon(self._open)
        if self._begun < MAX_BEGUN_PER_ROUND and not self._waiting:
            self._begun += 1
            return
        turn = loop.create_future()
        self._waiting.setdefault(caller, deque()).append(turn)
        await turn

    def _open(self) -> None:
        """Begins a new round."""
        self._begun = 0
        while self._waiting and self._begun < MAX_BEGUN_PER_ROUND:
            caller = next(iter(self._waiting))
            turns = self._waiting.pop(caller)
            turn = turns.popleft()
            if turns:
                self._waiting[caller] = turns  # behind all others
            if not turn.done():
                turn.set_result(None)
                self._begun += 1
        if self._begun:
            asyncio.get_running_loop().call_soon(self._open)


THREADS = 16
"""At work at once; half of them for one tenant, or its part where many have asked lately: threads that compute wait for
the interpreter one behind the other, and the event loop behind all of them."""
BODIES = 4
"""Request bodies of the largest size that are worked on at once; half of them for one tenant."""
WAITING_BODIES, WAITING = 16, 1024
"""What of one tenant may wait: bodies of the largest size, and calls."""

HELD_BODIES = 16
"""Bodies of the largest size in memory at once, from their first byte to the last of their reply."""
LEFT_BYTES, GIVE_BACK_SECONDS = 512 * 1024, 1.0
"""Work on so many bytes leaves freed memory that is worth giving back, and how long afterwards that is done. A text
takes some hundred times its own size while it is encoded, in pieces that the allocator keeps."""


class CallMemory:
    """The bytes of one call, of its body and its reply, that are in memory. Close it when they are not any more."""

    def __init__(self, limit: int, sizes: Counter[str], tenant: str, let_go: Callable[[int], None]) -> None:
        """limit: bytes of all calls; sizes: those that are held, by tenant. let_go: told how many were, at the end."""
        self._limit, self._sizes, self._tenant, self._let_go = limit, sizes, tenant, let_go
        self._mine = 0

    def reserve(self, size: int) -> None:
        """Holds so many more bytes. LimitError where the tenant has its part already."""
        crowded = self._sizes.total() + size > self._limit
        if crowded and not may_queue(self._limit, self._sizes, self._tenant, size):
            raise LimitError("too many bytes of your requests are waiting here; wait for some to be answered", 1.0)
        self.add(size)

    def add(self, size: int) -> None:
        """Holds so many more bytes, whoever has how many: they are there already."""
        self._mine += size
        self._sizes[self._tenant] += size

    def close(self) -> None:
        """A second time does nothing."""
        mine, self._mine = self._mine, 0
        self._sizes[self._tenant] -= mine
        if self._sizes[self._tenant] <= 0:
            del self._sizes[self._tenant]
        self._let_go(mine)


@dataclass(eq=False)
class _Turn:
    tenant: str
    size: int
    begun: asyncio.Future[None]
    seconds: float = 0.0
    """Processor time that it took."""


_Work = queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None]


class _Threads:
    """Daemon threads, for clients that may have gone: nobody waits for them when the process ends."""

    def __init__(self, max_threads: int, name: str) -> None:
        self._max_threads, self._name, self._begun = max_threads, name, 0
        self._work: _Work = queue.SimpleQueue()
        weakref.finalize(self, self._work.put, None).atexit = False

    def submit(self, work: Callable[[], T]) -> Future[T]:
        result: Future[T] = Future()
        self._work.put((work, result))
        if self._begun < self._max_threads:
            self._begun += 1
            name = f"{self._name}_{self._begun}"
            threading.Thread(target=_work_on, args=(self._work,), name=name, daemon=True).start()
        return result


def in_daemon_thread(work: Callable[[], T], name: str) -> Future[T]:
    """What `work` gives, in a thread of its own that nobody waits for when the process is to end."""
    return _Threads(1, name).submit(work)


def _work_on(waiting: _Work) -> None:
    while (job := waiting.get()) is not None:
        work, result = job
        if not result.set_running_or_notify_cancel():
            continue
        try:
            outcome = work()
        except BaseException as error:  # the caller's to judge
            result.set_exception(error)
        else:
            result.set_result(outcome)
            del outcome
        del job, work, result  # an idle thread keeps nobody's request
    waiting.put(None)


class Preparation:
    """The turns of one server. Used from its event loop only."""

    def __init__(
        self,
        body_bytes: int,
        spent: Callable[[str, float], None] = lambda *_: None,
        tenants: Callable[[], int] = lambda: 1,
    ) -> None:
        """body_bytes: of the largest request. spent: told how many seconds of processor a tenant's work took. tenants:
        how many have asked lately."""
        self._body_bytes, self._spent, self._tenants = body_bytes, spent, tenants
        self._threads = _Threads(THREADS, "bedplate-preparing")
        self._waiting: dict[str, deque[_Turn]] = {}
        self._calls: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._reserved: Counter[str] = Counter()
        self._released_bytes = 0
        self._giving_back: asyncio.TimerHandle | None = None

    def reservation(self, tenant: str) -> CallMemory:
        return CallMemory(HELD_BODIES * self._body_bytes, self._reserved, tenant, self._leaves)

    @property
    def under_way(self) -> int:
        return self._calls.total()

    async def run(self, tenant: str, size: int, work: Callable[[], T], *, refused: bool = True) -> T:
        """What `work` gives, in a thread, when it is its turn. size: bytes of what it works on. LimitError where too
        much of the tenant's waits already; refused=False: not even then, for what an answer was already computed for.
        Work that was begun continues when its caller gives up, and counts until its end."""
        mine = self._waiting.setdefault(tenant, deque())
        if refused and self._is_full(mine, size):
            raise LimitError("too many of your requests are being prepared; wait for some to be answered", 1.0)
        loop = asyncio.get_running_loop()
        turn = _Turn(tenant, size, loop.create_future())
        mine.append(turn)
        self._begin()
        try:
            await turn.begun
        except asyncio.CancelledError:
            if turn.begun.done() and not turn.begun.cancelled():
                self._end(turn)
            else:
                with contextlib.suppress(ValueError):
                    mine.remove(turn)
                self._begin()
            raise

        def over(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
                loop.call_soon_threadsafe(self._end, turn)

        def timed() -> T:
            began = time.thread_time()
            try:
                return work()
            finally:
                turn.seconds = time.thread_time() - began

        running = self._threads.submit(timed)
        running.add_done_callback(over)
        return await asyncio.wrap_future(running)

    def _is_full(self, waiting: Collection[_Turn], size: int) -> bool:
        return len(waiting) >= WAITING or sum(turn.size for turn in waiting) + size > WAITING_BODIES * self._body_bytes

    def _begin(self) -> None:
        """Begins what fits, a turn of each tenant after the other."""
        most = max(THREADS // max(self._tenants() + 1, 2), 1)
        began = True
        while began:
            began = False
            for tenant in list(self._waiting):
                turns = self._waiting[tenant]
                while turns and turns[0].begun.cancelled():  # its caller has left, and is only about to say so
                    turns.popleft()
                if not turns:
                    del self._waiting[tenant]
                elif self._fits(self._calls[tenant], most, self._bytes[tenant] + turns[0].size, BODIES // 2):
                    if not self._fits(self._calls.total(), THREADS, self._bytes.total() + turns[0].size, BODIES):
                        return  # it is the next, however much smaller those behind it are
                    began = True
                    turn = turns.popleft()
                    self._waiting[tenant] = self._waiting.pop(tenant)
                    self._calls[tenant] += 1
                    self._bytes[tenant] += turn.size
                    turn.begun.set_result(None)

    def _fits(self, calls: int, most: int, size: int, bodies: int) -> bool:
        """Whether one more call fits beside `calls`, and so many bytes into `bodies`, or it stands alone."""
        return calls < most and (calls == 0 or size <= bodies * self._body_bytes)

    def _end(self, turn: _Turn) -> None:
        self._spent(turn.tenant, turn.seconds)
        self._calls[turn.tenant] -= 1
        self._bytes[turn.tenant] -= turn.size
        self._calls += Counter()
        self._bytes += Counter()
        self._begin()
        self._leaves(turn.size)

    def _leaves(self, size: int) -> None:
        """Work on so many bytes is over. What it took is given back to the system soon: it may be a gigabyte."""
        self._released_bytes += size
        if self._released_bytes >= LEFT_BYTES and self._giving_back is None:
            self._giving_back = asyncio.get_running_loop().call_later(GIVE_BACK_SECONDS, self._give_back)

    def _give_back(self) -> None:
        self._released_bytes, self._giving_back = 0, None
        self._threads.submit(give_back)
