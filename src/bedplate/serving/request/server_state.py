"""`ServerState`: what the routes of one server share. Further parts are added to it and looked up by class."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, cast

from starlette.types import ASGIApp

from bedplate.serving.callers.caller_guard import CallerGuard
from bedplate.serving.models.registry import Lease, ModelRequest, Registry
from bedplate.serving.request.interpreter_turns import Pacing
from bedplate.serving.request.observers import Observer, UnansweredCall, Watcher
from bedplate.serving.request.preparation import Preparation
from bedplate.serving.settings.server_config import ServerConfig

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
    which something was computed all the same, `watchers` of every request; `services` run while the server does."""

    config: ServerConfig
    registry: Registry
    guard: CallerGuard = field(default_factory=CallerGuard)
    observers: list[Observer] = field(default_factory=list[Observer])
    unanswered: list[Callable[[UnansweredCall], None]] = field(default_factory=list[Callable[[UnansweredCall], None]])
    watchers: list[Watcher] = field(default_factory=list[Watcher])
    services: list[BackgroundService] = field(default_factory=list[BackgroundService])
    stopping: bool = False

    def __post_init__(self) -> None:
        self.leases: Leases = self.registry
        self.pacing = Pacing()
        self.preparation = Preparation(self.config.limits.body_bytes, self.pacing.spent)
        self._parts: dict[type, object] = {}

    def add(self, part: T) -> T:
        """Holds a part, one of each class."""
        self._parts[type(part)] = part
        return part

    def part(self, part_class: type[T]) -> T:
        """The part of this class."""
        return cast(T, self._parts[part_class])

    @property
    def has_free_rows(self) -> bool:
        """Whether nobody waits on any engine and each has a row free: what batches and shadow calls look at before they
        ask for anything."""
        max_rows = self.config.limits.max_rows
        return all(engine.waiting == 0 and engine.running < max_rows for engine in self.registry.engines)
