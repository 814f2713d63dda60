"""What one server holds, and whether it is going down."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from starlette.types import ASGIApp

from bedplate.serving.api.batches import Batches
from bedplate.serving.api.feedback import Feedback
from bedplate.serving.call.call import Observer
from bedplate.serving.callers.guard import Guard
from bedplate.serving.durable.responses_store import ResponseStore
from bedplate.serving.durable.state_directory import State
from bedplate.serving.models.registry import Registry
from bedplate.serving.rollout.routing import Router
from bedplate.serving.server.access import Watcher
from bedplate.serving.settings.config import ServerConfig
from bedplate.text.tokenizer import Tokenizer


class Service(Protocol):
    """What works beside the routes while the server runs, in its event loop."""

    def running(self, app: ASGIApp) -> AbstractAsyncContextManager[None]: ...


@dataclass
class House:
    """The state behind the routes. `observers` hear of every call that was answered, `watchers` of every request;
    `services` run while the server does."""

    config: ServerConfig
    registry: Registry
    guard: Guard = field(default_factory=Guard)
    observers: list[Observer] = field(default_factory=list[Observer])
    watchers: list[Watcher] = field(default_factory=list[Watcher])
    services: list[Service] = field(default_factory=list[Service])
    stopping: bool = False

    def __post_init__(self) -> None:
        self.state = State(self.config)
        self.responses = ResponseStore(self.config.responses)
        self.batches = Batches(self)
        self.feedback = Feedback(self, self.config.feedback)
        self.router = Router(self, self.config.routes)
        self.observers += [self.feedback, self.router]
        self.services += [self.feedback, self.router, self.batches]

    @property
    def tokenizer(self) -> Tokenizer:
        """The main base's."""
        return self.registry.engine.base.need_tokenizer()
