"""An adapter or soft prompt that is loaded, as passes and caches know it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from bedplate.adapters.bank import BASE_ROW
from bedplate.adapters.linear_adapter import AdapterConfig


@dataclass(eq=False)
class LoadedAdapter:
    """One version of an adapter or soft prompt, or the base (key None); also the namespace of its cached prefixes.

    slot: in the bank. virtual: number of soft-prompt tokens. parent: the adapter whose slot a soft prompt uses. users:
    number of requests and soft prompts that use it. config: its shape, for updates. fingerprint: SHA-256 of its
    weights, once computed.
    """

    key: str | None
    slot: int = BASE_ROW
    virtual: int = 0
    parent: LoadedAdapter | None = None
    users: int = 0
    retired: bool = False
    config: AdapterConfig | None = None
    version: int = 1
    fingerprint: str | None = None
    freed: threading.Event = field(default_factory=threading.Event)

    @property
    def virtual_tokens(self) -> tuple[int, ...]:
        """Placeholder ids of the soft prompt's vectors, outside of every vocabulary."""
        return tuple(range(-self.virtual, 0))
