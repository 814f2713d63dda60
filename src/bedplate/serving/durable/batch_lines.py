"""Lines of batches: the rows of an input file, and the lines of the output and error files."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from bedplate.core.errors import RequestError
from bedplate.serving.request.server_state import SelfReply
from bedplate.serving.schemas.http_errors import shortened
from bedplate.serving.schemas.strict_json import parse_json

MAX_ERRORS = 100
MAX_ID = 512
ERROR_CHARACTERS, ERROR_PARAM_CHARACTERS = 300, 100
"""Longest message and parameter name of a line's error: they may quote the line, and a batch keeps many of them."""
PIECE_SECONDS, PIECE_BYTES = 0.05, 1024 * 1024
"""A piece of a file's rows takes about so long to check, or has about so many bytes."""
_FIELDS = ("custom_id", "method", "url", "body")

InputRow = tuple[int, str, str]
"""Line number from 1, custom_id, body as JSON."""


def check_lines(
    lines: Iterable[bytes], endpoint: str, max_rows: int, max_bytes: int, errors: list[dict[str, Any]]
) -> Iterator[list[InputRow]]:
    """The rows of a file in pieces, without those in which something is wrong; that is added to `errors`, as the batch
    object lists it. After MAX_ERRORS errors the rest is only counted, and the last error says how many."""
    line_numbers: dict[str, int] = {}
    extra_errors, piece, size, ends = 0, list[InputRow](), 0, time.monotonic() + PIECE_SECONDS
    for number, content in enumerate(lines, start=1):
        line = content.removeprefix(b"\xef\xbb\xbf") if number == 1 else content  # some editors mark the byte order
        if not line.strip():
            continue
        if len(line_numbers) == max_rows:
            errors.append(batch_error(number, f"a batch has at most {max_rows:,} rows", None, "too_many_rows"))
            break
        try:
            custom_id, body = _row(line, endpoint, max_bytes)
            if custom_id in line_numbers:
                message = f"the custom_id {custom_id[:80]!r} is that of line {line_numbers[custom_id]} too"
                raise RequestError(message, param="custom_id", code="duplicate_custom_id")
        except RequestError as error:
            if len(errors) < MAX_ERRORS:
                errors.append(batch_error(number, error.message, error.param, error.code))
            else:
                extra_errors += 1
        else:
            line_numbers[custom_id] = number
            piece.append((number, custom_id, json.dumps(body, ensure_ascii=True, allow_nan=False)))
            size += len(line)
        if size >= PIECE_BYTES or time.monotonic() >= ends:
            yield piece
            piece, size, ends = [], 0, time.monotonic() + PIECE_SECONDS
    if extra_errors:
        errors.append(batch_error(None, f"{extra_errors:,} more lines have errors", None, "more_errors"))
    if not line_numbers and not errors:
        errors.append(batch_error(None, "the file has no rows", None, "empty_file"))
    yield piece


def _row(line: bytes, endpoint: str, max_bytes: int) -> tuple[str, dict[str, Any]]:
    if len(line) > max_bytes:
        raise RequestError(f"the line has more than {max_bytes:,} bytes", code="line_too_large")
    row = parse_json(line)
    if not isinstance(row, dict):
        raise RequestError("each line must be a JSON object", code="invalid_json")
    for name in _FIELDS:
        if name not in row:
            raise RequestError(f"{name} is missing", param=name, code="missing_required_parameter")
    unknown = next((name for name in row if name not in _FIELDS), None)
    if unknown is not None:
        message = f"unknown field {unknown[:80]!r}; the fields are {', '.join(_FIELDS)}"
        raise RequestError(message, param=unknown[:80], code="unknown_parameter")
    custom_id, body = row["custom_id"], row["body"]
    if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= MAX_ID:
        raise RequestError(f"custom_id must be a text of 1 to {MAX_ID} characters", param="custom_id")
    if row["method"] != "POST":
        raise RequestError("method must be POST", param="method")
    if row["url"] != endpoint:
        raise RequestError(f"url must be the batch's endpoint, {endpoint}", param="url", code="mismatched_endpoint")
    if not isinstance(body, dict):
        raise RequestError("body must be a JSON object", param="body")
    if not isinstance(body.get("model"), str):
        raise RequestError("body.model must name a model", param="body.model", code="missing_required_parameter")
    if body.get("stream"):
        raise RequestError("body.stream: a batch's replies are whole; leave it out", param="body.stream")
    return custom_id, body


def batch_error(line: int | None, message: str, param: str | None, code: str) -> dict[str, Any]:
    """One error of a batch, with `line` None where it is none of one line."""
    param = None if param is None else shortened(param, ERROR_PARAM_CHARACTERS)
    return {"code": code, "line": line, "message": shortened(message, ERROR_CHARACTERS), "param": param}


_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]+")
_BODY = "\0"
"""Stands for a reply's body in its line; no JSON text holds it."""


def _escaped(match: re.Match[str]) -> str:
    return json.dumps(match[0])[1:-1]


def answered_line(custom_id: str, reply: SelfReply) -> str:
    """A line of the output or error file with a reply, whose JSON is put in as it is: reading and writing a large one
    would hold the interpreter for long."""
    content = reply.content.decode() if reply.content else "null"
    pieces = (content[start : start + PIECE_BYTES] for start in range(0, len(content), PIECE_BYTES))
    body = "".join(piece if piece.isascii() else _BEYOND_ASCII.sub(_escaped, piece) for piece in pieces)
    version = {} if reply.version is None else {"version": reply.version}
    response = {"status_code": reply.status, "request_id": f"req_{uuid.uuid4().hex}", **version, "body": _BODY}
    before, _, after = _line(custom_id, response=response).rpartition(json.dumps(_BODY))
    return f"{before}{body}{after}"


def failed_line(custom_id: str, code: str, message: str) -> str:
    """A line of the error file for a row that has no reply."""
    return _line(custom_id, error={"code": code, "message": message})


def unfinished_line(custom_id: str, status: str) -> str:
    """A line of the error file for a row that was not done before its batch ended in `status`."""
    why = "its time was over" if status == "expired" else "the batch was cancelled"
    return failed_line(custom_id, f"batch_{status}", f"this row was not done: {why}")


def _line(custom_id: str, **outcome: Any) -> str:
    line = {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": custom_id, "response": None, "error": None, **outcome}
    return json.dumps(line, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
