"""Who may ask for what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Caller:
    """Who asks. key: the id of its API key, "" on a server without keys. tenant: what separates its cached prompts from
    those of others. models: the names it may use, None all."""

    key: str = ""
    tenant: str = ""
    admin: bool = True
    models: frozenset[str] | None = None

    def may_use(self, name: str) -> bool:
        return self.models is None or name in self.models


class Guard:
    """Tells callers apart."""

    def identify(self, headers: Mapping[str, str]) -> Caller:
        """The caller of a request with these headers."""
        return Caller()
