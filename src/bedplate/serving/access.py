"""The outermost layer: one log line per request, without what was asked, and an answer to whatever nobody caught."""

from __future__ import annotations

import asyncio
import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bedplate.serving.errors import ClientGone, StoppingError, error_response, log_failure

log = logging.getLogger("bedplate.access")

# What proxies log for a request whose client went away.
CLIENT_GONE = 499
ACCESS_FACTS = "bedplate.access"
"""Key of the scope under which a route may put `name=value` facts for the log line."""


class AccessLog:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0
        facts: dict[str, object] = {}
        scope[ACCESS_FACTS] = facts

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, counted)
        except ClientGone:
            status = CLIENT_GONE
        except asyncio.CancelledError:
            if not status:
                await error_response(StoppingError("the server is shutting down"))(scope, receive, counted)
            # Only the server's end cancels a request, and this is its outermost frame: it has been answered.
        except Exception as error:
            log_failure(error)
            if status:
                raise
            await error_response(error)(scope, receive, counted)
        finally:
            seconds = time.perf_counter() - start
            client = (scope.get("client") or ("-",))[0]
            # As it was sent, percent-encoded: a decoded path could forge lines.
            path = (scope.get("raw_path") or b"").decode("ascii", "replace")
            said = "".join(f" {name}={value}" for name, value in facts.items())
            log.info("%s %s %s %s %.1fms%s", client, scope["method"], path, status, 1000 * seconds, said)
