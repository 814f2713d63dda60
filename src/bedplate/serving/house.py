"""What one server holds, and whether it is going down."""

from __future__ import annotations

from dataclasses import dataclass, field

from bedplate.serving.calls import Observer
from bedplate.serving.config import ServerConfig
from bedplate.serving.guard import Guard
from bedplate.serving.registry import Registry
from bedplate.text.tokenizer import Tokenizer


@dataclass
class House:
    """The state behind the routes. `observers` hear of every call that was answered."""

    config: ServerConfig
    registry: Registry
    guard: Guard = field(default_factory=Guard)
    observers: list[Observer] = field(default_factory=list[Observer])
    stopping: bool = False

    @property
    def tokenizer(self) -> Tokenizer:
        """The main base's."""
        return self.registry.engine.base.need_tokenizer()
