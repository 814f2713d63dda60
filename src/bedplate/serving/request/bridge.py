"""Bridge from engine threads to asyncio: awaits streams without blocking the event loop or adding threads."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from bedplate.core.errors import BusyError
from bedplate.inference.engine.answers import Answers
from bedplate.inference.engine.requests import Request, Result, Step
from bedplate.inference.engine.scheduler import Stream
from bedplate.serving.schemas.http_errors import ClientGone

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
    """(which stream, its new steps, whether it has ended), as they come, until all have ended.

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
    """The finished results, in order. The first error of a stream is raised."""
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
    """Runs `work`; where the client goes away first, cancels it and raises ClientGone."""
    task = asyncio.ensure_future(work)
    disconnect = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((task, disconnect), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        for future in (task, disconnect):
            future.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await asyncio.gather(task, disconnect, return_exceptions=True)


async def _disconnected(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


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
