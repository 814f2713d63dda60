"""Which model is served under which name, and who is using it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bedplate.core.errors import UnknownModelError, UsageError
from bedplate.inference.engine import Engine
from bedplate.serving.guard import Caller
from bedplate.serving.models import Served


@dataclass(eq=False)
class Lease:
    """A model in use by one call. Whatever replaces the name meanwhile, this call ends on what it began with."""

    served: Served
    _open: bool = True

    @property
    def engine(self) -> Engine:
        return self.served.engine

    def release(self) -> None:
        """Once the call is over; a second time does nothing."""
        self._open = False


@dataclass
class Registry:
    """The models of one server, by name, on its engines; the first engine is the main base's."""

    engines: Sequence[Engine]
    created: int = field(default_factory=lambda: int(time.time()))
    models: dict[str, Served] = field(default_factory=dict[str, Served])

    @property
    def engine(self) -> Engine:
        """The main base's."""
        return self.engines[0]

    def add(self, served: Served) -> None:
        """UsageError for a name that is taken or cannot be a model name."""
        name = served.name
        if not name or ":" in name or any(not c.isprintable() for c in name):
            raise UsageError(f"{name!r} cannot be a model name: it must be printable and without ':'; give another")
        if name in self.models:
            raise UsageError(f"two models are called {name!r}; rename one of them")
        self.models[name] = served

    def visible(self, caller: Caller) -> list[Served]:
        """The models that the caller may use."""
        return [served for name, served in self.models.items() if caller.may_use(name)]

    def find(self, name: str, caller: Caller) -> Served:
        """UnknownModelError also for a model that the caller may not use: it learns nothing of it."""
        served = self.models.get(name) if caller.may_use(name) else None
        if served is None:
            known = ", ".join([one.name for one in self.visible(caller)][:20])
            raise UnknownModelError(f"there is no model {name[:100]!r} here; the models are: {known}", param="model")
        return served

    async def lease(self, name: str, caller: Caller) -> Lease:
        """The model to use for one call."""
        return Lease(self.find(name, caller))

    def describe(self, served: Served) -> dict[str, Any]:
        """The entry of /v1/models."""
        head = {"id": served.name, "object": "model", "created": self.created, "owned_by": "bedplate"}
        return {**head, "bedplate": {"base": served.engine.base.name, **served.describe()}}
