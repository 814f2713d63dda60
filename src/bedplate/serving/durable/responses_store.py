"""In-memory store of /v1/responses replies, so that a later request can continue from them.

In memory, per tenant, and bounded: the oldest go first, and all of them when the server stops. They are kept as the
JSON that they are counted by: as objects, lists of a few characters each would take twenty times as much.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bedplate.serving.schemas.strict_json import dump_json
from bedplate.serving.settings.server_config import ResponsesConfig


@dataclass(frozen=True)
class KeptResponse:
    """A reply as JSON, and as JSON too the conversation that it ends, without instructions."""

    id: str
    response: bytes
    conversation: bytes

    @classmethod
    def of(cls, response: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> KeptResponse:
        """Takes a while for long ones, so it is not for an event loop then."""
        return cls(response["id"], dump_json(response), dump_json(messages))

    @property
    def size(self) -> int:
        return len(self.response) + len(self.conversation)

    def messages(self) -> list[dict[str, Any]]:
        return json.loads(self.conversation)


class ResponseStore:
    def __init__(self, config: ResponsesConfig) -> None:
        self.config = config
        self._responses: dict[str, OrderedDict[str, KeptResponse]] = {}
        """By tenant, and then by id."""
        self._order: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._sizes: dict[str, int] = {}
        self._size = 0

    def add(self, tenant: str, response: KeptResponse) -> None:
        """Keeps a reply; what is too old or too large for the bounds goes."""
        self._responses.setdefault(tenant, OrderedDict())[response.id] = response
        self._order[tenant, response.id] = None
        self._sizes[tenant] = self._sizes.get(tenant, 0) + response.size
        self._size += response.size
        while self._sizes.get(tenant, 0) > self.config.bytes_per_tenant:
            self.remove(tenant, next(iter(self._responses[tenant])))
        while self._size > self.config.bytes_in_all:
            self.remove(*next(iter(self._order)))

    def get(self, tenant: str, name: str) -> KeptResponse | None:
        """The tenant's own only."""
        return self._responses.get(tenant, {}).get(name)

    def remove(self, tenant: str, name: str) -> None:
        size = self._responses[tenant].pop(name).size
        del self._order[tenant, name]
        self._sizes[tenant] -= size
        self._size -= size
        if not self._responses[tenant]:
            del self._responses[tenant], self._sizes[tenant]
