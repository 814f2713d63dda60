"""Reads request bodies within a size and a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.requests import ClientDisconnect, Request

from bedplate.core.errors import RequestError
from bedplate.serving.schemas.http_errors import ClientGone, StatusError
from bedplate.serving.schemas.strict_json import parse_json

READ_SECONDS = 60.0
# A client that is cut off while it still writes sees a broken pipe and no answer: a bit more is read and dropped.
_DRAINED_BYTES = 16 * 1024 * 1024


def parse_object(content: bytes) -> dict[str, Any]:
    """A body as a JSON object. RequestError 400 for anything else."""
    parsed = parse_json(content)
    if not isinstance(parsed, dict):
        raise RequestError("the body must be a JSON object", code="invalid_json")
    return parsed


async def read_bytes(request: Request, limit: int, on_bytes: Callable[[int], None] = lambda _: None) -> bytes:
    """The body as it was sent. StatusError 413 over `limit` bytes, 408 when it is too slow. on_bytes: told of the bytes
    that are kept, as they come; what it raises ends the reading."""
    try:
        async with asyncio.timeout(READ_SECONDS):
            return await _read(request, limit, on_bytes)
    except TimeoutError:
        raise StatusError(408, f"the body did not arrive within {READ_SECONDS:g} s", "request_timeout") from None
    except ClientDisconnect:
        raise ClientGone from None


async def _read(request: Request, limit: int, on_bytes: Callable[[int], None]) -> bytes:
    content, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= limit:
            on_bytes(len(chunk))
            content += chunk
        elif size > limit + _DRAINED_BYTES:
            break
    if size > limit:
        raise StatusError(413, f"the body is larger than {limit:,} bytes", "request_too_large")
    return bytes(content)
