"""What one server holds: its models, its limits, and whether it is going down."""

from __future__ import annotations

from dataclasses import dataclass

from bedplate.serving.models import Registry
from bedplate.text.tokenizer import Tokenizer

BODY_LIMIT = 2 * 1024 * 1024
MAX_WAITING = 256


@dataclass
class House:
    """The state behind the routes. body_limit: bytes of a request; max_waiting: the engine's own queue bound."""

    registry: Registry
    body_limit: int = BODY_LIMIT
    max_waiting: int = MAX_WAITING
    stopping: bool = False

    @property
    def tokenizer(self) -> Tokenizer:
        return self.registry.engine.base.need_tokenizer()
