"""OpenTelemetry: one span per model call, with the gen_ai attributes of the semantic conventions."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp

from bedplate.core.errors import UsageError
from bedplate.serving.request.observers import Exchange
from bedplate.serving.settings.server_config import TelemetryConfig

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

# What the conventions call the operations of our endpoints; others keep their name.
_OPERATIONS = {"completions": "text_completion"}
_NANO = 1_000_000_000
CLOSE_SECONDS = 2.0
"""How long the last spans may take to be sent. The library itself waits and tries again for much longer."""

log = logging.getLogger("bedplate.serving")


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
            raise UsageError(
                f"`telemetry` is configured, but the package {error.name} is missing; install bedplate[telemetry]"
            ) from error
        sender = exporter or OTLPSpanExporter(endpoint=config.endpoint)
        # A provider of its own: nothing global is set, so that it can live beside an application's.
        # Every call has its span: by default a client's `traceparent` could say that its calls are not recorded.
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,
            resource=Resource.create({"service.name": config.service_name}),
            shutdown_on_exit=False,
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
            await self._close()

    async def _close(self) -> None:
        loop, closed = asyncio.get_running_loop(), asyncio.Event()

        def close() -> None:
            try:
                self._provider.shutdown()
            finally:
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    loop.call_soon_threadsafe(closed.set)

        threading.Thread(target=close, name="bedplate-telemetry", daemon=True).start()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await closed.wait()
        except TimeoutError:
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
