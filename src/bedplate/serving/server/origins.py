"""What web pages may do with this server. A page that a browser shows can send requests to this machine, and a name of
its site can be made to lead here: on a server without keys nothing else stands between the two.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from bedplate.serving.request.state import ServerState
from bedplate.serving.schemas.errors import StatusError

EXPOSED = (
    "x-request-id",
    "retry-after",
    *(
        f"x-ratelimit-{part}-{resource}"
        for part in ("limit", "remaining", "reset")
        for resource in ("requests", "tokens")
    ),
)
"""Headers of replies that pages of allowed origins may read."""


class Origins:
    """ASGI middleware: on a server without keys, refuses pages of other origins than its own and the allowed ones, and
    names that others could have pointed here."""

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
            raise StatusError(403, f"this server is not called {host[:100]!r}; ask it by its address", "unknown_host")
        if origin is not None and origin not in self._allowed and _host_of(origin) != host.lower():
            raise StatusError(
                403,
                f"pages of {origin[:100]!r} may not ask this server; its `cors` setting lists those that may",
                "cross_origin",
            )

    def _is_ours(self, host: str) -> bool:
        """Addresses, the configured name, and names without a dot, which nobody else can own."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:  # a bracket without its other half
            return False
        if "." not in name or name == self._host:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _host_of(origin: str) -> str | None:
    """Name and port of an origin; None for what is none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None
