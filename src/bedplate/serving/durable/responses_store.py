"""Replies of /v1/responses that are kept for a while, so that a later request can go on from them.

In memory, per tenant, and bounded: the oldest go first, and all of them when the server stops.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bedplate.serving.settings.config import ResponsesConfig


@dataclass(frozen=True)
class KeptResponse:
    """A reply, and the conversation that it ends, without instructions."""

    response: dict[str, Any]
    messages: Sequence[dict[str, Any]]
    size: int


class ResponseStore:
    """What is kept, oldest first."""

    def __init__(self, config: ResponsesConfig) -> None:
        self.config = config
        self._kept: OrderedDict[tuple[str, str], KeptResponse] = OrderedDict()
        self._sizes: dict[str, int] = {}

    def put(self, tenant: str, response: dict[str, Any], messages: Sequence[dict[str, Any]]) -> None:
        """Keeps a reply; what is too old or too large for the bounds goes."""
        size = len(json.dumps([response, *messages]))
        self._kept[tenant, response["id"]] = KeptResponse(response, messages, size)
        self._sizes[tenant] = self._sizes.get(tenant, 0) + size
        while self._sizes.get(tenant, 0) > self.config.bytes_per_tenant:
            self._drop(next(key for key in self._kept if key[0] == tenant))
        while sum(self._sizes.values()) > self.config.bytes_in_all:
            self._drop(next(iter(self._kept)))

    def get(self, tenant: str, name: str) -> KeptResponse | None:
        """The tenant's own only."""
        return self._kept.get((tenant, name))

    def remove(self, tenant: str, name: str) -> bool:
        """Whether it was there."""
        if (tenant, name) not in self._kept:
            return False
        self._drop((tenant, name))
        return True

    def _drop(self, key: tuple[str, str]) -> None:
        tenant = key[0]
        self._sizes[tenant] -= self._kept.pop(key).size
        if self._sizes[tenant] == 0:
            del self._sizes[tenant]
