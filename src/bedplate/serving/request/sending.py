"""A whole reply on its way to a client, which may take its time."""

from __future__ import annotations

from collections.abc import Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send


class Sending(Response):
    """Another response, and what is to be done when it has been taken, or the client has gone."""

    def __init__(self, reply: Response, at_end: Callable[[], None]) -> None:
        self._reply, self._at_end = reply, at_end
        self.status_code, self.background, self.raw_headers = reply.status_code, reply.background, reply.raw_headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._reply(scope, receive, send)
        finally:
            self._at_end()
