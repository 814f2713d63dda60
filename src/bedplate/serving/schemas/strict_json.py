"""Strict parsing of JSON requests, and JSON replies."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from bedplate.core.errors import RequestError
from bedplate.core.json import JsonRuleError, load_json

MAX_DEPTH = 64
PIECE = 4096
"""Elements of a long list that are written at once."""
_ESCAPED_HALF = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_json(content: bytes | str) -> Any:
    """JSON without NaN, infinities, repeated keys, deep nesting or lone surrogates. Raises RequestError."""
    try:
        value = load_json(content, depth=MAX_DEPTH, finite=True, repeated="the field {!r} is given twice")
        if isinstance(content, str) or _ESCAPED_HALF.search(content):
            _need_text(value)
        return value
    except JsonRuleError as error:
        problem = f"the JSON is {error}" if str(error).startswith("nested") else str(error)
        raise RequestError(problem, param=error.key, code="invalid_json") from None
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is not UTF-8 at byte {error.start}", code="invalid_json") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise RequestError(f"not valid JSON: {error.msg} at {place}", code="invalid_json") from None
    except ValueError:  # Python refuses integers of more than some thousand digits
        raise RequestError("not valid JSON: a number has too many digits", code="invalid_json") from None


def _need_text(value: Any) -> None:
    """What cannot be written as UTF-8 could be neither kept nor passed on."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        message = f"the JSON holds the lone surrogate \\u{half:04x}, which is not valid text; remove it"
        raise RequestError(message, code="invalid_json") from None


@dataclass(frozen=True)
class Rows:
    """A JSON array whose elements are made while it is written: there may be more than should exist at once."""

    make: Callable[[], Iterable[Any]]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.make())


def dump_in_pieces(value: Any, levels: int = 5) -> Iterator[bytes]:
    """`dump_json` in pieces: the encoder holds the interpreter, and every other thread, until it is done."""
    if isinstance(value, Rows):
        before = b""
        yield b"["
        for text in map(dump_json, value):
            yield before + text
            before = b","
        yield b"]"
        return
    if isinstance(value, list) and len(value) > PIECE and (levels == 0 or not isinstance(value[0], dict | list)):
        for start in range(0, len(value), PIECE):
            yield (b"," if start else b"[") + dump_json(value[start : start + PIECE])[1:-1]
        yield b"]"
        return
    if levels == 0 or not isinstance(value, dict | list) or not value:
        yield dump_json(value)
        return
    fields: dict[str, Any] | None = value if isinstance(value, dict) else None
    before = b"[" if fields is None else b"{"
    for name, inner in enumerate(value) if fields is None else fields.items():
        yield before if fields is None else before + dump_json(str(name)) + b":"
        yield from dump_in_pieces(inner, levels - 1)
        before = b","
    yield b"]" if fields is None else b"}"


def dump_json(value: Any) -> bytes:
    """JSON as UTF-8. Lone surrogates, which only a quoted request can hold, become escapes."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_elements)
    return text.encode("utf-8", "backslashreplace")


def _elements(value: object) -> list[Any]:
    if isinstance(value, Rows):
        return list(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def large_json_response(content: Any, levels: int = 5) -> Response:
    """A JSON reply of any size, for a thread beside the loop. levels: as in `dump_in_pieces`."""
    return Response(b"".join(dump_in_pieces(content, levels)), media_type="application/json")


class JsonLinesResponse(Response):
    """A reply of one JSON value a line."""

    media_type = "application/jsonl"


def json_response(content: Any, status: int = 200) -> Response:
    return Response(dump_json(content), status, media_type="application/json")
