"""Keys under which the layers of the server share facts in an ASGI scope."""

from __future__ import annotations

from starlette.types import Scope

ACCESS_FACTS = "bedplate.access"
"""Key of the scope under which a route may put facts for the log line, the metrics and the traces."""
REPLY_HEADERS = "bedplate.headers"
"""Key of the scope under which a route may put headers of its reply, whether it succeeds or not."""

CALLER = "bedplate.caller"
"""Key of the scope under which a call that the server makes to itself says in whose name."""
ORIGIN = "bedplate.origin"
"""Key of the scope under which such a call says what it is made for."""


def note_error(scope: Scope, code: str) -> None:
    """Says that the request failed, also where its status was sent before it did."""
    scope[ACCESS_FACTS]["error"] = code
