"""Records of finished calls and requests, and the protocols of those that observe them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bedplate.serving.callers.caller_guard import Caller
from bedplate.serving.models.answer_plan import PlanResult
from bedplate.serving.models.served import Answer, Served
from bedplate.serving.schemas.request_fields import RequestFields
from bedplate.serving.settings.route_config import Routed


@dataclass(frozen=True)
class FinishedCall:
    """A call that was answered. `request`: the request as it was read; cost_usd: None where no price is configured;
    origin: what a call that the server made to itself was made for, None for a client's; routed: how it came to its
    version, where its name was a route's; size: bytes of its body."""

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


class Observer(Protocol):
    """Whoever counts, prices or keeps calls. It is called in the event loop, so it must be quick, and not raise."""

    def finished(self, call: FinishedCall) -> None: ...


@dataclass(frozen=True)
class Exchange:
    """One request that is over. path: as it was sent, percent-encoded. route: the template that took it, "" none.
    status: 499 for a client that left. began: seconds since 1970. facts: what the route said of it."""

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


@dataclass(frozen=True)
class UnansweredCall:
    """What was computed for a call that was not answered: its client left, or its time was over. cost_usd: None where
    no price is configured."""

    model: str
    caller: Caller
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None


Watcher = Callable[[Exchange], None]
"""Hears of every request. It is called in the event loop, so it must be quick, and not raise."""
