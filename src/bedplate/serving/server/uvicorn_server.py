"""Runs uvicorn: loads models beside the event loop, drains running calls at the end, and bounds slow connections."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import FrameType
from typing import Any, TypeVar, cast

import h11
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from bedplate.core.memory import share_heaps
from bedplate.serving.request.preparation import in_daemon_thread
from bedplate.serving.request.server_state import ServerState
from bedplate.serving.schemas.http_errors import LoadingError, error_response
from bedplate.serving.schemas.strict_json import json_response

HEAD_SECONDS = 20.0
"""How long a client may take to send a request's head."""
UNREAD_SECONDS = 10.0
"""How long a client may go on sending a body that was answered unread; closed at once, it would not see the answer."""
TAKE_SECONDS = 60.0
"""A client that reads nothing of a waiting reply for this long is disconnected."""
_INCOMPLETE_BYTES = 64 * 1024
"""Largest part of a head, or of a chunk's line, that is read before it is whole, unless the server says otherwise."""
MAX_CONNECTIONS = 4096
"""Most connections at once, where the process may open that many files."""
OTHER_FILES = 512
"""Files that the process may have open besides connections."""
FEW_CHUNKS, CHUNK_BYTES = 1000, 64
"""A body in more than FEW_CHUNKS chunks must have CHUNK_BYTES per chunk on average: each chunk costs time."""


def allow_connections() -> None:
    """Lets this process open as many files as the connections and the rest may need, as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    file_limit = MAX_CONNECTIONS + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < file_limit:
        file_limit = file_limit if hard == resource.RLIM_INFINITY else min(file_limit, hard)
        with contextlib.suppress(OSError, ValueError):  # then there are fewer connections
            resource.setrlimit(resource.RLIMIT_NOFILE, (file_limit, hard))


def max_connections() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else max(1, min(MAX_CONNECTIONS, soft - OTHER_FILES))


class TimedConnection(H11Protocol):
    """uvicorn's HTTP/1.1 connection with time limits for clients that never finish a request or never read a reply."""

    _head: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _untaken: asyncio.TimerHandle | None = None
    _since = 0.0
    """When it was opened, or last answered (time.monotonic)."""

    def __init__(self, *arguments: Any, **kwargs: Any) -> None:
        super().__init__(*arguments, **kwargs)
        self.conn = _ChunkLimitedConnection(h11.SERVER, self.config.h11_max_incomplete_event_size or _INCOMPLETE_BYTES)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._since = time.monotonic()
        self._head = self.loop.call_later(HEAD_SECONDS, self.transport.close)
        if len(self.connections) > max_connections():
            self._make_room()

    def _make_room(self) -> None:
        """Closes the connections that have been idle longest, a sixteenth of all at once because the search takes time.
        Where all others are being answered, this one is closed."""
        peers = cast("set[TimedConnection]", self.connections - {self})
        waiting = sorted((peer for peer in peers if peer.waits), key=lambda peer: peer._since)
        for connection in waiting[: max(1, len(peers) // 16)] or [self]:
            self.connections.discard(connection)
            connection.transport.abort()

    @property
    def waits(self) -> bool:
        """Whether the server waits for the client: no whole request has arrived since the last reply."""
        cycle: Any = self.cycle
        return cycle is None or cycle.response_complete or self.conn.their_state is h11.SEND_BODY

    def handle_events(self) -> None:
        super().handle_events()
        cycle: Any = self.cycle  # None before the first request
        if cycle is not None and cycle.transport is self.transport:
            cycle.transport = _ExchangeTransport(self.transport, self.conn)

    def data_received(self, data: bytes) -> None:
        if self.conn.our_state is h11.CLOSED:  # it was answered, and this was the last answer
            self._unset_keepalive_if_required()
            return
        super().data_received(data)
        waits = self.conn.their_state is h11.IDLE
        if waits and self._head is None:
            self._head = self.loop.call_later(HEAD_SECONDS, self.transport.close)
        elif not waits:
            self._head = _stopped(self._head)
        if self.conn.their_state is not h11.SEND_BODY:
            self._unread = _stopped(self._unread)

    def on_response_complete(self) -> None:
        self._since = time.monotonic()
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY and self._unread is None:
            self._unread = self.loop.call_later(UNREAD_SECONDS, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        """Answers bytes that are not HTTP. A request that has begun already is not answered any more."""
        cycle: Any = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:  # its answer has begun
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch(self.transport.get_write_buffer_size())

    def _watch(self, before: int) -> None:
        def look() -> None:
            buffered = self.transport.get_write_buffer_size()
            if buffered >= before:
                self.transport.abort()  # closing would wait for what nobody takes
            else:
                self._watch(buffered)

        self._untaken = self.loop.call_later(TAKE_SECONDS, look)

    def resume_writing(self) -> None:
        self._untaken = _stopped(self._untaken)
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head, self._unread, self._untaken = map(_stopped, (self._head, self._unread, self._untaken))
        super().connection_lost(exc)


class _ChunkLimitedConnection(h11.Connection):
    """Refuses bodies that come in too many small chunks."""

    _chunks = _bytes = 0

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._bytes += len(event.data)
            if self._chunks > FEW_CHUNKS and self._bytes < CHUNK_BYTES * self._chunks:
                raise h11.RemoteProtocolError("the body comes in too many small chunks")
        elif isinstance(event, h11.Request):
            self._chunks = self._bytes = 0
        return event


class _ExchangeTransport(asyncio.Transport):
    """The transport of one exchange, whose `close` leaves the reading side open while the client still sends."""

    def __init__(self, transport: asyncio.Transport, conn: h11.Connection) -> None:
        super().__init__()
        self._transport, self._conn = transport, conn

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._transport.write(data)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        """Closes the connection; while the client still sends, only the writing side: timers close the other."""
        answered = self._conn.our_state is h11.CLOSED and self._conn.their_state is h11.SEND_BODY
        if answered and self._transport.can_write_eof() and not self._transport.is_closing():
            with contextlib.suppress(OSError):  # the client has gone
                self._transport.write_eof()
                return
        self._transport.close()


def _stopped(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


log = logging.getLogger("bedplate.serving")

T = TypeVar("T")

CLOSE_SECONDS = 5.0
"""How long engines may take to close at shutdown; a step that hangs would keep the process for ever."""


LoadBases = Callable[[], Callable[[], None]]
"""Loads bases, in any thread; what it returns registers them, in the event loop's."""
REFUSED_WHILE_LOADING = ("/admin/", "/v1/feedback")
"""Beginnings of the paths that are refused until every model is loaded."""


class LoadingApp:
    """The ASGI application while models load: alive, and not ready. `app` takes the requests as soon as it is there;
    those that need to know every model (`REFUSED_WHILE_LOADING`) once `loaded`."""

    def __init__(self) -> None:
        self.app: ASGIApp | None = None
        self.loaded = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.app is not None and (self.loaded or not scope["path"].startswith(REFUSED_WHILE_LOADING)):
            await self.app(scope, receive, send)
        elif scope["path"] in {"/health", "/ready"}:
            status = 200 if scope["path"] == "/health" else 503
            await json_response({"status": "loading"}, status)(scope, receive, send)
        else:
            await error_response(LoadingError("the server is loading its models; try again soon"))(scope, receive, send)


class Server(uvicorn.Server):
    """Loads models in a thread beside the event loop, and serves what is loaded.

    1. `opening` gives the state with the skins that need no base. If there are any they are served from now on.
    2. The bases are loaded and registered with their skins. The server is ready: `on_ready` is called.
    3. The first signal to stop lets no new call in, and ends the server when the running ones have ended or `grace`
       seconds are over; the second ends it at once.

    build_app: makes the application, and the context of what runs beside it. head_bytes: larger heads are refused by
    the parser, without the error object; smaller ones by the access layer, with it.
    """

    def __init__(
        self,
        opening: AbstractContextManager[tuple[ServerState, LoadBases]],
        build_app: Callable[[ServerState], tuple[ASGIApp, AbstractAsyncContextManager[None]]],
        on_ready: Callable[[ServerState], object],
        grace: float,
        head_bytes: int,
    ) -> None:
        self._front = LoadingApp()
        config = uvicorn.Config(
            self._front,
            http=TimedConnection,
            ws="none",  # its routes take none; a library that is there by chance would answer beside log and limits
            interface="asgi3",
            h11_max_incomplete_event_size=head_bytes,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
        )
        super().__init__(config)
        self._build_app, self._on_ready, self._grace = build_app, on_ready, grace
        self._open_state, self._loader = opening.__enter__, _Loader(opening)
        self._state: ServerState | None = None
        self._stack = contextlib.AsyncExitStack()
        self._opening: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._stop_at: float | None = None
        self._announced = False

    def serve_until_stopped(self, listener: socket.socket) -> bool:
        """Runs in this thread. False where a thread is left: it was stopped before all was loaded, and what is loaded
        is dropped once it is there; or an engine's step hangs, or a request is still worked on for a client that has
        been told. Raises what loading raised."""
        allow_connections()
        share_heaps()
        try:
            with _returning_on_sigterm(), _short_switch_interval():
                self.run(sockets=[listener])
        finally:
            loaded = self._loader.close()
        if self._failure is not None:
            raise self._failure
        return loaded and (self._state is None or not self._state.preparation.under_way)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._opening = asyncio.create_task(self._open())

    async def _open(self) -> None:
        try:
            state, load_bases = await self._loader.run(self._open_state)
            self._state = state
            app, services = self._build_app(state)
            if not state.registry.models:
                (await self._loader.run(load_bases))()
            await self._stack.enter_async_context(services)
            self._front.app = app
            if state.registry.loading:  # what is served so far needs no base
                log.info("serving what needs no base while the bases load: %s", ", ".join(state.registry.models))
                (await self._loader.run(load_bases))()
            self._front.loaded = True
            await self._loader.run(state.compare_names)
            self._on_ready(state)
        except Exception as error:
            self._failure = error
            self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        already_stopping = self._stop_at is not None
        super().handle_exit(sig, frame)
        if already_stopping or self._state is None:
            self.force_exit = already_stopping
            return
        self._stop_at = time.monotonic() + self._grace
        self._state.stopping = True
        self.should_exit = False  # not before the running calls have ended: until then the probes are told

    async def on_tick(self, counter: int) -> bool:
        if await super().on_tick(counter):
            return True
        if self._stop_at is not None and not self._announced:
            self._announced = True
            count = len(self.server_state.tasks)
            calls = f": {count} {'call has' if count == 1 else 'calls have'} {self._grace:g} s to end; a second signal"
            log.info("stopping%s", f"{calls} stops at once" if count else "")
        return self._stop_at is not None and (not self.server_state.tasks or time.monotonic() >= self._stop_at)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._opening is not None:
            self._opening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._opening
        # What runs now has had its grace, or a second signal came: it is told, and connections close.
        for task in self.server_state.tasks:
            task.cancel()
        self.config.timeout_graceful_shutdown = 1
        await super().shutdown(sockets)
        await self._stack.aclose()


class _Loader:
    """Enters a context and runs work on it, each in a daemon thread that shutdown does not wait for."""

    def __init__(self, context: AbstractContextManager[object]) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._works = self._entered = self._dropped = False

    async def run(self, work: Callable[[], T]) -> T:
        """Returns what `work` returns; the first `work` enters the context."""
        self._works = True
        return await asyncio.wrap_future(in_daemon_thread(lambda: self._work_on(work), "bedplate-loading"))

    def _work_on(self, work: Callable[[], T]) -> T:
        try:
            result = work()
            self._entered = True
            return result
        finally:
            with self._lock:
                self._works, leave = False, self._entered and self._dropped
            if leave:
                self._context.__exit__(None, None, None)

    def close(self) -> bool:
        """Leaves the context; False where it is still worked on, or cannot be left because a step hangs."""
        with self._lock:
            self._dropped = True
            if self._works or not self._entered:
                return False
        try:
            in_daemon_thread(lambda: self._context.__exit__(None, None, None), "bedplate-closing").result(CLOSE_SECONDS)
        except TimeoutError:
            log.error("a step has not ended within %g seconds; the server ends without it", CLOSE_SECONDS)
            return False
        except Exception as error:  # what the server ends with is told all the same
            log.exception("not everything could be closed: %s", error)
        return True


SWITCH_SECONDS = 0.0005
"""How long a thread may hold the GIL while another waits for it (sys.setswitchinterval). An engine's step releases it
several times: beside a thread that computes in Python it took 12 to 34 ms at Python's default of 5 ms, and 2 to 4 at
this (2-core Xeon, Python 3.11); alone 1."""


@contextlib.contextmanager
def _short_switch_interval() -> Generator[None]:
    """Shortens the time that threads of this process wait for the GIL."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(min(interval, SWITCH_SECONDS))
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


@contextlib.contextmanager
def _returning_on_sigterm() -> Generator[None]:
    """Ignores the SIGTERM that uvicorn raises again when it is done, so that the process ends with its own status."""
    try:
        before = signal.signal(signal.SIGTERM, lambda *_: None)
    except ValueError:  # not the main thread: signals are not this server's to take
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
