"""Calls that the server makes to itself (batches, shadows): the same application and routes, without a socket."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message

from bedplate.serving.callers.caller_guard import Caller
from bedplate.serving.schemas.scope import CALLER, ORIGIN


class SilentObserver:
    """The origin of calls whose answers no client gets; nothing is kept of them."""


@dataclass(frozen=True)
class SelfReply:
    """What the application answered; status 0 where the call was given up before it did."""

    status: int
    content: bytes = field(repr=False)


async def self_call(
    app: ASGIApp, path: str, content: bytes, caller: Caller, origin: object, disconnected: asyncio.Event
) -> SelfReply:
    """POSTs JSON to a route in the caller's name. When `disconnected` is set the call ends as if its client had left.

    `origin` tells observers who is asking (`FinishedCall.origin`); its name stands for the client in the access log.
    """
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())],
        "client": (str(origin), 0),
        "server": ("inside", 0),
        CALLER: caller,
        ORIGIN: origin,
    }
    status, received, sent = 0, bytearray(), False

    async def receive() -> Message:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": content, "more_body": False}
        await disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        elif message["type"] == "http.response.body":
            received.extend(message.get("body", b""))

    await app(scope, receive, send)
    task = asyncio.current_task()
    if task is not None and task.cancelling():  # the access log answers a cancelled request, and so ends the cancelling
        raise asyncio.CancelledError
    return SelfReply(status, bytes(received))
