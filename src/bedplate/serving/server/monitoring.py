"""Serves /health, /ready and /metrics, watches the event loop for delays, and sends OpenTelemetry spans of calls."""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import logging
import selectors
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp

from bedplate.core.errors import UsageError
from bedplate.core.version import __version__
from bedplate.serving.request.lifecycle import tokens_of
from bedplate.serving.request.preparation import in_daemon_thread
from bedplate.serving.request.server_state import Exchange, FinishedCall, ServerState, SilentObserver, UnansweredCall
from bedplate.serving.rollout.version_router import VersionRouter
from bedplate.serving.schemas.strict_json import json_response
from bedplate.serving.settings.server_config import TelemetryConfig

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

router = APIRouter()


@router.get("/health")
async def health(request: Request) -> Response:
    """200 while every engine works; 503 when one's thread has ended, or its step takes longer than `stall_seconds`."""
    status = _status(request.app.state.server)
    return json_response(status, 503 if status["status"] in ("failed", "stalled") else 200)


@router.get("/ready")
async def ready(request: Request) -> Response:
    """200 while requests are taken: not while loading, stopping, with an engine that does not work, or where each route
    is without a version to answer. Where only some are, the others go on: they are named."""
    state: ServerState = request.app.state.server
    router, status = state.part(VersionRouter), _status(state)
    without = router.without_version() if status["status"] == "ok" else []
    if not without:
        return json_response(status, 200 if status["status"] == "ok" else 503)
    unready = len(without) == len(router.summaries())
    return json_response({"status": "degraded", "routes_without_version": without}, 503 if unready else 200)


def _status(state: ServerState) -> dict[str, str | int]:
    registry = state.registry
    if not all(engine.alive for engine in registry.engines):
        return {"status": "failed"}
    if any(engine.stalled(state.config.stall_seconds) for engine in registry.engines):
        return {"status": "stalled"}
    if registry.loading and not state.stopping:  # counts: names are for callers with keys
        return {"status": "loading", "models_ready": len(registry.models), "bases_loading": len(state.config.bases)}
    return {"status": "stopping" if state.stopping else "ok"}


log = logging.getLogger("bedplate.serving")

BEAT_SECONDS = 0.05
LATE_SECONDS = 0.25
"""A later beat is logged, once."""
QUIET_SECONDS = 10.0
"""For this long after a logged beat, further late ones are only counted."""
NAMES = ("bedplate:event_loop_lag_seconds", "bedplate_event_loop_lag_seconds")
"""The second is the name in earlier versions."""
_LAG_BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class _Counter:
    def __init__(self, name: str, text: str, *labels: str) -> None:
        self._name, self._text, self._labels = name, text, labels or ("model_name",)
        self._totals: defaultdict[tuple[str, ...], float] = defaultdict(float)

    def add(self, *labels: str, amount: float = 1.0) -> None:
        self._totals[labels] += amount

    def family(self) -> Metric:
        family = CounterMetricFamily(PREFIX + self._name, self._text, labels=self._labels)
        for labels, total in self._totals.items():
            family.add_metric(labels, total)
        return family


class _Histogram:
    """A histogram whose observations have a count: a reply's mean gap between tokens is observed once per gap."""

    def __init__(self, name: str, text: str, bounds: Sequence[float], *labels: str) -> None:
        self._name, self._text, self._bounds, self._labels = name, text, bounds, labels
        self._counts: dict[tuple[str, ...], list[int]] = {} if labels else {(): [0] * (len(bounds) + 1)}
        self._sums: defaultdict[tuple[str, ...], float] = defaultdict(float)

    def observe(self, value: float, *labels: str, times: int = 1) -> None:
        counts = self._counts.setdefault(labels, [0] * (len(self._bounds) + 1))
        counts[bisect.bisect_left(self._bounds, value)] += times
        self._sums[labels] += value * times

    def family(self, name: str | None = None) -> Metric:
        family = HistogramMetricFamily(name or self._name, self._text, labels=self._labels)
        bounds = (*map(str, self._bounds), "+Inf")
        for labels, counts in self._counts.items():
            family.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), self._sums[labels])
        return family


class Watchdog(Collector):
    """Measures how late one server's event loop runs its timers, for the log and /metrics."""

    def __init__(self) -> None:
        self.lags = _Histogram(NAMES[0], "How late the server's event loop came to what was due.", _LAG_BOUNDS)
        self._due = 0.0
        self._reported_due = 0.0
        self._quiet_until = 0.0
        self._suppressed = 0
        self._over = threading.Event()

    @contextlib.asynccontextmanager
    async def running(self, app: ASGIApp) -> AsyncGenerator[None]:
        self._due = time.monotonic() + BEAT_SECONDS
        beating = asyncio.create_task(self._beat())
        loop = (threading.get_ident(),)
        watching = threading.Thread(target=self._watch, args=loop, name="bedplate-watchdog", daemon=True)
        watching.start()
        try:
            yield
        finally:
            self._over.set()
            beating.cancel()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(max(0.0, self._due - time.monotonic()))
            current_time = time.monotonic()
            self.lags.observe(max(0.0, current_time - self._due))
            self._due = current_time + BEAT_SECONDS

    def _watch(self, loop_thread: int) -> None:
        while not self._over.wait(BEAT_SECONDS):
            due, current_time = self._due, time.monotonic()
            late = current_time - due
            if late <= LATE_SECONDS or due == self._reported_due:
                continue
            self._reported_due = due
            if current_time < self._quiet_until:
                self._suppressed += 1
                continue
            suppressed = f" ({self._suppressed} more times since the last such message)" if self._suppressed else ""
            self._quiet_until, self._suppressed = current_time + QUIET_SECONDS, 0
            log.warning("the event loop is %.2f s late%s; it is at:\n%s", late, suppressed, _stack_of(loop_thread))

    def collect(self) -> Iterable[Metric]:
        return [self.lags.family(name) for name in NAMES]


def _stack_of(thread: int) -> str:
    """The thread's current stack, outermost frame first, without the values of variables."""
    frame = sys._current_frames().get(thread)  # pyright: ignore[reportPrivateUsage] (the documented way)
    if frame is None:
        return "(its thread has ended)"
    if frame.f_code.co_filename == selectors.__file__:
        return "  its wait for work, which other work on this machine kept from ending"
    return "".join(traceback.format_stack(frame)).rstrip()


PREFIX = "bedplate:"
FALLBACK_LABEL = "other"
MAX_MODELS = 100
"""Names with series of their own; what is served under further ones is counted as `other`."""

_METHODS = frozenset(("GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS"))
_FIRST_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)
_GAP_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)
_TOTAL_BOUNDS = (0.05, 0.1, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 240.0, 480.0)


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    server: ServerState = request.app.state.server
    if server.guard.has_keys and not server.config.metrics.public:
        await server.guard.refresh()
        server.guard.identify(request.headers).need_admin()
    return Response(generate_latest(server.part(Metrics).registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)


class Metrics(Collector):
    """The counters and histograms of one application, fed by its calls (`finished`) and requests (`watch`)."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._models: set[str] = set()
        self._prompt = _Counter("prompt_tokens", "Prompt tokens of answered requests.")
        self._generated = _Counter("generation_tokens", "Tokens generated for answered requests.")
        self._cost = _Counter("request_cost_usd", "Dollars that answered requests cost, at the set price.")
        unread, unanswered = "unanswered_prompt_tokens", "unanswered_generation_tokens"
        self._unanswered_prompt = _Counter(unread, "Prompt tokens read for requests that were not answered.")
        self._unanswered_generated = _Counter(unanswered, "Tokens generated for requests that were not answered.")
        reasons = ("model_name", "finished_reason")
        self._success = _Counter("request_success", "Answered choices, by why they ended.", *reasons)
        self._errors = _Counter("request_errors", "Requests answered with an error.", "model_name", "code")
        self._http = _Counter("http_requests", "HTTP requests of clients.", "route", "method", "status")
        self._first, self._token, self._whole, self._queued = (
            _Histogram(PREFIX + name, text, bounds, "model_name")
            for name, text, bounds in (
                ("time_to_first_token_seconds", "From queued to the first token.", _FIRST_BOUNDS),
                ("inter_token_latency_seconds", "Between tokens: a reply's mean gap, once for each gap.", _GAP_BOUNDS),
                ("e2e_request_latency_seconds", "From the request to the end of its answer.", _TOTAL_BOUNDS),
                ("request_queue_time_seconds", "From queued to the first forward pass.", _FIRST_BOUNDS),
            )
        )
        self._families = (
            *(self._prompt, self._generated, self._cost, self._unanswered_prompt, self._unanswered_generated),
            *(self._success, self._errors, self._http),
            *(self._first, self._token, self._whole, self._queued),
        )
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)

    def _label(self, model: str) -> str:
        if model not in self._models and len(self._models) < MAX_MODELS:
            self._models.add(model)
        return model if model in self._models else FALLBACK_LABEL

    def finished(self, call: FinishedCall) -> None:
        model = self._label(call.served.name)
        prompt, generated = tokens_of(call.request, call.results)
        self._prompt.add(model, amount=prompt)
        self._generated.add(model, amount=generated)
        if call.cost_usd is not None:
            self._cost.add(model, amount=call.cost_usd)
        for answer in call.answers:
            self._success.add(model, answer.finish_reason)
        for result in call.results:
            timing, tokens = result.timing, result.usage.completion_tokens
            self._queued.observe(timing.queued, model)
            self._first.observe(timing.first, model)
            if tokens > 1:
                self._token.observe((timing.total - timing.first) / (tokens - 1), model, times=tokens - 1)
        self._whole.observe(call.seconds, model)

    def unanswered(self, call: UnansweredCall) -> None:
        """Counts the tokens of a call that was not answered."""
        model = self._label(call.model)
        self._unanswered_prompt.add(model, amount=call.prompt_tokens)
        self._unanswered_generated.add(model, amount=call.completion_tokens)

    def watch(self, exchange: Exchange) -> None:
        """Counts a client's HTTP request. Rows of batches are none, but their errors count; copies to a shadow are
        nobody's, and the route counts them."""
        if isinstance(exchange.origin, SilentObserver):
            return
        method = exchange.method if exchange.method in _METHODS else FALLBACK_LABEL
        if exchange.origin is None:
            self._http.add(exchange.route or FALLBACK_LABEL, method, str(exchange.status))
        code = exchange.facts.get("error")
        if code is not None:
            model = exchange.facts.get("model")
            self._errors.add("" if model is None else self._label(model), str(code))

    def collect(self) -> Iterable[Metric]:
        yield from self._engines()
        for family in self._families:
            yield family.family()
        version = GaugeMetricFamily(PREFIX + "build_info", "What runs here.", labels=("version",))
        version.add_metric((__version__,), 1)
        yield version

    def _engines(self) -> Iterable[Metric]:
        rows: list[tuple[type[GaugeMetricFamily | CounterMetricFamily], str, str]] = [
            (GaugeMetricFamily, "num_requests_running", "Requests that are being computed."),
            (GaugeMetricFamily, "num_requests_waiting", "Requests that are queued."),
            (GaugeMetricFamily, "kv_cache_usage_perc", "How full the prefix cache is; 1 is full."),
            (GaugeMetricFamily, "engine_up", "1 while the engine's thread runs and its step is not overdue."),
            (CounterMetricFamily, "prefix_cache_queries", "Prompt tokens looked up in the prefix cache."),
            (CounterMetricFamily, "prefix_cache_hits", "Prompt tokens found there."),
            (CounterMetricFamily, "num_preemptions", "Requests put back to be computed again."),
            (CounterMetricFamily, "engine_steps", "Steps of the engine."),
            (CounterMetricFamily, "engine_step_seconds", "Seconds spent in them."),
        ]
        families = [family(PREFIX + name, text, labels=("model_name",)) for family, name, text in rows]
        # a base has its label once it is registered
        for engine in () if self._state.registry.loading else self._state.registry.engines:
            label, stats = (self._state.registry.label(engine),), engine.stats()
            free = stats.cache_capacity_bytes
            full = (stats.cache_bytes - stats.cache_pinned_bytes) / free if free else 0.0
            up = engine.alive and not engine.stalled(self._state.config.stall_seconds)
            values = (stats.running, stats.waiting, full, float(up), stats.prefix_queries, stats.prefix_hits)
            values += (stats.preemptions, stats.steps, stats.step_seconds)
            for family, value in zip(families, values, strict=True):
                family.add_metric(label, value)
        yield from families


# What the conventions call the operations of our endpoints; others keep their name.
_OPERATIONS = {"completions": "text_completion"}
_NANO = 1_000_000_000
CLOSE_SECONDS = 2.0
"""How long the last spans may take to be sent. The library itself waits and tries again for much longer."""


class Telemetry:
    """A watcher of requests that makes spans, and a service that sends the last ones at the end.

    exporter: instead of the one over HTTP that the configuration names. UsageError where the library is missing.
    """

    def __init__(self, config: TelemetryConfig, exporter: SpanExporter | None = None) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ALWAYS_ON
        except ModuleNotFoundError as error:
            message = f"`telemetry` is configured, but the package {error.name} is missing; install bedplate[telemetry]"
            raise UsageError(message) from error
        sender = exporter or OTLPSpanExporter(endpoint=config.endpoint)
        # A provider of its own: nothing global is set, so that it can live beside an application's.
        # Every call has its span: by default a client's `traceparent` could say that its calls are not recorded.
        self._provider = TracerProvider(
            sampler=ALWAYS_ON, resource=Resource.create({"service.name": config.service_name}), shutdown_on_exit=False
        )
        self._endpoint = config.endpoint
        self._provider.add_span_processor(BatchSpanProcessor(sender))
        self._tracer = self._provider.get_tracer("bedplate.serving")

    def watch(self, exchange: Exchange) -> None:
        """Makes the span of a model call; requests that name no model have none."""
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        facts = exchange.facts
        if "model" not in facts:
            return
        operation = _OPERATIONS.get(str(facts["endpoint"]), str(facts["endpoint"]))
        carrier = {} if exchange.traceparent is None else {"traceparent": exchange.traceparent}
        span = self._tracer.start_span(
            f"{operation} {facts['model']}",
            context=TraceContextTextMapPropagator().extract(carrier),
            kind=SpanKind.SERVER,
            start_time=int(exchange.began * _NANO),
            attributes=_attributes(exchange, operation),
        )
        error = facts.get("error")
        if error is not None:
            span.set_attribute("error.type", str(error))
            span.set_status(Status(StatusCode.ERROR, str(error)))
        span.end(end_time=int((exchange.began + exchange.seconds) * _NANO))

    @contextlib.asynccontextmanager
    async def running(self, app: ASGIApp) -> AsyncGenerator[None]:
        """Sends what is left when the server ends, within `CLOSE_SECONDS`."""
        try:
            yield
        finally:
            closed = asyncio.wrap_future(in_daemon_thread(self._provider.shutdown, "bedplate-telemetry"))
            if not (await asyncio.wait([closed], timeout=CLOSE_SECONDS))[0]:
                closed.cancel()
                log.warning("the last spans are lost: %s did not take them in %g s", self._endpoint, CLOSE_SECONDS)


def _attributes(exchange: Exchange, operation: str) -> dict[str, Any]:
    facts = exchange.facts
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "bedplate",
        "gen_ai.request.model": facts["model"],
        "gen_ai.response.model": facts["model"],
        "gen_ai.usage.input_tokens": facts.get("prompt"),
        "gen_ai.usage.output_tokens": facts.get("completion"),
        "gen_ai.response.finish_reasons": tuple(facts["finish"].split(",")) if facts.get("finish") else None,
        "http.request.method": exchange.method,
        "http.route": exchange.route,
        "http.response.status_code": exchange.status,
        "bedplate.request_id": exchange.id,
        "bedplate.key": facts.get("key"),
        "bedplate.tenant": facts.get("tenant"),
        "bedplate.cost_usd": facts.get("cost_usd"),
        "bedplate.queued_ms": facts.get("queued_ms"),
        "bedplate.ttft_ms": facts.get("ttft_ms"),
    }
    return {name: value for name, value in attributes.items() if value not in (None, "")}
