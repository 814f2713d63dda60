"""The uvicorn server: it answers probes while models load, drains when told to stop, and ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from bedplate.core.memory import share_heaps
from bedplate.serving.request.server_state import ServerState
from bedplate.serving.schemas.http_errors import StoppingError, error_response
from bedplate.serving.schemas.strict_json import json_response
from bedplate.serving.server.connections import TimedConnection, allow_connections

log = logging.getLogger("bedplate.serving")

CLOSE_SECONDS = 5.0
"""How long engines may take to end at the end. A step that hangs would keep the process for ever."""


class LoadingError(StoppingError):
    """The server is loading its models; like one that stops, it takes no call now."""

    code = "loading"


class Front:
    """The ASGI application before anything is loaded: alive, and not ready."""

    def __init__(self) -> None:
        self.app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.app is not None:
            await self.app(scope, receive, send)
        elif scope["path"] in {"/health", "/ready"}:
            status = 200 if scope["path"] == "/health" else 503
            await json_response({"status": "loading"}, status)(scope, receive, send)
        else:
            await error_response(LoadingError("the server is loading its models; try again soon"))(scope, receive, send)


class Server(uvicorn.Server):
    """Loads beside the loop, then serves what was loaded.

    load: the state, in a context. make: its application, and what runs beside it. The first signal to stop lets no new
    call in, and ends the server when the running ones have ended or `grace` seconds are over; the second ends it at
    once. head_bytes: larger heads are refused by the parser, without the error object; smaller ones by the access
    layer, with it.
    """

    def __init__(
        self,
        load: Callable[[], AbstractContextManager[ServerState]],
        build_app: Callable[[ServerState], tuple[ASGIApp, AbstractAsyncContextManager[None]]],
        on_ready: Callable[[ServerState], object],
        grace: float,
        head_bytes: int,
    ) -> None:
        self._front = Front()
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
        self._loader = _Loader(load)
        self._state: ServerState | None = None
        self._stack = contextlib.AsyncExitStack()
        self._opening: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._stop_at: float | None = None

    def serve_until_stopped(self, listener: socket.socket) -> bool:
        """Runs in this thread. False where a thread is left: it was stopped before all was loaded, and what is loaded
        is dropped once it is there; or an engine's step hangs, or a request is still worked on for a client that has
        been told. Raises what loading raised."""
        allow_connections()
        share_heaps()
        try:
            with _returning_on_sigterm():
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
            self._state = state = await self._loader.load()
            app, services = self._build_app(state)
            await self._stack.enter_async_context(services)
            state.stopping = self._stop_at is not None
            self._front.app = app
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
    """A context entered in a thread of its own, which nobody need wait for."""

    def __init__(self, open_state: Callable[[], AbstractContextManager[ServerState]]) -> None:
        self._open_state = open_state
        self._context: AbstractContextManager[ServerState] | None = None
        self._lock = threading.Lock()
        self._dropped = False

    async def load(self) -> ServerState:
        loop = asyncio.get_running_loop()
        state_future: asyncio.Future[ServerState] = loop.create_future()

        def resolve(set_: Callable[[Any], None], value: Any) -> None:
            if not state_future.done():
                set_(value)

        def run() -> None:
            context = self._open_state()
            try:
                state = context.__enter__()
            except BaseException as error:
                with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
                    loop.call_soon_threadsafe(resolve, state_future.set_exception, error)
                return
            with self._lock:
                self._context = context
                dropped = self._dropped
            if dropped:
                context.__exit__(None, None, None)
                return
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(resolve, state_future.set_result, state)

        threading.Thread(target=run, name="bedplate-loading", daemon=True).start()
        return await state_future

    def close(self) -> bool:
        """Leaves the context; False where it was not entered yet, or cannot be left because a step hangs."""
        with self._lock:
            self._dropped = True
            context = self._context
        if context is None:
            return False
        exited = threading.Event()

        def leave() -> None:
            try:
                context.__exit__(None, None, None)
            finally:
                exited.set()

        threading.Thread(target=leave, name="bedplate-closing", daemon=True).start()
        if not exited.wait(CLOSE_SECONDS):
            log.error("a step has not ended within %g seconds; the server ends without it", CLOSE_SECONDS)
            return False
        return True


@contextlib.contextmanager
def _returning_on_sigterm() -> Generator[None]:
    """uvicorn raises the signals it took again when it is done; of SIGTERM nothing more is wanted then."""
    try:
        before = signal.signal(signal.SIGTERM, lambda *_: None)
    except ValueError:  # not the main thread: signals are not this server's to take
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
