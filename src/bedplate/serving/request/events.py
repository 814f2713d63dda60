"""Server-sent events: sent no faster than the client reads, ended when the client disconnects."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bedplate.core.errors import need_failure
from bedplate.serving.request.bridge import until_disconnect
from bedplate.serving.schemas.http_errors import ClientGone, ErrorShape, StoppingError, error_object, log_failure
from bedplate.serving.schemas.scope import note_error
from bedplate.serving.schemas.strict_json import dump_json

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
    """Sends events as they come, then `[DONE]` where `done` says so.

    The reply begins with the first event: what fails before it is answered with a status of its own. What fails later
    is an event with the error object (named by `error_name`), and the last one.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[Event],
        *,
        with_terminator: bool = True,
        error_name: str | None = None,
        error_shape: ErrorShape = error_object,
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
        self._failed = partial(note_error, scope)
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
            raise ClientGone from None
        except asyncio.CancelledError:
            if self._started:
                with contextlib.suppress(Exception):
                    stopped = dump_json(self._error_shape(StoppingError("the server stopped"))[1])
                    await self._event(send, stopped, self._error_name)
                    await send(_END)
            raise
        except BaseException as error:
            need_failure(error)
            if not self._started:
                raise
            log_failure(error)
            self._failed(error_object(error)[1]["error"]["code"])
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
