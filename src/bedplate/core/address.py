"""Addresses of servers, as users and files give them."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from bedplate.core.errors import UsageError


def api_address(url: str) -> str:
    """Where a server's API begins: "http://host:port" has it under "/v1". UsageError for what is no address, or holds a
    user's name or password, which would be stored and printed with it; neither is quoted."""
    try:
        parts = urlsplit(url)
        named = parts.username is not None or parts.password is not None
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        parts, named, valid = urlsplit(""), "@" in url, False
    if named:
        raise UsageError(
            "the server's address holds a user's name or password (before the @), and addresses are stored and "
            "printed; take it out, and give the key by the environment"
        )
    if not valid or parts.query or parts.fragment:
        shown = url.partition("?")[0].partition("#")[0]
        explanation = " with what follows the ? or #" if shown != url else ""
        raise UsageError(f"{shown!r}{explanation} is not a server's address; give one such as http://127.0.0.1:8000")
    path = parts.path.rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
