"""JSON as the standard has it: no NaN, no repeated keys, no bottomless nesting."""

from __future__ import annotations

import json
import math
from typing import Any

from bedplate.core.errors import RequestError

MAX_DEPTH = 64


def parse_json(content: bytes | str) -> Any:
    """JSON without NaN, infinities, repeated keys or deep nesting. Raises RequestError."""
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        parsed = json.loads(text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is not UTF-8 at byte {error.start}", code="invalid_json") from None
    except RecursionError:
        raise _too_deep() from None
    except json.JSONDecodeError as error:
        raise RequestError(
            f"not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}", code="invalid_json"
        ) from None
    except ValueError:  # Python refuses integers of more than some thousand digits
        raise RequestError("not valid JSON: a number has too many digits", code="invalid_json") from None
    _check_depth(parsed)
    return parsed


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> RequestError:
    return RequestError(f"the JSON is nested deeper than {MAX_DEPTH} levels", code="invalid_json")


def _refuse(name: str) -> Any:
    raise RequestError(f"{name} is no JSON number", code="invalid_json")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise RequestError("a number is too large", code="invalid_json")
    return number


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise RequestError(f"the field {twice!r} is given twice", param=twice, code="invalid_json")
    return found


def dump_json(value: Any) -> bytes:
    """JSON as UTF-8. Lone surrogates, which only a quoted request can hold, become escapes."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(
        "utf-8", "backslashreplace"
    )
