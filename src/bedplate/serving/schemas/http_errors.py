"""Translates every failure into the one error object: `{"error": {"message", "type", "param", "code"}}`.

What the caller did wrong is said in full; what went wrong here is logged and answered without details, so that no
stack trace or file path leaves the server.
"""

from __future__ import annotations

import logging
import math
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from bedplate.core.errors import (
    BedplateError,
    BusyError,
    DataError,
    DeadlineError,
    RequestError,
    TemplateError,
    UsageError,
)
from bedplate.core.files import DISK_FULL
from bedplate.serving.schemas.strict_json import dump_json

ACCESS_FACTS = "bedplate.access"
"""Key of the scope under which a route may put facts for the log line, the metrics and the traces."""
REPLY_HEADERS = "bedplate.headers"
"""Key of the scope under which a route may put headers of its reply, whether it succeeds or not."""

ARRIVED = "bedplate.arrived"
"""Key of the scope under which is when the request came (time.monotonic)."""
CALLER = "bedplate.caller"
"""Key of the scope under which a call that the server makes to itself says in whose name."""
ORIGIN = "bedplate.origin"
"""Key of the scope under which such a call says what it is made for."""


def note_error(scope: Scope, code: str) -> None:
    """Says that the request failed, also where its status was sent before it did."""
    scope[ACCESS_FACTS]["error"] = code


log = logging.getLogger("bedplate.serving")

RETRY_AFTER_SECONDS = 1
MESSAGE_CHARACTERS, PARAM_CHARACTERS = 2000, 200
"""Longest message and parameter name of one error object."""
# Errors that speak about the request. All others may hold paths or other internals.
_CALLERS_ERRORS = (RequestError, DataError, TemplateError, BusyError, DeadlineError)
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class StoppingError(BedplateError):
    status = 503
    code = "shutting_down"


class LoadingError(StoppingError):
    """The server is loading its models; like one that stops, it does not take this call now."""

    code = "loading"


class ClientGone(Exception):
    """The caller closed the connection; there is nobody to answer."""


class StatusError(RequestError):
    """A request that HTTP has its own status for (401, 403, 404, 405, 408, 413, 414, 422, 429, 431), with `headers`."""

    def __init__(
        self, status: int, message: str, code: str, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.status = status
        self.headers = dict(headers or {})
        self.facts: dict[str, str] = {}
        """Further fields of the access log."""


class LimitError(StatusError):
    """An API key asked too fast; it may ask again after some seconds."""

    def __init__(self, message: str, seconds: float, code: str = "rate_limit_exceeded") -> None:
        super().__init__(429, message, code, headers={"retry-after": str(math.ceil(seconds))})


def name_source(error: RequestError, source: str, limit: str = "max_tokens") -> None:
    """Replaces the engine's name of a parameter (prompt, input, max_tokens) with the request's."""
    if error.param in {"prompt", "input"}:
        error.param = source
    elif error.param == "max_tokens":
        error.param = limit


def error_object(error: BaseException) -> tuple[int, dict[str, Any]]:
    """HTTP status and error object of an exception."""
    if isinstance(error, (*_CALLERS_ERRORS, StoppingError)):
        status, message, code = error.status, error.message, error.code
        param = error.param if isinstance(error, RequestError) else None
    elif is_full(error):
        status, code, param = 507, "insufficient_storage", None
        message = "the server's disk is full, so this was not kept; try again later"
    else:
        status, code, param = 500, "internal_error", None
        message = "the server failed on this request; its log says why"
    message, param = shortened(message), None if param is None else shortened(param, PARAM_CHARACTERS)
    error_type = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return status, {"error": {"message": message, "type": error_type, "param": param, "code": code}}


def shortened(text: str, max_characters: int = MESSAGE_CHARACTERS) -> str:
    """The text without its middle where it is long: what it says of a request may hold much of that."""
    if len(text) <= max_characters:
        return text
    return f"{text[: max_characters * 2 // 3]} … {text[-max_characters // 3 :]}"


def is_full(error: BaseException) -> bool:
    """Whether the disk, or the share of it that this server may take, has no room left."""
    if isinstance(error, UsageError) and error.__cause__ is not None:  # `core.files.writable` made it of the system's
        return is_full(error.__cause__)
    if isinstance(error, OSError):
        return error.errno in DISK_FULL
    return isinstance(error, sqlite3.OperationalError) and "is full" in str(error)


OUTAGE_SECONDS = 60.0
"""A full disk that fails nothing for so long had room again."""


class DiskOutage:
    """Logs a full disk once, however much fails on it. Used from several threads."""

    def __init__(self) -> None:
        self._last, self._lock = -math.inf, threading.Lock()

    def covers(self, error: BaseException) -> bool:
        """Whether the error is a full disk's, which this logs: nobody else has to."""
        if not is_full(error):
            return False
        with self._lock:
            begins = time.monotonic() - self._last > OUTAGE_SECONDS
            self._last = time.monotonic()
        if begins:
            log.error("the disk is full, and nothing more is kept: %s; make room where the server has its state", error)
        return True


def note_failure(scope: Scope, error: BaseException) -> None:
    """Tells the access log what a failure is called, and what it says besides."""
    note_error(scope, error_object(error)[1]["error"]["code"])
    if isinstance(error, StatusError):
        scope[ACCESS_FACTS].update(error.facts)


ErrorShape = Callable[[BaseException], tuple[int, dict[str, Any]]]
"""Status and body of a failure, in some API's shape."""


def error_response(error: BaseException, shape: ErrorShape = error_object) -> Response:
    status, content = shape(error)
    headers = {"retry-after": str(RETRY_AFTER_SECONDS)} if status in {429, 503} else {}
    if isinstance(error, StatusError):
        headers |= error.headers
    return Response(dump_json(content), status, headers, media_type="application/json")


def log_failure(error: BaseException, outage: DiskOutage | None = None) -> None:
    """Writes what the reply does not say to the log."""
    if error_object(error)[0] in {500, 507} and not (outage and outage.covers(error)):
        log.error("a request failed: %s: %s", type(error).__name__, error, exc_info=error)


def add_error_handlers(app: FastAPI) -> None:
    """Answers every exception of a route, and of routing itself, with the error object."""
    app.add_exception_handler(BedplateError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_exception)


async def _on_error(request: Request, error: Exception) -> Response:
    log_failure(error, request.app.state.server.outage)
    note_failure(request.scope, error)
    return error_response(error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    named = {
        404: ("not_found", "there is no such route; the API is under /v1"),
        405: ("method_not_allowed", f"this route does not take {request.method}"),
    }
    code, message = named.get(status, ("invalid_request", "the request cannot be answered"))
    note_error(request.scope, code)
    return error_response(StatusError(status, message, code, headers=error.headers if status == 405 else None))
