"""Routes a public name to its versions, counts what each did, and compares its shadow."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, defaultdict, deque
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp

from bedplate.core.errors import UnknownModelError, UsageError
from bedplate.serving.callers.caller_guard import Caller
from bedplate.serving.models.registry import Lease, ModelRequest
from bedplate.serving.request.observers import FinishedCall
from bedplate.serving.request.self_calls import SilentObserver
from bedplate.serving.request.server_state import ServerState
from bedplate.serving.rollout.shadow import Copy, ShadowCall, Shadows, answered
from bedplate.serving.rollout.shadow_comparison import ShadowPair, answer_digest, compare, rate
from bedplate.serving.rollout.verdict import Digests, OnlineVerdict
from bedplate.serving.schemas.http_errors import StatusError
from bedplate.serving.settings.route_config import RouteConfig, Routed, pick, unit_of

log = logging.getLogger("bedplate.serving")

MOST_KEPT = 10_000
"""Calls, and pairs, that a route remembers: in memory, the last ones."""
_MIRRORED = frozenset(("/v1/chat/completions", "/v1/completions", "/v1/classify", "/v1/messages"))


@dataclass(frozen=True)
class _Observation:
    """One answered call: whose version, and the digest of its first answer."""

    id: str
    version: str
    answer: str


@dataclass
class _Route:
    config: RouteConfig
    calls: Counter[str] = field(default_factory=Counter[str])
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict[str, float](float))
    observations: deque[_Observation] = field(default_factory=lambda: deque[_Observation](maxlen=MOST_KEPT))
    pairs: deque[ShadowPair] = field(default_factory=lambda: deque[ShadowPair](maxlen=MOST_KEPT))
    verdict: OnlineVerdict | None = None
    outcomes: Counter[str] = field(default_factory=Counter[str])
    """Outcomes of the copies to the shadow: agreed, differed, failed, queue_full, busy, preempted."""


class VersionRouter(Collector):
    """Between a call's model name and the registry: an observer of calls, and a service that sends the copies.

    targets: call id → the right answer as users gave it, None where the given one was called good."""

    def __init__(self, state: ServerState, targets: Mapping[str, str | None]) -> None:
        routes = state.config.routes
        for name in routes:
            if not name or ":" in name or not name.isprintable():
                raise UsageError(f"routes: {name!r} cannot be a model name: it must be printable and without ':'")
        self._registry, self._feedback_targets = state.registry, targets
        self._routes = {name: _Route(config) for name, config in routes.items()}
        for route in self._routes.values():
            if route.config.verdict is not None:
                route.verdict = OnlineVerdict(route.config.verdict, route.config.shadow)
        self._digests = Digests(targets)
        self._shadows = Shadows(state)

    # --- on the way in

    async def lease(self, model_request: ModelRequest) -> Lease:
        """The model for a call to this name; by a route, its version. UnknownModelError, or StatusError 503 where a
        route leads to a version that is not served."""
        name, caller = model_request.name, model_request.caller
        if name not in self._routes or not caller.may_use(name) or isinstance(model_request.origin, SilentObserver):
            return await self._registry.lease(model_request)
        version = self.version(model_request)
        try:
            its_own = replace(caller, models=frozenset((version,)))
            lease = await self._registry.lease(replace(model_request, name=version, caller=its_own))
        except UnknownModelError:
            log.warning("the route %s leads to %s, which is not served", name, version)
            message = f"a version of {name!r} is not served at the moment"
            raise StatusError(503, message, "version_unavailable", "model") from None
        lease.routed = Routed(name, version, model_request.path, model_request.sent)
        return lease

    def version(self, model_request: ModelRequest) -> str:
        """Which version of a route's name a call gets."""
        config, tenant = self._routes[model_request.name].config, model_request.caller.tenant
        user = model_request.sent.get("user") or model_request.sent.get("safety_identifier")
        if config.sticky == "tenant":
            keys = ("tenant", tenant)
        elif config.sticky == "user" and isinstance(user, str):
            keys = ("user", tenant, user)
        else:
            keys = ("request", model_request.id)
        return pick(config.versions, unit_of(model_request.name, *keys))

    def listed(self, caller: Caller) -> list[dict[str, Any]]:
        """The entries of /v1/models for the routes that the caller may use."""
        created = self._registry.created
        return [
            {"id": name, "object": "model", "created": created, "owned_by": "bedplate", "bedplate": {"kind": "route"}}
            for name in self._routes
            if caller.may_use(name) and name not in self._registry.models
        ]

    # --- on the way out

    def finished(self, call: FinishedCall) -> None:
        """An observer's part."""
        if isinstance(call.origin, ShadowCall):
            call.origin.answered = answered(call)
            return
        routed = call.routed
        if routed is None:
            return
        route = self._routes[routed.route]
        route.calls[routed.version] += 1
        route.seconds[routed.version] += call.seconds
        if not call.answers:
            return
        digest = answer_digest(call.answers[0].text)
        route.observations.append(_Observation(call.id, routed.version, digest))
        if route.verdict is not None:
            route.verdict.record(call.id, routed.version, digest, None, self._digests)
        config = route.config
        mirrored = config.shadow is not None and call.origin is None and routed.path in _MIRRORED
        if config.shadow is None or not mirrored or unit_of("shadow", call.id) >= config.shadow_share:
            return

        def record_outcome(pair: ShadowPair | None, why: str) -> None:
            if pair is not None:
                route.pairs.append(pair)
                if route.verdict is not None:
                    ours_first, shadow_first = pair.ours.answers[0], pair.shadow.answers[0]
                    route.verdict.record(pair.id, pair.version, ours_first, shadow_first, self._digests)
                why = "agreed" if pair.agrees else "differed"
            route.outcomes[why] += 1

        ours, body = answered(call), dict(routed.body)
        self._shadows.add(
            Copy(call.id, routed.path, body, call.caller, config.shadow, routed.version, ours, record_outcome)
        )

    @contextlib.asynccontextmanager
    async def running(self, app: ASGIApp) -> AsyncGenerator[None]:
        """Sends copies while the server runs."""
        for name, route in self._routes.items():
            model_names = (*route.config.versions, *([route.config.shadow] if route.config.shadow else []))
            for model in model_names:
                if model not in self._registry.models:
                    log.warning("the route %s names %s, which is not served yet", name, model)
        sending = asyncio.create_task(self._shadows.run(app))
        try:
            yield
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sending

    # --- what came of it

    def names(self) -> list[str]:
        return list(self._routes)

    def report(self, name: str) -> dict[str, Any]:
        """Everything that is known of a route. It takes a while where there are many pairs. StatusError 404."""
        route = self._routes.get(name)
        if route is None:
            raise StatusError(404, f"there is no route {name[:80]!r}", "route_not_found", "name")
        config, targets = route.config, self._targets()
        whole = sum(config.versions.values())
        shadow = None
        if config.shadow is not None:
            outcomes = {why: count for why, count in route.outcomes.items() if why not in ("agreed", "differed")}
            compared = compare(list(route.pairs), targets)
            shadow = {"model": config.shadow, "share": config.shadow_share, "not_compared": outcomes, **compared}
        return {
            "name": name,
            "object": "route",
            "sticky": config.sticky,
            "versions": [
                {
                    "model": version,
                    "weight": weight / whole,
                    "calls": route.calls[version],
                    "seconds": route.seconds[version] / route.calls[version] if route.calls[version] else None,
                    "correctness": _judged(
                        [observation for observation in list(route.observations) if observation.version == version],
                        targets,
                    ),
                }
                for version, weight in config.versions.items()
            ],
            "shadow": shadow,
            "verdict": None if route.verdict is None else route.verdict.report(self._digests),
        }

    def _targets(self) -> dict[str, str | None]:
        """Call id → digest of the right answer, None where the given one was called good."""
        return {
            id_: None if text is None else answer_digest(text) for id_, text in dict(self._feedback_targets).items()
        }

    def collect(self) -> Iterable[Metric]:
        """For /metrics."""
        calls = CounterMetricFamily("bedplate:route_calls", "Answered calls by route.", labels=("route", "version"))
        copies = CounterMetricFamily("bedplate:shadow_calls", "Copies, by outcome.", labels=("route", "outcome"))
        for name, route in self._routes.items():
            for version, count in route.calls.items():
                calls.add_metric((name, version), count)
            for outcome, count in route.outcomes.items():
                copies.add_metric((name, outcome), count)
        return (calls, copies)


def _judged(observations: list[_Observation], targets: Mapping[str, str | None]) -> dict[str, Any] | None:
    """How often users found a version's answers right, where they said."""
    judged = [observation for observation in observations if observation.id in targets]
    return rate(sum(targets[observation.id] in (None, observation.answer) for observation in judged), len(judged))
