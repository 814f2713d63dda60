"""Checks the rows of batches and answers them in the background; clients' requests always go first."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import sqlite3
import time
import uuid
from collections import Counter, deque
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp

from bedplate.core.errors import RequestError
from bedplate.serving.durable.batch_store import UNFINISHED, BatchStore, DoneRow, StoredBatch
from bedplate.serving.durable.state_directory import STATE_BUSY, StateDirectory
from bedplate.serving.request.server_state import SelfReply, ServerState, self_call
from bedplate.serving.schemas.http_errors import StatusError
from bedplate.serving.schemas.strict_json import parse_json

MAX_ERRORS = 100
MAX_ID = 512
_FIELDS = ("custom_id", "method", "url", "body")


@dataclass
class Checked:
    """rows: (line number from 1, custom_id, body as JSON). errors: as the batch object lists them."""

    rows: list[tuple[int, str, str]] = field(default_factory=list[tuple[int, str, str]])
    errors: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


def check_lines(lines: Iterable[bytes], endpoint: str, most_rows: int, most_bytes: int) -> Checked:
    """Every line of the file. After MAX_ERRORS errors the rest is only counted, and the last error says how many."""
    checked, line_numbers, extra_errors = Checked(), {}, 0
    for number, content in enumerate(lines, start=1):
        line = content.removeprefix(b"\xef\xbb\xbf") if number == 1 else content  # some editors mark the byte order
        if not line.strip():
            continue
        if len(checked.rows) == most_rows:
            checked.errors.append(_error(number, f"a batch has at most {most_rows:,} rows", None, "too_many_rows"))
            break
        try:
            custom_id, body = _row(line, endpoint, most_bytes)
            if custom_id in line_numbers:
                message = f"the custom_id {custom_id[:80]!r} is that of line {line_numbers[custom_id]} too"
                raise RequestError(message, param="custom_id", code="duplicate_custom_id")
        except RequestError as error:
            if len(checked.errors) < MAX_ERRORS:
                checked.errors.append(_error(number, error.message, error.param, error.code))
            else:
                extra_errors += 1
            continue
        line_numbers[custom_id] = number
        checked.rows.append((number, custom_id, json.dumps(body, ensure_ascii=True, allow_nan=False)))
    if extra_errors:
        checked.errors.append(_error(None, f"{extra_errors:,} more lines have errors", None, "more_errors"))
    if not checked.rows and not checked.errors:
        checked.errors.append(_error(None, "the file has no rows", None, "empty_file"))
    return checked


def _row(line: bytes, endpoint: str, most_bytes: int) -> tuple[str, dict[str, Any]]:
    if len(line) > most_bytes:
        raise RequestError(f"the line has more than {most_bytes:,} bytes", code="line_too_large")
    row = parse_json(line)
    if not isinstance(row, dict):
        raise RequestError("each line must be a JSON object", code="invalid_json")
    for name in _FIELDS:
        if name not in row:
            raise RequestError(f"{name} is missing", param=name, code="missing_required_parameter")
    unknown = next((name for name in row if name not in _FIELDS), None)
    if unknown is not None:
        message = f"unknown field {unknown[:80]!r}; the fields are {', '.join(_FIELDS)}"
        raise RequestError(message, param=unknown[:80], code="unknown_parameter")
    custom_id, body = row["custom_id"], row["body"]
    if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= MAX_ID:
        raise RequestError(f"custom_id must be a text of 1 to {MAX_ID} characters", param="custom_id")
    if row["method"] != "POST":
        raise RequestError("method must be POST", param="method")
    if row["url"] != endpoint:
        raise RequestError(f"url must be the batch's endpoint, {endpoint}", param="url", code="mismatched_endpoint")
    if not isinstance(body, dict):
        raise RequestError("body must be a JSON object", param="body")
    if not isinstance(body.get("model"), str):
        raise RequestError("body.model must name a model", param="body.model", code="missing_required_parameter")
    if body.get("stream"):
        raise RequestError("body.stream: a batch's replies are whole; leave it out", param="body.stream")
    return custom_id, body


def _error(line: int | None, message: str, param: str | None, code: str) -> dict[str, Any]:
    return {"code": code, "line": line, "message": message, "param": param}


log = logging.getLogger("bedplate.serving")

_PULSE_SECONDS = 0.25
_POLL_SECONDS = 0.005
_RETRY_SECONDS = (0.05, 5.0)
_UNKEPT = 64
_TROUBLE_SECONDS = 1.0
MOST_FAILURES = 3
"""How often a row is tried whose answering raises."""
_FULL = "this row was not done: your files and batches take all the space they may; delete some"
_NO_ROOM = {"code": "storage_full", "message": _FULL}
_BROKEN = {"code": "server_error", "message": "this row could not be answered, because of an error in the server"}
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

    def wake(self) -> None:
        """There is a new batch, or one was cancelled."""
        self._wake.set()

    async def run(self) -> None:
        """Until the server stops; then the calls under way end."""
        committing = asyncio.create_task(self._commit())
        try:
            while not self._state.stopping:
                try:
                    await self._look()
                    await self._work()
                except Exception as error:  # a full disk, say: batches wait, everything else goes on
                    log.exception("batches stand still, trying again: %s", error)
                    await asyncio.sleep(_TROUBLE_SECONDS)
            await self._drain()
        finally:
            self._disconnected.set()
            for task in (committing, *self._calls):
                task.cancel()
            await asyncio.gather(committing, *self._calls, return_exceptions=True)

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
        trouble = False
        for batch in await asyncio.to_thread(self._store.unfinished):
            try:
                await self._advance(batch)
            except (OSError, sqlite3.OperationalError) as error:  # the disk's fault: it is tried again
                log.error("batch %s stands still, trying again: %s", batch.id, error)
                trouble = True
            except Exception as error:  # this batch's own: trying again would end in the same
                log.exception("batch %s has failed: %s", batch.id, error)
                self._active.pop(batch.seq, None)
                message = "the batch could not be completed because of an error in the server"
                broken = _error(None, message, None, "server_error")
                await asyncio.to_thread(self._store.fail, batch, [broken], UNFINISHED)
        if trouble:
            await asyncio.sleep(_TROUBLE_SECONDS)
            self._wake.set()

    async def _advance(self, batch: StoredBatch) -> None:
        active = self._active.get(batch.seq)
        if active is not None:
            active.batch = batch
        elif batch.status == "validating":
            await self._validate(batch)
        else:
            waiting = await asyncio.to_thread(self._store.waiting, batch)
            self._active[batch.seq] = active = _Active(batch, deque(waiting))
        if active is not None:
            await self._settle(active)

    async def _validate(self, batch: StoredBatch) -> None:
        limits, most_bytes = self._state.config.batches, self._state.config.limits.body_bytes

        def check() -> None:
            try:
                path = self._store.content(self._store.file(batch.input_file, batch.tenant))
                with path.open("rb") as lines:
                    checked = check_lines(lines, batch.endpoint, limits.rows, most_bytes)
            except (StatusError, OSError):
                message = "the input file was deleted before it was read"
                self._store.fail(batch, [_error(None, message, "input_file_id", "file_not_found")])
                return
            if checked.errors:
                self._store.fail(batch, checked.errors)
                return
            try:
                self._store.start(batch, checked.rows)
            except StatusError as error:
                self._store.fail(batch, [_error(None, error.message, "input_file_id", error.code)])

        await asyncio.to_thread(check)
        self._wake.set()

    async def _settle(self, active: _Active) -> None:
        """Ends a batch that is done, cancelled or too late, once none of its rows is under way."""
        if active.batch.status == "cancelling":
            active.stopped = "cancelled"
        elif active.waiting and time.time() >= active.batch.expires:
            active.stopped = "expired"
        if active.flying or (active.waiting and active.stopped is None):
            return
        status = active.stopped or "completed"
        del self._active[active.batch.seq]
        await asyncio.to_thread(self._store.finish, active.batch, status, lambda id_: _unfinished_line(id_, status))

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
                await self._finished_rows.put(DoneRow(batch.seq, number, False, _line(custom_id, error=_NO_ROOM)))
                return
            caller = self._state.guard.with_rights_of_now(batch.caller)
            reply = await self_call(self._app, batch.endpoint, body.encode(), caller, "batch", self._disconnected)
            finished_row = DoneRow(batch.seq, number, reply.status == 200, _answered_line(custom_id, reply))
        except (OSError, sqlite3.OperationalError) as error:  # the disk's fault, as often as it takes
            log.exception("batch %s, line %d: trying again: %s", batch.id, number, error)
            self._put_back(active, number, _RETRY_SECONDS[1])
            return
        except Exception as error:  # perhaps the row's own fault: it is tried again, but not for ever
            active.failures[number] += 1
            if active.failures[number] < MOST_FAILURES:
                log.exception("batch %s, line %d: trying again: %s", batch.id, number, error)
                self._put_back(active, number, _RETRY_SECONDS[1])
                return
            log.exception("batch %s, line %d has failed: %s", batch.id, number, error)
            await self._finished_rows.put(DoneRow(batch.seq, number, False, _line(custom_id, error=_BROKEN)))
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


def _line(custom_id: str, **outcome: Any) -> str:
    """A line of the output or error file, with the response or the error of a row."""
    line = {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": custom_id, "response": None, "error": None, **outcome}
    return json.dumps(line, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def _answered_line(custom_id: str, reply: SelfReply) -> str:
    content: Any = json.loads(reply.content) if reply.content else None
    response = {"status_code": reply.status, "request_id": f"req_{uuid.uuid4().hex}", "body": content}
    return _line(custom_id, response=response)


def _unfinished_line(custom_id: str, status: str) -> str:
    why = "its time was over" if status == "expired" else "the batch was cancelled"
    return _line(custom_id, error={"code": f"batch_{status}", "message": f"this row was not done: {why}"})


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
        """Tells the worker that something has changed."""
        self._open()[1].wake()

    def _open(self) -> tuple[BatchStore, BatchWorker]:
        if self._app is None:
            raise StatusError(503, "batches are not running on this server", STATE_BUSY)
        if self._store is None or self._worker is None:
            self._store = BatchStore(self._directory.acquire(), self._state.config.batches)
            self._worker = BatchWorker(self._state, self._store, self._app)
            self._running = asyncio.create_task(self._worker.run())
        return self._store, self._worker
