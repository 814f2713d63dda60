"""Awaits engine streams in asyncio, without blocking the event loop or adding threads, and sends server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bedplate.core.errors import BusyError, need_failure
from bedplate.inference.engine.answers import Answers
from bedplate.inference.engine.requests import Request, Result, Step
from bedplate.inference.engine.scheduler import Stream
from bedplate.serving.schemas import http_errors
from bedplate.serving.schemas.strict_json import dump_json

# How often a wait looks whether the engine's thread still lives.
PULSE_SECONDS = 2.0

T = TypeVar("T")


def submit_all(answerer: Answers, requests: Sequence[Request]) -> list[Stream]:
    """Queues requests, all or none: where one is refused, those before it are cancelled."""
    streams: list[Stream] = []
    try:
        for request in requests:
            streams.append(answerer.submit(request))
    except BaseException as error:
        cancel_all(streams)
        if isinstance(error, BusyError):
            raise BusyError("the server's queue is full; try again in a moment") from error
        raise
    return streams


async def arrivals(answerer: Answers, streams: Sequence[Stream]) -> AsyncGenerator[tuple[int, list[Step], bool]]:
    """Yields (index of the stream, its new steps, whether it has ended) as steps arrive, until all streams have ended.

    The first error of a stream is raised. What a slow consumer has not taken yet waits in the stream: at most a
    context's length of tokens.
    """
    wake = _Wake()
    for stream in streams:
        stream.listen(wake.ring)
    running = set(range(len(streams)))
    while running:
        await wake.wait(answerer)
        for index in sorted(running):
            steps, ended = streams[index].drain()
            if ended:
                running.discard(index)
                streams[index].result(0)  # raises what the stream failed with
            if steps or ended:
                yield index, steps, ended


async def results(answerer: Answers, streams: Sequence[Stream]) -> list[Result]:
    """Waits for all streams and returns their results in order. The first error of a stream is raised."""
    wake = _Wake()
    for stream in streams:
        stream.listen(lambda stream=stream: wake.ring() if stream.finished else None)
    while not all(stream.finished for stream in streams):
        await wake.wait(answerer)
        for stream in streams:
            if stream.finished:
                stream.result(0)
    return [stream.result(0) for stream in streams]


async def until_disconnect(receive: Callable[[], Awaitable[Any]], work: Coroutine[Any, Any, T]) -> T:
    """Runs `work`; where the client goes away first, cancels it and raises ClientGone.

    The work stays in its task, as under `asyncio.timeout`: to go over to another and back takes several rounds of the
    event loop, each of which is as long as what all other calls do in it.
    """
    task, gone = asyncio.current_task(), False
    assert task is not None
    before = task.cancelling()

    async def watch() -> None:
        nonlocal gone
        with contextlib.suppress(Exception):
            while (await receive())["type"] != "http.disconnect":
                pass
        gone = True
        task.cancel()

    watching = asyncio.ensure_future(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if gone and task.cancelling() == before + 1:
            raise http_errors.ClientGone from None
        raise
    finally:
        watching.cancel()
        if gone:
            task.uncancel()


class _Wake:
    """An event that the engine's thread may set. Rings while one is on its way are one."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._pending = False

    def ring(self) -> None:
        if self._pending:
            return
        self._pending = True
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self, answerer: Answers) -> None:
        """Until the next ring. RuntimeError when the engine's thread has died."""
        while True:
            try:
                async with asyncio.timeout(PULSE_SECONDS):
                    await self._event.wait()
            except TimeoutError:
                if not answerer.alive:
                    raise RuntimeError("the engine's thread has ended") from None
                continue
            self._event.clear()
            # From here on a new step rings again; what came before is taken by the caller's next look.
            self._pending = False
            return


def cancel_all(streams: Sequence[Stream]) -> None:
    """Ends what still runs: whoever submitted streams calls this when the reply is over, however it ended."""
    for stream in streams:
        if not stream.finished:
            stream.cancel()


# A client that takes nothing for so long is given up.
STALL_SECONDS = 60.0
_END = {"type": "http.response.body", "body": b"", "more_body": False}
_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


@dataclass(frozen=True)
class Event:
    """One server-sent event; `name` goes into its event line where the API has one."""

    data: dict[str, Any]
    name: str | None = None


class EventStream(Response):
    """Sends events as they come, then `[DONE]` if `with_terminator`.

    The reply starts with the first event, so that an error before it gets its own status. A later error becomes the
    last event: the error object, named `error_name`.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[Event],
        *,
        with_terminator: bool = True,
        error_name: str | None = None,
        error_shape: http_errors.ErrorShape = http_errors.error_object,
    ) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._events, self._with_terminator = events, with_terminator
        self._error_name, self._error_shape = error_name, error_shape
        self._close: Callable[[], None] = lambda: None
        self._started = False
        self._failed: Callable[[str], None] = lambda _: None

    def at_end(self, close: Callable[[], None]) -> None:
        """`close` is called when the reply is over, however it ended."""
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._failed = partial(http_errors.note_error, scope)
        try:
            await until_disconnect(receive, self._pump(send))
        finally:
            self._close()
            await self._events.aclose()

    async def _pump(self, send: Send) -> None:
        try:
            async for event in self._events:
                await self._send(send, dump_json(event.data), event.name)
            if self._with_terminator:
                await self._send(send, b"[DONE]")
        except TimeoutError:
            raise http_errors.ClientGone from None
        except asyncio.CancelledError:
            if self._started:
                with contextlib.suppress(Exception):
                    stopped = dump_json(self._error_shape(http_errors.StoppingError("the server stopped"))[1])
                    await self._event(send, stopped, self._error_name)
                    await send(_END)
            raise
        except BaseException as error:
            need_failure(error)
            if not self._started:
                raise
            http_errors.log_failure(error)
            self._failed(http_errors.error_object(error)[1]["error"]["code"])
            await self._send(send, dump_json(self._error_shape(error)[1]), self._error_name)
        await send(_END)

    async def _send(self, send: Send, content: bytes, name: str | None = None) -> None:
        async with asyncio.timeout(STALL_SECONDS):
            if not self._started:
                self._started = True
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._event(send, content, name)

    async def _event(self, send: Send, content: bytes, name: str | None) -> None:
        head = b"" if name is None else b"event: " + name.encode() + b"\n"
        await send({"type": "http.response.body", "body": head + b"data: " + content + b"\n\n", "more_body": True})
