"""Routes a public name to its versions, counts what each did, and compares its shadow."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic import ValidationError
from starlette.types import ASGIApp

from bedplate.core.config import plain_message
from bedplate.core.errors import RequestError, UnknownModelError, UsageError
from bedplate.core.files import atomic_write, read_text
from bedplate.serving.callers.caller_guard import Caller
from bedplate.serving.models.registry import Lease, ModelRequest
from bedplate.serving.request.server_state import FinishedCall, ServerState, SilentObserver, self_call
from bedplate.serving.rollout.verdict import (
    AnsweredCall,
    Digests,
    OnlineVerdict,
    ShadowPair,
    answer_digest,
    compare,
    rate,
)
from bedplate.serving.schemas.http_errors import StatusError
from bedplate.serving.settings.server_config import RouteConfig, Routed, need_model_name, pick, unit_of

log = logging.getLogger("bedplate.serving")

MAX_WAITING_COPIES = 32
"""Copies that wait to be sent; more are dropped."""
WAIT_SECONDS = 5.0
"""A copy that has waited longer for an idle engine is dropped."""
CALL_SECONDS = 60.0
_POLL_SECONDS = 0.005


class ShadowCall(SilentObserver):
    """The origin of a copy; it is told what came of it."""

    def __init__(self) -> None:
        self.answered: AnsweredCall | None = None

    def __str__(self) -> str:
        return "shadow"


@dataclass(frozen=True)
class Copy:
    """What is to be sent: the request as it came, for another model; and what became of the original."""

    call: FinishedCall
    routed: Routed
    model: str
    on_outcome: Callable[[ShadowPair | None, str], None]
    """Gets the pair, or None and why there is none."""


def answered(call: FinishedCall) -> AnsweredCall:
    digests = tuple(answer_digest(answer.text) for answer in call.answers)
    return AnsweredCall(digests, call.seconds, sum(result.timing.compute for result in call.results))


class Shadows:
    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._waiting: deque[tuple[float, Copy]] = deque()
        self._wake = asyncio.Event()
        self._preempted = asyncio.Event()

    def add(self, copy: Copy) -> None:
        """Queues a copy, or drops it where too many wait."""
        if len(self._waiting) >= MAX_WAITING_COPIES:
            copy.on_outcome(None, "queue_full")
            return
        self._waiting.append((time.monotonic(), copy))
        self._wake.set()

    async def run(self, app: ASGIApp) -> None:
        """Sends copies, one after the other, until it is cancelled."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._waiting:
                    since, copy = self._waiting.popleft()
                    try:
                        await self._send(app, since, copy)
                    except Exception as error:
                        log.exception("a shadow call failed: %s", error)
                        copy.on_outcome(None, "failed")
        finally:
            self._preempted.set()

    async def _send(self, app: ASGIApp, since: float, copy: Copy) -> None:
        if copy.model not in self._state.registry.models:
            copy.on_outcome(None, "not_served")
            return
        while not self._state.has_free_rows:
            if time.monotonic() - since > WAIT_SECONDS:
                copy.on_outcome(None, "busy")
                return
            await asyncio.sleep(_POLL_SECONDS)
        origin = ShadowCall()
        call, routed = copy.call, copy.routed
        fields = {name: value for name, value in routed.body.items() if name not in ("stream", "stream_options")}
        content = json.dumps({**fields, "model": copy.model}).encode()
        # Nobody pays for a copy, and it may use the shadow whatever its caller may.
        caller = replace(call.caller, key="", admin=False, models=frozenset((copy.model,)))
        self._preempted = asyncio.Event()
        watching = asyncio.create_task(self._watch(len(call.answers)))
        try:
            reply = await self_call(app, routed.path, content, caller, origin, self._preempted)
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
        if reply.status == 200 and origin.answered is not None:
            pair = ShadowPair(call.id, call.caller.tenant, routed.version, answered(call), origin.answered)
            copy.on_outcome(pair, "compared")
        else:
            copy.on_outcome(None, "preempted" if self._preempted.is_set() else "failed")

    async def _watch(self, copy_requests: int) -> None:
        """Gives the copy up when clients wait, more than its own requests do, or when it takes too long."""
        ends = time.monotonic() + CALL_SECONDS
        while time.monotonic() < ends:
            if any(engine.waiting > copy_requests for engine in self._state.registry.engines):
                break
            await asyncio.sleep(_POLL_SECONDS)
        self._preempted.set()


MAX_REMEMBERED = 10_000
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
    previous: dict[str, float] | None = None
    """The weights before the last change."""
    file_config: RouteConfig = field(init=False)
    """The route as the server's file has it."""
    calls: Counter[str] = field(default_factory=Counter[str])
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict[str, float](float))
    observations: deque[_Observation] = field(default_factory=lambda: deque[_Observation](maxlen=MAX_REMEMBERED))
    pairs: deque[ShadowPair] = field(default_factory=lambda: deque[ShadowPair](maxlen=MAX_REMEMBERED))
    verdict: OnlineVerdict | None = None
    outcomes: Counter[str] = field(default_factory=Counter[str])
    """Outcomes of the copies to the shadow: agreed, differed, not_served, failed, queue_full, busy, preempted."""

    def __post_init__(self) -> None:
        self.file_config = self.config

    def set_versions(self, versions: Mapping[str, float], previous: dict[str, float] | None) -> None:
        """Counts and pairs go on. ValidationError for weights that the route cannot have."""
        self.config = RouteConfig.model_validate({**self.config.model_dump(), "versions": dict(versions)})
        self.previous = previous


class VersionRouter(Collector):
    """Between a call's model name and the registry: an observer of calls, and a service that sends the copies.

    targets: call id → the right answer as users gave it, None where the given one was called good. routes_file: where
    weights that were set while the server ran are saved (a restart must not undo a rollback), once `acquire` has made
    its directory this server's."""

    def __init__(
        self,
        state: ServerState,
        targets: Callable[[], Mapping[str, str | None]],
        routes_file: Path,
        acquire: Callable[[], object],
    ) -> None:
        routes = state.config.routes
        for name in routes:
            need_model_name(name)
        self._registry, self._feedback = state.registry, targets
        self._routes = {name: _Route(config) for name, config in routes.items()}
        for route in self._routes.values():
            if route.config.verdict is not None:
                route.verdict = OnlineVerdict(route.config.verdict, route.config.shadow)
        self._shadows = Shadows(state)
        self._routes_file, self._acquire = routes_file, acquire
        self._changing = threading.RLock()
        self._restore()

    # --- weights that change while the server runs

    def change(self, name: str, versions: Mapping[str, float]) -> dict[str, Any]:
        """Sets the versions of a route and their weights for all calls from now on, and returns the report.

        StatusError 404 for no route, 503 where the change cannot be saved; RequestError for weights that cannot be.
        """
        route = self._route(name)
        served = self._registry.models
        missing = [version for version, weight in versions.items() if weight > 0 and version not in served]
        if missing:
            message = f"versions: {missing[0][:80]!r} is not served; load it first (POST /admin/skins)"
            raise RequestError(message, param="versions", code="version_not_served")
        with self._changing:
            before, earlier = route.config, route.previous
            # Shares lie in the order of the versions, so that those that stay keep their callers.
            versions = {**{name: versions[name] for name in before.versions if name in versions}, **versions}
            if versions != before.versions:  # a request that is sent again must not lose `previous`
                try:
                    route.set_versions(versions, before.versions)
                    self._save()
                except ValidationError as error:
                    message = plain_message(error.errors()[0]["msg"])
                    raise RequestError(message, param="versions", code="invalid_versions") from error
                except BaseException:
                    route.config, route.previous = before, earlier
                    raise
                if route.verdict is not None and not route.verdict.paired:
                    # Versions that answer different calls are compared within one period of fixed weights alone.
                    route.verdict = OnlineVerdict(route.verdict.config, route.config.shadow)
                log.info("the route %s now has the weights %s; it had %s", name, dict(versions), before.versions)
            return self.report(name)

    def roll_back(self, name: str) -> dict[str, Any]:
        """Takes the last change back; a second call takes this one back. StatusError 404, 409 without a change."""
        with self._changing:
            previous = self._route(name).previous
            if previous is None:
                raise StatusError(409, f"the weights of {name!r} have not been changed", "no_previous", "name")
            return self.change(name, previous)

    def _save(self) -> None:
        changed = {
            name: {
                "file": route.file_config.model_dump(mode="json"),
                "versions": route.config.versions,
                "previous": route.previous,
            }
            for name, route in self._routes.items()
            if route.previous is not None
        }
        self._acquire()
        atomic_write(self._routes_file, json.dumps(changed, indent=1))

    def _restore(self) -> None:
        """Applies weights that were set at run time before a restart, unless the server's file was edited since."""
        path = self._routes_file
        if not self._routes or not path.exists():
            return
        try:
            changed: dict[str, Any] = json.loads(read_text(path))
            for name, saved in changed.items():
                route = self._routes.get(name)
                if route is None:
                    continue
                if RouteConfig.model_validate(saved["file"]) != route.file_config:
                    log.warning(
                        "the route %s was edited in the server's file: weights set at run time are dropped", name
                    )
                    continue
                route.set_versions(saved["versions"], saved["previous"])
                log.warning("the route %s has the weights %s, which were set at run time", name, saved["versions"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{path}: cannot be read ({error}); delete it to start with the server's file") from error

    def _route(self, name: str) -> _Route:
        route = self._routes.get(name)
        if route is None:
            raise StatusError(404, f"there is no route {name[:80]!r}", "route_not_found", "name")
        return route

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
            route.verdict.record(call.id, routed.version, digest, None, Digests(self._feedback()))
        shadow, mirrored = route.config.shadow, call.origin is None and routed.path in _MIRRORED
        if shadow is not None and mirrored and unit_of("shadow", call.id) < route.config.shadow_share:
            self._shadows.add(Copy(call, routed, shadow, partial(self._record_outcome, route)))

    def _record_outcome(self, route: _Route, pair: ShadowPair | None, why: str) -> None:
        if pair is not None:
            route.pairs.append(pair)
            if route.verdict is not None:
                ours, shadow = pair.ours.answers[0], pair.shadow.answers[0]
                route.verdict.record(pair.id, pair.version, ours, shadow, Digests(self._feedback()))
            why = "agreed" if pair.agrees else "differed"
        route.outcomes[why] += 1

    def log_unserved(self) -> None:
        """Logs which models routes name that are not served, once all models are loaded."""
        for name, route in self._routes.items():
            for model in filter(None, (*route.config.versions, route.config.shadow)):
                if model not in self._registry.models:
                    log.warning("the route %s names %s, which is not served yet", name, model)
        for name in self.without_version():
            log.error("every call of the route %s is answered 503: none of its versions is served", name)

    @contextlib.asynccontextmanager
    async def running(self, app: ASGIApp) -> AsyncGenerator[None]:
        sending = asyncio.create_task(self._shadows.run(app))
        try:
            yield
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sending

    # --- what came of it

    def summaries(self) -> list[dict[str, Any]]:
        """Each route's name, the weights of its versions, and its shadow."""
        return [
            {"name": name, "object": "route", "versions": route.config.versions, "shadow": route.config.shadow}
            for name, route in self._routes.items()
        ]

    def without_version(self) -> list[str]:
        """The routes of which no version with weight is served."""
        served = self._registry.models
        return [
            name
            for name, route in self._routes.items()
            if not any(weight > 0 and version in served for version, weight in route.config.versions.items())
        ]

    def report(self, name: str) -> dict[str, Any]:
        """Everything that is known of a route. It takes a while where there are many pairs. StatusError 404."""
        route = self._route(name)
        config, whole = route.config, sum(route.config.versions.values())
        weights = {**config.versions, **{version: 0.0 for version in route.calls if version not in config.versions}}
        targets = {key: None if text is None else answer_digest(text) for key, text in dict(self._feedback()).items()}
        observations = list(route.observations)
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
                    "correctness": _judged([o for o in observations if o.version == version], targets),
                }
                for version, weight in weights.items()
            ],
            "previous": route.previous,
            "shadow": shadow,
            "verdict": None if route.verdict is None else route.verdict.report(Digests(self._feedback())),
        }

    def collect(self) -> Iterable[Metric]:
        calls = CounterMetricFamily("bedplate:route_calls", "Answered calls by route.", labels=("route", "version"))
        copies = CounterMetricFamily("bedplate:shadow_calls", "Copies, by outcome.", labels=("route", "outcome"))
        up = GaugeMetricFamily("bedplate:route_up", "1 while a version with weight is served.", labels=("route",))
        without = self.without_version()
        for name, route in self._routes.items():
            up.add_metric((name,), float(name not in without))
            for version, count in route.calls.items():
                calls.add_metric((name, version), count)
            for outcome, count in route.outcomes.items():
                copies.add_metric((name, outcome), count)
        return (calls, copies, up)


def _judged(observations: list[_Observation], targets: Mapping[str, str | None]) -> dict[str, Any] | None:
    """How often users found a version's answers right, where they said."""
    judged = [observation for observation in observations if observation.id in targets]
    return rate(sum(targets[observation.id] in (None, observation.answer) for observation in judged), len(judged))
