"""Validates the lines of a batch's input file before the first one is answered."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from bedplate.core.errors import RequestError
from bedplate.serving.schemas.strict_json import parse_json

MAX_ERRORS = 100
MAX_ID = 512
_FIELDS = ("custom_id", "method", "url", "body")


@dataclass
class Checked:
    """rows: (line number from 1, custom_id, body as JSON). errors: as the batch object lists them."""

    rows: list[tuple[int, str, str]] = field(default_factory=list[tuple[int, str, str]])
    errors: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


def check_lines(lines: Iterable[bytes], endpoint: str, most_rows: int, most_bytes: int) -> Checked:
    """Every line of the file. After MAX_ERRORS errors the rest is only counted, and the last error says how many."""
    checked, line_numbers, extra_errors = Checked(), {}, 0
    for number, line in enumerate(_split(lines), start=1):
        if not line.strip():
            continue
        if len(checked.rows) == most_rows:
            checked.errors.append(_error(number, f"a batch has at most {most_rows:,} rows", None, "too_many_rows"))
            break
        try:
            custom_id, body = _row(line, endpoint, most_bytes)
            if custom_id in line_numbers:
                raise RequestError(
                    f"the custom_id {custom_id[:80]!r} is that of line {line_numbers[custom_id]} too",
                    param="custom_id",
                    code="duplicate_custom_id",
                )
        except RequestError as error:
            if len(checked.errors) < MAX_ERRORS:
                checked.errors.append(_error(number, error.message, error.param, error.code))
            else:
                extra_errors += 1
            continue
        line_numbers[custom_id] = number
        checked.rows.append((number, custom_id, json.dumps(body, ensure_ascii=True, allow_nan=False)))
    if extra_errors:
        checked.errors.append(_error(None, f"{extra_errors:,} more lines have errors", None, "more_errors"))
    if not checked.rows and not checked.errors:
        checked.errors.append(_error(None, "the file has no rows", None, "empty_file"))
    return checked


def _split(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Without the byte-order mark that some editors write."""
    for number, line in enumerate(lines):
        yield line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line


def _row(line: bytes, endpoint: str, most_bytes: int) -> tuple[str, dict[str, Any]]:
    """custom_id and body of one line. RequestError."""
    if len(line) > most_bytes:
        raise RequestError(f"the line has more than {most_bytes:,} bytes", code="line_too_large")
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


def _error(line: int | None, message: str, param: str | None, code: str) -> dict[str, Any]:
    return {"code": code, "line": line, "message": message, "param": param}
