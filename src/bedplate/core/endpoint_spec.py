"""A model behind an OpenAI-compatible API, as files name it; and the kinds of its fields, for files that name some."""

from __future__ import annotations

import ipaddress
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from bedplate.core.config import Strict
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


def _address(url: str) -> str:
    try:
        api_address(url)
    except UsageError as error:
        raise ValueError(error.message) from None
    return url


ApiUrl = Annotated[str, AfterValidator(_address)]
ModelName = Annotated[str, Field(min_length=1)]
KeyVariable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
"""The environment variable that holds a key; a key itself is written into no file."""
Silence = Annotated[float, Field(gt=0)]
"""Seconds without a byte after which an answer is given up."""
Concurrency = Annotated[int, Field(ge=1, le=256)]
"""Rows that are asked at once."""
Retries = Annotated[int, Field(ge=0, le=20)]
"""How often a request is sent again after a failure that may pass."""


class EndpointSpec(Strict):
    """Where a model is and how it is asked. logprobs: ask for a label's likelihood, where the server offers it."""

    url: ApiUrl
    model: ModelName
    api_key_env: KeyVariable | None = None
    timeout_s: Silence = 60.0
    concurrency: Concurrency = 8
    retries: Retries = 4
    logprobs: bool = True
