"""Server-sent events: a reply in chunks, sent no faster than the client reads, ended when the client goes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bedplate.serving.bridge import until_disconnect
from bedplate.serving.errors import ClientGone, StoppingError, error_object, log_failure
from bedplate.serving.strict_json import dump_json

# A client that takes nothing for so long is given up.
STALL_SECONDS = 60.0
_END = {"type": "http.response.body", "body": b"", "more_body": False}
_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class EventStream(Response):
    """Sends each object of `chunks` as one event, then `[DONE]`.

    The reply begins with the first chunk: what fails before it is answered with a status of its own. What fails later
    is an event with the error object, and the last one. `close` is called when the reply is over, however it ended.
    """

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncGenerator[dict[str, Any]], close: Callable[[], None]) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._chunks, self._close = chunks, close
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_disconnect(receive, self._pump(send))
        finally:
            self._close()
            await self._chunks.aclose()

    async def _pump(self, send: Send) -> None:
        try:
            async for chunk in self._chunks:
                await self._send(send, dump_json(chunk))
            await self._send(send, b"[DONE]")
        except TimeoutError:
            raise ClientGone from None
        except asyncio.CancelledError:
            if self._started:
                with contextlib.suppress(Exception):
                    await self._event(send, dump_json(error_object(StoppingError("the server stopped"))[1]))
                    await send(_END)
            raise
        except Exception as error:
            if not self._started:
                raise
            log_failure(error)
            await self._send(send, dump_json(error_object(error)[1]))
        await send(_END)

    async def _send(self, send: Send, content: bytes) -> None:
        async with asyncio.timeout(STALL_SECONDS):
            if not self._started:
                self._started = True
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._event(send, content)

    async def _event(self, send: Send, content: bytes) -> None:
        await send({"type": "http.response.body", "body": b"data: " + content + b"\n\n", "more_body": True})
