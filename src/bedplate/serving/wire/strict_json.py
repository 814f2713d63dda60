"""JSON of requests, read strictly, and of replies."""

from __future__ import annotations

import json
from typing import Any

from bedplate.core.errors import RequestError
from bedplate.core.json import JsonRuleError, load_json

MAX_DEPTH = 64


def parse_json(content: bytes | str) -> Any:
    """JSON without NaN, infinities, repeated keys or deep nesting. Raises RequestError."""
    try:
        return load_json(content, depth=MAX_DEPTH, finite=True, repeated="the field {!r} is given twice")
    except JsonRuleError as error:
        what = f"the JSON is {error}" if str(error).startswith("nested") else str(error)
        raise RequestError(what, param=error.key, code="invalid_json") from None
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is not UTF-8 at byte {error.start}", code="invalid_json") from None
    except json.JSONDecodeError as error:
        raise RequestError(
            f"not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}", code="invalid_json"
        ) from None
    except ValueError:  # Python refuses integers of more than some thousand digits
        raise RequestError("not valid JSON: a number has too many digits", code="invalid_json") from None


def dump_json(value: Any) -> bytes:
    """JSON as UTF-8. Lone surrogates, which only a quoted request can hold, become escapes."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(
        "utf-8", "backslashreplace"
    )
