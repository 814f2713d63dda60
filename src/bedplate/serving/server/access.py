"""Outermost ASGI middleware: `AccessLog` sets request ids, checks heads, answers uncaught errors and writes the access
log; `Origins` checks origins and host names on a server without keys."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import time
import uuid
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bedplate.core.errors import need_failure
from bedplate.serving.request.lifecycle import allowed_seconds
from bedplate.serving.request.server_state import Exchange, ServerState
from bedplate.serving.schemas import http_errors
from bedplate.serving.settings.redaction import is_address
from bedplate.serving.settings.server_config import FIELDS

log = logging.getLogger("bedplate.access")

# What proxies log for a request whose client went away.
CLIENT_GONE = 499
REQUEST_ID = "x-request-id"
PROBES = frozenset(("/health", "/ready"))
"""Paths that are answered at once, however many requests wait to begin."""

_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_SANE_CLIENT = re.compile(r"[A-Za-z0-9._:%\[\]-]{1,64}")
# A page of this server runs its own scripts only, is framed by nobody, and tells nobody where its reader came from.
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}


class AccessLog:
    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self._app, self._state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, start, status = time.time(), time.perf_counter(), 0
        request_headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        asked_id = request_headers.get(REQUEST_ID.encode(), "")
        request_id = asked_id if _SANE_ID.fullmatch(asked_id) else uuid.uuid4().hex
        client = (scope.get("client") or ("-",))[0]
        facts: dict[str, Any] = {}
        headers = {REQUEST_ID: request_id, "x-content-type-options": "nosniff"}
        scope[http_errors.ACCESS_FACTS], scope[http_errors.REPLY_HEADERS] = facts, headers
        scope[http_errors.ARRIVED] = time.monotonic()

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                reply = MutableHeaders(scope=message)
                reply.update(headers)
                if reply.get("content-type", "").startswith("text/html"):
                    for name, value in _PAGE_HEADERS.items():
                        reply.setdefault(name, value)
            await send(message)

        try:
            tenant = "" if scope["path"] in PROBES else self._caller(scope)
            if scope["path"] not in PROBES:
                await self._state.door.enter(tenant or client)
            self._check_head(scope)
            prepaid = await self._turn(tenant, scope) if tenant and http_errors.CALLER not in scope else 0.0
            answering = self._app(scope, receive, counted)
            await (self._state.pacing.metered(tenant, answering, prepaid) if tenant else answering)
        except http_errors.ClientGone:
            status = CLIENT_GONE
        except asyncio.CancelledError:
            http_errors.note_error(scope, http_errors.StoppingError.code)
            if not status:
                await http_errors.error_response(http_errors.StoppingError("the server is shutting down"))(
                    scope, receive, counted
                )
            # Only the server's end cancels a request, and this is its outermost frame: it has been answered.
        except BaseException as error:
            need_failure(error)
            http_errors.log_failure(error, self._state.outage)
            http_errors.note_failure(scope, error)
            if status:
                raise
            await http_errors.error_response(error)(scope, receive, counted)
        finally:
            exchange = Exchange(
                id=request_id,
                client=_shown(client),
                method=scope["method"],
                # As it was sent, percent-encoded: a decoded path could forge lines.
                path=(scope.get("raw_path") or b"").decode("ascii", "replace"),
                # The path template of the route that took the request.
                route=route.path if isinstance(route := scope.get("route"), Route) else "",
                status=status,
                began=began,
                seconds=time.perf_counter() - start,
                traceparent=request_headers.get(b"traceparent"),
                facts=facts,
                origin=scope.get(http_errors.ORIGIN),
            )
            for watch in (write_line, *self._state.watchers):
                watch(exchange)

    async def _turn(self, tenant: str, scope: Scope) -> float:
        """Waits for the tenant's turn, before anything is read. Returns the seconds paid ahead. LimitError where it
        does not come before the call's deadline."""
        pacing = self._state.pacing
        try:
            async with asyncio.timeout(
                allowed_seconds(Headers(scope=scope), self._state.config.limits.timeout_seconds)
            ):
                return await pacing.turn(tenant)
        except TimeoutError:
            message = "your calls take more than their share of this server, and the turn of this one did not come"
            advice = "send fewer at once, or allow more time"
            seconds = max(1.0, pacing.wait(tenant))
            raise http_errors.LimitError(f"{message} before its deadline; {advice}", seconds) from None

    def _caller(self, scope: Scope) -> str:
        """The tenant whose turn a request takes; "" where it has no right key: anybody can make up wrong ones."""
        with contextlib.suppress(http_errors.StatusError):
            return (scope.get(http_errors.CALLER) or self._state.guard.identify(Headers(scope=scope))).tenant
        return ""

    def _check_head(self, scope: Scope) -> None:
        limits, names = self._state.config.limits, {name for name, _ in scope["headers"]}
        if {b"content-length", b"transfer-encoding"} <= names:
            # Whoever stands before this server may have read the other one of them, and passed on two requests as one
            # (RFC 9112, 6.3).
            message = "the request says how long its body is in two ways; send content-length or transfer-encoding"
            raise http_errors.StatusError(400, message, "ambiguous_length", headers={"connection": "close"})
        if len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"") > limits.url_bytes:
            raise http_errors.StatusError(414, f"the address is longer than {limits.url_bytes:,} bytes", "url_too_long")
        if sum(len(name) + len(value) for name, value in scope["headers"]) > limits.header_bytes:
            raise http_errors.StatusError(
                431, f"the headers are larger than {limits.header_bytes:,} bytes", "headers_too_large"
            )


def _shown(client: str) -> str:
    """A client's address as the log has it: a proxy may pass on any text, which could forge a line."""
    return client if _SANE_CLIENT.fullmatch(client) else json.dumps(client[:64])


def write_line(exchange: Exchange) -> None:
    """The access log: one line, as text; its fields go along for formats that have them."""
    facts = {name: value for name, value in exchange.facts.items() if value not in ("", None)}
    shown = {name: json.dumps(value) if isinstance(value, dict | list) else value for name, value in facts.items()}
    fields = {
        "request_id": exchange.id,
        **{name: getattr(exchange, name) for name in ("client", "method", "path", "route", "status")},
        "ms": round(1000 * exchange.seconds, 1),
        **facts,
    }
    line = f"{exchange.client} {exchange.method} {exchange.path} {exchange.status} {1000 * exchange.seconds:.1f}ms"
    line += "".join(f" {name}={value}" for name, value in shown.items())
    log.info("%s id=%s", line, exchange.id, extra={FIELDS: fields})


_RATES = [f"x-ratelimit-{part}-{of}" for part in ("limit", "remaining", "reset") for of in ("requests", "tokens")]
EXPOSED_HEADERS = ("x-request-id", "retry-after", *_RATES)
"""Headers of replies that pages of allowed origins may read."""


class Origins:
    """ASGI middleware: a server without keys refuses pages of other origins, and names pointed here by others."""

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self._app = app
        self._checks = not state.guard.has_keys
        self._allowed = frozenset(state.config.cors)
        self._host = "" if state.config.open else state.config.host
        self._any_name = state.config.open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._checks and scope["type"] == "http":
            headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
            self._check(headers.get(b"host", ""), headers.get(b"origin"))
        await self._app(scope, receive, send)

    def _check(self, host: str, origin: str | None) -> None:
        if not self._any_name and not self._is_ours(host):
            raise http_errors.StatusError(
                403, f"this server is not called {host[:100]!r}; ask it by its address", "unknown_host"
            )
        if origin is not None and origin not in self._allowed and _host_of(origin) != host.lower():
            message = f"pages of {origin[:100]!r} may not ask this server; its `cors` setting lists those that may"
            raise http_errors.StatusError(403, message, "cross_origin")

    def _is_ours(self, host: str) -> bool:
        """Addresses, the configured name, and names without a dot, which nobody else can own."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:  # a bracket without its other half
            return False
        return "." not in name or name == self._host or is_address(name)


def _host_of(origin: str) -> str | None:
    """Name and port of an origin; None for what is none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None
