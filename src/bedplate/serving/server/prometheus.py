"""/metrics in Prometheus' text format, under vLLM's metric names with `bedplate:` for `vllm:`.

Everything is counted in the event loop as calls end; the engines' gauges are read when they are asked for, without
waiting for a step.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterable, Sequence

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.responses import PlainTextResponse, Response

from bedplate.core.version import __version__
from bedplate.serving.request.lifecycle import tokens_of
from bedplate.serving.request.observers import Exchange, FinishedCall, UnansweredCall
from bedplate.serving.request.server_state import ServerState

router = APIRouter()

PREFIX = "bedplate:"
FALLBACK_LABEL = "other"
MAX_MODELS = 100
"""Names with series of their own; what is served under further ones is counted as `other`."""

_METHODS = frozenset(("GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS"))
_FIRST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)
_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)
_WHOLE = (0.05, 0.1, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 240.0, 480.0)


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    server: ServerState = request.app.state.server
    if server.guard.has_keys and not server.config.metrics.public:
        server.guard.identify(request.headers).need_admin()
    return Response(generate_latest(server.part(Metrics).registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)


class _Counter:
    def __init__(self, name: str, text: str, labels: Sequence[str]) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._totals: defaultdict[tuple[str, ...], float] = defaultdict(float)

    def add(self, *labels: str, amount: float = 1.0) -> None:
        self._totals[labels] += amount

    def family(self) -> Metric:
        family = CounterMetricFamily(PREFIX + self._name, self._text, labels=self._labels)
        for labels, total in self._totals.items():
            family.add_metric(labels, total)
        return family


class _Histogram:
    """By model. An observation may count more than once: the mean gap between a reply's tokens once for each gap."""

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self._name, self._text, self._bounds = name, text, bounds
        self._counts: dict[str, list[int]] = {}
        self._sums: defaultdict[str, float] = defaultdict(float)

    def observe(self, model: str, value: float, times: int = 1) -> None:
        counts = self._counts.setdefault(model, [0] * (len(self._bounds) + 1))
        counts[bisect.bisect_left(self._bounds, value)] += times
        self._sums[model] += value * times

    def family(self) -> Metric:
        family = HistogramMetricFamily(PREFIX + self._name, self._text, labels=("model_name",))
        for model, counts in self._counts.items():
            buckets: list[tuple[str, float]] = []
            total = 0
            for bound, count in zip((*map(str, self._bounds), "+Inf"), counts, strict=True):
                total += count
                buckets.append((bound, total))
            family.add_metric((model,), buckets, self._sums[model])
        return family


class Metrics(Collector):
    """What one application counts: an observer of its calls, a watcher of its requests."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._models: set[str] = set()
        by_model = ("model_name",)
        self._prompt = _Counter("prompt_tokens", "Prompt tokens of answered requests.", by_model)
        self._generated = _Counter("generation_tokens", "Tokens generated for answered requests.", by_model)
        self._cost = _Counter("request_cost_usd", "Dollars that answered requests cost, at the set price.", by_model)
        self._unanswered_prompt = _Counter(
            "unanswered_prompt_tokens", "Prompt tokens read for requests that were not answered.", by_model
        )
        self._unanswered_generated = _Counter(
            "unanswered_generation_tokens", "Tokens generated for requests that were not answered.", by_model
        )
        self._success = _Counter(
            "request_success", "Answered choices, by why they ended.", ("model_name", "finished_reason")
        )
        self._errors = _Counter("request_errors", "Requests answered with an error.", ("model_name", "code"))
        self._http = _Counter("http_requests", "HTTP requests.", ("route", "method", "status"))
        self._first = _Histogram("time_to_first_token_seconds", "From queued to the first token.", _FIRST)
        self._token = _Histogram(
            "inter_token_latency_seconds", "Between tokens: a reply's mean gap, once for each gap.", _TOKEN
        )
        self._whole = _Histogram("e2e_request_latency_seconds", "From the request to the end of its answer.", _WHOLE)
        self._queued = _Histogram("request_queue_time_seconds", "From queued to the first forward pass.", _FIRST)
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
        """Counts a call that was answered."""
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
            self._queued.observe(model, timing.queued)
            self._first.observe(model, timing.first)
            if tokens > 1:
                self._token.observe(model, (timing.total - timing.first) / (tokens - 1), tokens - 1)
        self._whole.observe(model, call.seconds)

    def unanswered(self, call: UnansweredCall) -> None:
        """Counts what was computed for a call that was not answered."""
        model = self._label(call.model)
        self._unanswered_prompt.add(model, amount=call.prompt_tokens)
        self._unanswered_generated.add(model, amount=call.completion_tokens)

    def watch(self, exchange: Exchange) -> None:
        """Counts an HTTP request."""
        method = exchange.method if exchange.method in _METHODS else FALLBACK_LABEL
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
        gauges = {
            name: GaugeMetricFamily(PREFIX + name, text, labels=("model_name",))
            for name, text in (
                ("num_requests_running", "Requests that are being computed."),
                ("num_requests_waiting", "Requests that are queued."),
                ("kv_cache_usage_perc", "How full the prefix cache is; 1 is full."),
                ("engine_up", "1 while the engine's thread runs and its step is not overdue."),
            )
        }
        counters = {
            name: CounterMetricFamily(PREFIX + name, text, labels=("model_name",))
            for name, text in (
                ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache."),
                ("prefix_cache_hits", "Prompt tokens found there."),
                ("num_preemptions", "Requests put back to be computed again."),
                ("engine_steps", "Steps of the engine."),
                ("engine_step_seconds", "Seconds spent in them."),
            )
        }
        for engine in self._state.registry.engines:
            label, stats = (self._state.registry.label(engine),), engine.stats()
            free = stats.cache_capacity_bytes
            full = (stats.cache_bytes - stats.cache_pinned_bytes) / free if free else 0.0
            up = engine.alive and not engine.stalled(self._state.config.stall_seconds)
            gauges["num_requests_running"].add_metric(label, stats.running)
            gauges["num_requests_waiting"].add_metric(label, stats.waiting)
            gauges["kv_cache_usage_perc"].add_metric(label, full)
            gauges["engine_up"].add_metric(label, float(up))
            counters["prefix_cache_queries"].add_metric(label, stats.prefix_queries)
            counters["prefix_cache_hits"].add_metric(label, stats.prefix_hits)
            counters["num_preemptions"].add_metric(label, stats.preemptions)
            counters["engine_steps"].add_metric(label, stats.steps)
            counters["engine_step_seconds"].add_metric(label, stats.step_seconds)
        yield from gauges.values()
        yield from counters.values()
