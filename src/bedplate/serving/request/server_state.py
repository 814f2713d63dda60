"""`ServerState`: what the routes of one server share. Further parts are added to it and looked up by class."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message

from bedplate.serving.callers.caller_guard import Caller, CallerGuard
from bedplate.serving.models.registry import Lease, ModelRequest, Registry
from bedplate.serving.models.served import Answer, PlanResult, Served
from bedplate.serving.request.preparation import Door, Pacing, Preparation
from bedplate.serving.schemas.http_errors import CALLER, ORIGIN, DiskOutage
from bedplate.serving.schemas.request_fields import RequestFields
from bedplate.serving.settings.server_config import Routed, ServerConfig


@dataclass(frozen=True)
class FinishedCall:
    """A call that was answered. `request`: the request as it was read; cost_usd: None where no price is configured;
    origin: what a call that the server made to itself was made for, None for a client's; routed: how it came to its
    version, where its name was a route's; size: bytes of its body."""

    id: str
    endpoint: str
    caller: Caller
    served: Served
    request: RequestFields
    results: Sequence[PlanResult]
    answers: Sequence[Answer]
    seconds: float
    cost_usd: float | None
    origin: object = None
    routed: Routed | None = None
    size: int = 0


@dataclass(frozen=True)
class Exchange:
    """One request that is over. path: as it was sent, percent-encoded. route: the template that took it, "" none.
    status: 499 for a client that left. began: seconds since 1970. facts: what the route said of it."""

    id: str
    client: str
    method: str
    path: str
    route: str
    status: int
    began: float
    seconds: float
    traceparent: str | None
    facts: Mapping[str, Any]
    origin: object = None
    """What a call that the server made to itself was made for; None for a client's request."""


@dataclass(frozen=True)
class UnansweredCall:
    """What was computed for a call whose client left, or whose time was over. cost_usd: None without a price."""

    model: str
    caller: Caller
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None


VERSION_HEADER = "x-bedplate-version"
Watcher = Callable[[Exchange], None]
"""Hears of every request. It is called in the event loop, so it must be quick, and not raise."""


class SilentObserver:
    """The origin of calls whose answers no client gets; nothing is kept of them."""


@dataclass(frozen=True)
class SelfReply:
    """What the application answered; status 0 where the call was given up before it did."""

    status: int
    content: bytes = field(repr=False)
    version: str | None = None
    """Which version of a route answered."""


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
    status, received, sent, version = 0, bytearray(), False, None

    async def receive() -> Message:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": content, "more_body": False}
        await disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal status, version
        if message["type"] == "http.response.start":
            status, version = message["status"], Headers(raw=message["headers"]).get(VERSION_HEADER)
        elif message["type"] == "http.response.body":
            received.extend(message.get("body", b""))

    await app(scope, receive, send)
    task = asyncio.current_task()
    if task is not None and task.cancelling():  # the access log answers a cancelled request, and so ends the cancelling
        raise asyncio.CancelledError
    return SelfReply(status, bytes(received), version)


T = TypeVar("T")


class BackgroundService(Protocol):
    """What works beside the routes while the server runs, in its event loop."""

    def running(self, app: ASGIApp) -> AbstractAsyncContextManager[None]: ...


class Leases(Protocol):
    """Who gives models to calls: the registry, or what stands before it."""

    async def lease(self, model_request: ModelRequest) -> Lease: ...


@dataclass
class ServerState:
    """The state behind the routes. `observers` hear of every call that was answered, `unanswered` of those for
    which something was computed all the same, `watchers` of every request, in the event loop: they must be quick, and
    not raise. `services` run while the server does."""

    config: ServerConfig
    registry: Registry
    guard: CallerGuard = field(default_factory=CallerGuard)
    observers: list[Callable[[FinishedCall], None]] = field(default_factory=list[Callable[[FinishedCall], None]])
    unanswered: list[Callable[[UnansweredCall], None]] = field(default_factory=list[Callable[[UnansweredCall], None]])
    watchers: list[Watcher] = field(default_factory=list[Watcher])
    services: list[BackgroundService] = field(default_factory=list[BackgroundService])
    outage: DiskOutage = field(default_factory=DiskOutage)
    stopping: bool = False

    def __post_init__(self) -> None:
        self.leases: Leases = self.registry
        self.door, self.pacing = Door(), Pacing()
        self.preparation = Preparation(self.config.limits.body_bytes, self.pacing.spent, lambda: self.pacing.tenants)
        self._parts: dict[type, object] = {}

    def add(self, part: T) -> T:
        """Holds a part, one of each class."""
        self._parts[type(part)] = part
        return part

    def part(self, part_class: type[T]) -> T:
        return cast(T, self._parts[part_class])

    @property
    def has_free_rows(self) -> bool:
        """Whether all are loaded, nobody waits on any engine and each has a row free, for batches and shadow calls."""
        engines, max_rows = self.registry.engines, self.config.limits.max_rows
        return not self.registry.loading and all(e.waiting == 0 and e.running < max_rows for e in engines)
