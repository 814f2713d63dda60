"""Defines `ServerState`, which the routes of one server share. Parts are added to it and looked up by their class."""

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
    """An answered call, as observers get it. cost_usd: None where no price is configured. origin: the purpose of a call
    that the server made to itself, None for a client's. routed: route and version, where its name was a route's. size:
    bytes of its body."""

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
    """A finished HTTP request, as watchers get it. path: as sent, percent-encoded. route: the path template, or "".
    status: 499 where the client disconnected. began: Unix time. facts: fields that the route added."""

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
    """The purpose of a call that the server made to itself; None for a client's request."""


@dataclass(frozen=True)
class UnansweredCall:
    """Tokens computed for a call that got no answer: its client left or its deadline passed. cost_usd: None without a
    price."""

    model: str
    caller: Caller
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None


VERSION_HEADER = "x-bedplate-version"
Watcher = Callable[[Exchange], None]
"""Called with every finished request, in the event loop: it must be quick and not raise."""


class SilentObserver:
    """The origin of calls whose answers go to no client; they are not stored as feedback."""


@dataclass(frozen=True)
class SelfReply:
    """The application's reply to a call that the server made to itself; status 0 where the call was abandoned first."""

    status: int
    content: bytes = field(repr=False)
    version: str | None = None
    """The version that answered, for a route's name."""


async def self_call(
    app: ASGIApp, path: str, content: bytes, caller: Caller, origin: object, disconnected: asyncio.Event
) -> SelfReply:
    """POSTs JSON to a route in the caller's name. Setting `disconnected` ends the call as if its client had left.

    origin: the call's purpose, for observers (`FinishedCall.origin`) and as the client in the access log.
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
    """Work that runs in the event loop beside the routes, from the start of the server to its end."""

    def running(self, app: ASGIApp) -> AbstractAsyncContextManager[None]: ...


class Leases(Protocol):
    """Leases models to calls: the registry, or the router of versions in front of it."""

    async def lease(self, model_request: ModelRequest) -> Lease: ...


@dataclass
class ServerState:
    """The state behind the routes. `observers` are called with every answered call, `unanswered` with calls that used
    compute and got no answer, `watchers` with every HTTP request: in the event loop, so they must be quick and not
    raise. `services` run while the server does."""

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
        """Adds a part, one of each class, and returns it."""
        self._parts[type(part)] = part
        return part

    def part(self, part_class: type[T]) -> T:
        return cast(T, self._parts[part_class])

    def compare_names(self) -> None:
        """Logs which models keys name that are not served; hundreds of names take seconds, so not in the event loop."""
        self.guard.compare(lambda: (*self.registry.models, *self.config.routes))

    @property
    def has_free_rows(self) -> bool:
        """Whether all are loaded, nobody waits on any engine and each has a row free, for batches and shadow calls."""
        engines, max_rows = self.registry.engines, self.config.limits.max_rows
        return not self.registry.loading and all(e.waiting == 0 and e.running < max_rows for e in engines)
