"""Answers the rows of batches in the background; clients' requests always go first. Checking a new batch's file and
writing a finished one's run beside the rows, tenants taking turns."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import sqlite3
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.types import ASGIApp

from bedplate.serving.durable.batch_lines import answered_line, batch_error, check_lines, failed_line, unfinished_line
from bedplate.serving.durable.batch_store import UNFINISHED, BatchStore, DoneRow, StoredBatch
from bedplate.serving.durable.state_directory import STATE_BUSY, StateDirectory
from bedplate.serving.request.server_state import ServerState, self_call
from bedplate.serving.schemas.http_errors import StatusError

log = logging.getLogger("bedplate.serving")

_PULSE_SECONDS = 0.25
_POLL_SECONDS = 0.005
_RETRY_SECONDS = (0.05, 5.0)
_UNKEPT = 64
_TROUBLE_SECONDS = 1.0
MAX_FAILURES = 3
"""How often a row is tried whose answering raises."""
_FULL = "this row was not done: your files and batches take all the space they may; delete some"
_BROKEN = "this row could not be answered, because of an error in the server"
# The server's state, not the row's fault: the row is tried again, after a while or by the next server.
_RETRY_STATUSES = frozenset((0, 429, 503))


@dataclass
class _Active:
    """A batch being worked on: rows not begun, and rows begun whose output is not committed."""

    batch: StoredBatch
    waiting: deque[int]
    flying: set[int] = field(default_factory=set[int])
    stopped: str | None = None
    """The status that the batch ends in, where it ends before its rows."""
    failures: Counter[int] = field(default_factory=Counter[int])
    """By row, how often what answers it has failed."""
    pause: float = 0.0
    not_before: float = 0.0
    turn: int = 0
    """The number of its last turn."""


_OVER = object()


class TenantJobs:
    """Long jobs on batches in threads, a piece at a time: tenants take turns, and each tenant's jobs come in order."""

    def __init__(self) -> None:
        self._jobs: dict[str, deque[tuple[StoredBatch, Iterator[None]]]] = {}
        self._arrived = asyncio.Event()
        self.batches: set[int] = set()
        """Batches that have a job here."""

    def add(self, batch: StoredBatch, pieces: Iterator[None]) -> None:
        """A job, whose next piece is done by each `next`."""
        self.batches.add(batch.seq)
        self._jobs.setdefault(batch.tenant, deque()).append((batch, pieces))
        self._arrived.set()

    async def run(self, ended: Callable[[StoredBatch, Exception | None], Awaitable[None]]) -> None:
        """Until it is cancelled. ended: told of each job that is over, and of what it raised."""
        while True:
            await self._arrived.wait()
            for tenant in list(self._jobs):
                batch, pieces = self._jobs[tenant][0]
                failure: Exception | None = None
                try:
                    over = await asyncio.to_thread(next, pieces, _OVER) is _OVER
                except Exception as error:
                    over, failure = True, error
                if over:
                    self._jobs[tenant].popleft()
                    self.batches.discard(batch.seq)
                    await ended(batch, failure)
                if not self._jobs[tenant]:
                    del self._jobs[tenant]
            if not self._jobs:
                self._arrived.clear()


class BatchWorker:
    """Tenants take turns, and among the rows of one of them its batches. At most `in_flight` calls at once, and none is
    begun while requests wait or no row of the engine is free, so that a client's request finds at most `in_flight` rows
    before it."""

    def __init__(self, state: ServerState, store: BatchStore, app: ASGIApp) -> None:
        self._state, self._store, self._app = state, store, app
        self._active: dict[int, _Active] = {}
        # Bounded, so that rows are not computed on and on while their outputs cannot be kept.
        self._finished_rows: asyncio.Queue[DoneRow] = asyncio.Queue(_UNKEPT)
        self._wake = asyncio.Event()
        self._disconnected = asyncio.Event()
        self._calls: set[asyncio.Task[None]] = set()
        self._turns = itertools.count(1)
        self._jobs = TenantJobs()

    def wake(self) -> None:
        """There is a new batch, or one was cancelled."""
        self._wake.set()

    async def run(self) -> None:
        """Until the server stops; then the calls under way end."""
        background = (asyncio.create_task(self._commit()), asyncio.create_task(self._jobs.run(self._job_ended)))
        try:
            while not self._state.stopping:
                try:
                    await self._look()
                    await self._work()
                except Exception as error:  # a full disk, say: batches wait, everything else goes on
                    if not self._state.outage.covers(error):
                        log.exception("batches stand still, trying again: %s", error)
                    await asyncio.sleep(_TROUBLE_SECONDS)
            await self._drain()
        finally:
            self._disconnected.set()
            for task in (*background, *self._calls):
                task.cancel()
            await asyncio.gather(*background, *self._calls, return_exceptions=True)

    async def _drain(self) -> None:
        """What is under way may end in the grace period; the rest is for the next server."""
        ends = time.monotonic() + self._state.config.grace_seconds
        while self._calls and time.monotonic() < ends:
            await asyncio.wait(self._calls, timeout=_PULSE_SECONDS)
        self._disconnected.set()
        if self._calls:
            await asyncio.wait(self._calls, timeout=_TROUBLE_SECONDS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TROUBLE_SECONDS):
                await self._finished_rows.join()

    # --- batches

    async def _look(self) -> None:
        """Brings every unfinished batch as far as it can go without a call."""
        self._wake.clear()
        for batch in await asyncio.to_thread(self._store.unfinished):
            try:
                await self._advance(batch)
            except Exception as error:
                await self._job_ended(batch, error)

    async def _job_ended(self, batch: StoredBatch, failure: Exception | None) -> None:
        if failure is not None and not isinstance(failure, OSError | sqlite3.OperationalError):
            # This batch's own: trying again would end in the same.
            log.error("batch %s has failed: %s", batch.id, failure, exc_info=failure)
            self._active.pop(batch.seq, None)
            message = "the batch could not be completed because of an error in the server"
            broken = batch_error(None, message, None, "server_error")
            try:
                await asyncio.to_thread(self._store.fail, batch, [broken], UNFINISHED)
                failure = None
            except (OSError, sqlite3.Error) as error:
                failure = error
        if failure is None:
            self._wake.set()
            return
        if not self._state.outage.covers(failure):  # the disk's fault: it is tried again
            log.error("batch %s stands still, trying again: %s", batch.id, failure)
        asyncio.get_running_loop().call_later(_TROUBLE_SECONDS, self._wake.set)

    async def _advance(self, batch: StoredBatch) -> None:
        if batch.seq in self._jobs.batches:
            return
        if batch.status == "validating":
            self._jobs.add(batch, self._validate(batch))
            return
        active = self._active.get(batch.seq)
        if active is None:
            waiting = await asyncio.to_thread(self._store.waiting, batch)
            active = self._active[batch.seq] = _Active(batch, deque(waiting))
        active.batch = batch
        self._settle(active)

    def _validate(self, batch: StoredBatch) -> Iterator[None]:
        """Checks a new batch's lines and enters its rows, a piece at a time; then it starts, or fails with its errors.
        One that is cancelled meanwhile is left."""
        store, errors = self._store, list[dict[str, Any]]()
        limits, max_bytes = self._state.config.batches, self._state.config.limits.body_bytes
        yield from store.forget_rows(batch)  # of a check that was broken off
        try:
            lines = store.content(store.file(batch.input_file, batch.tenant)).open("rb")
        except (StatusError, FileNotFoundError):
            message = "the input file was deleted before it was read"
            store.fail(batch, [batch_error(None, message, "input_file_id", "file_not_found")])
            return
        with lines:
            try:
                for rows in check_lines(lines, batch.endpoint, limits.rows, max_bytes, errors):
                    if not store.enter(batch, [] if errors else rows):
                        return
                    yield
            except StatusError as error:
                errors = [batch_error(None, error.message, "input_file_id", error.code)]
        if errors:
            yield from store.forget_rows(batch)
            store.fail(batch, errors)
        else:
            store.start(batch)

    def _settle(self, active: _Active) -> None:
        """Ends a batch that is done, cancelled or too late, once none of its rows is under way."""
        if active.batch.status == "cancelling":
            active.stopped = "cancelled"
        elif active.waiting and time.time() >= active.batch.expires:
            active.stopped = "expired"
        if active.flying or (active.waiting and active.stopped is None):
            return
        status = active.stopped or "completed"
        del self._active[active.batch.seq]
        writing = self._store.finish(active.batch, status, partial(unfinished_line, status=status))
        self._jobs.add(active.batch, writing)

    # --- rows

    async def _work(self) -> None:
        """Begins rows, of one tenant after the other, until there is something to look at."""
        while not self._wake.is_set() and not self._state.stopping:
            current_time = time.monotonic()
            actives = sorted(self._active.values(), key=lambda active: active.turn)
            ready = [a for a in actives if a.waiting and a.stopped is None and a.not_before <= current_time]
            if not ready:
                await self._pause(min(_PULSE_SECONDS, *(active.pause for active in actives if active.pause), 1.0))
                return
            next_of: dict[str, _Active] = {}
            for active in ready:
                next_of.setdefault(active.batch.tenant, active)
            for active in next_of.values():
                if not await self._room():
                    return
                active.turn = next(self._turns)
                number = active.waiting.popleft()
                active.flying.add(number)
                call = asyncio.create_task(self._answer(active, number))
                self._calls.add(call)
                call.add_done_callback(self._calls.discard)

    async def _room(self) -> bool:
        """Waits until a row may begin; False where there is something to look at first."""
        limits = self._state.config.batches
        looked = time.monotonic()
        while len(self._calls) >= limits.in_flight or not self._state.has_free_rows:
            await self._pause(_POLL_SECONDS)
            if self._wake.is_set() or self._state.stopping or time.monotonic() - looked > _PULSE_SECONDS:
                return False
        await asyncio.sleep(0)  # what was begun must be queued before the next look at the queue
        return True

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    async def _answer(self, active: _Active, number: int) -> None:
        """One row, from its body to the output that waits for its commit."""
        batch, custom_id = active.batch, ""
        try:
            custom_id, body = await asyncio.to_thread(self._store.row, batch, number)
            if await asyncio.to_thread(self._store.is_full, batch.tenant):
                no_room = failed_line(custom_id, "storage_full", _FULL)
                await self._finished_rows.put(DoneRow(batch.seq, number, False, no_room))
                return
            await self._state.guard.refresh()
            caller = self._state.guard.with_rights_of_now(batch.caller)
            reply = await self_call(self._app, batch.endpoint, body.encode(), caller, "batch", self._disconnected)
            output = await asyncio.to_thread(answered_line, custom_id, reply)
            finished_row = DoneRow(batch.seq, number, reply.status == 200, output)
        except (OSError, sqlite3.OperationalError) as error:  # the disk's fault, as often as it takes
            if not self._state.outage.covers(error):
                log.exception("batch %s, line %d: trying again: %s", batch.id, number, error)
            self._put_back(active, number, _RETRY_SECONDS[1])
            return
        except Exception as error:  # perhaps the row's own fault: it is tried again, but not for ever
            active.failures[number] += 1
            if active.failures[number] < MAX_FAILURES:
                log.exception("batch %s, line %d: trying again: %s", batch.id, number, error)
                self._put_back(active, number, _RETRY_SECONDS[1])
                return
            log.exception("batch %s, line %d has failed: %s", batch.id, number, error)
            broken = failed_line(custom_id, "server_error", _BROKEN)
            await self._finished_rows.put(DoneRow(batch.seq, number, False, broken))
            return
        if reply.status in _RETRY_STATUSES:
            self._put_back(active, number, min(max(_RETRY_SECONDS[0], 2 * active.pause), _RETRY_SECONDS[1]))
            return
        active.pause = 0.0
        await self._finished_rows.put(finished_row)

    def _put_back(self, active: _Active, number: int, pause: float) -> None:
        """The row is to be done later; its batch waits so long before the next."""
        active.waiting.appendleft(number)
        active.flying.discard(number)
        active.pause, active.not_before = pause, time.monotonic() + pause
        self._wake.set()

    async def _commit(self) -> None:
        """Commits outputs: one at a time when they come slowly, together when they come faster than the disk."""
        while True:
            finished_rows = [await self._finished_rows.get()]
            while not self._finished_rows.empty():
                finished_rows.append(self._finished_rows.get_nowait())
            while True:
                try:
                    await asyncio.to_thread(self._store.record, finished_rows)
                    break
                except sqlite3.Error as error:
                    if not self._state.outage.covers(error):
                        log.error("batches: %d outputs cannot be kept, trying again: %s", len(finished_rows), error)
                    await asyncio.sleep(1.0)
            for row in finished_rows:
                self._finished_rows.task_done()
                active = self._active.get(row.batch)
                if active is None:  # its batch has failed meanwhile
                    continue
                active.flying.discard(row.number)
                if not active.flying and not active.waiting:
                    self._wake.set()


class Batches:
    """The service behind the routes of batches and files: the store, opened when it is first needed, and its worker."""

    def __init__(self, state: ServerState) -> None:
        self._state, self._directory = state, state.part(StateDirectory)
        self._app: ASGIApp | None = None
        self._store: BatchStore | None = None
        self._worker: BatchWorker | None = None
        self._running: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def running(self, app: ASGIApp) -> AsyncGenerator[None]:
        """Goes on with what an earlier server left; at the end the worker stops within the grace period."""
        self._app = app
        if self._directory.is_needed and self._directory.begin():
            self._open()
        try:
            yield
        finally:
            self._app = None
            if self._running is not None:
                if not self._state.stopping:  # nobody said when to stop, so there is no grace
                    self._running.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await self._running
            if self._store is not None:
                self._store.close()

    @property
    def store(self) -> BatchStore:
        """StatusError 503 where the state directory cannot be had."""
        return self._open()[0]

    def wake(self) -> None:
        self._open()[1].wake()

    def _open(self) -> tuple[BatchStore, BatchWorker]:
        if self._app is None:
            raise StatusError(503, "batches are not running on this server", STATE_BUSY)
        if self._store is None or self._worker is None:
            self._store = BatchStore(self._directory.acquire(), self._state.config.batches)
            self._worker = BatchWorker(self._state, self._store, self._app)
            self._running = asyncio.create_task(self._worker.run())
        return self._store, self._worker
