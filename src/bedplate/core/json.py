"""JSON as the standard has it: no NaN, no repeated keys, no bottomless nesting."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import partial
from typing import Any


class JsonRuleError(ValueError):
    """A rule is broken that Python's own reader does not know. key: the one that an object has twice."""

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


def load_json(
    content: str | bytes,
    *,
    depth: int | None = None,
    finite: bool = False,
    repeated: str | None = "a key appears twice in one object: {!r}",
) -> Any:
    """The value of JSON text. depth: how many levels it may have; finite: whether a number that no float holds is
    refused; repeated: what is said of a key that is given twice, None: its last value counts. Raises JsonRuleError,
    UnicodeDecodeError, JSONDecodeError, or another ValueError where an integer has thousands of digits."""
    number = _finite if finite else None
    try:
        value = json.loads(
            content if isinstance(content, str) else content.decode("utf-8"),
            object_pairs_hook=None if repeated is None else partial(_without_duplicates, repeated),
            parse_constant=_no_constant,
            parse_float=number,
        )
    except RecursionError:
        raise JsonRuleError("nested too deeply" if depth is None else f"nested deeper than {depth} levels") from None
    if depth is not None and deeper(value, depth):
        raise JsonRuleError(f"nested deeper than {depth} levels")
    return value


def load_model_json(content: str) -> Any:
    """JSON of a model's files, as programs write it: NaN and infinities are numbers. Raises JsonRuleError for nesting
    that is too deep and for a key that one object gives two values, and JSONDecodeError."""
    try:
        return json.loads(content, object_pairs_hook=_agreeing)
    except RecursionError:
        raise JsonRuleError("nested too deeply") from None


def _agreeing(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key, value in pairs:
        if key in mapping and mapping[key] != value:
            raise JsonRuleError(f"a key has two values in one object: {key!r}", key)
        mapping[key] = value
    return mapping


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """A nested object's values by their dotted keys, as JSON would return them: a tuple and a list are the same."""
    if isinstance(value, Mapping) and value:
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{prefix}.{key}".strip(".")).items()}
    return {prefix: json.loads(json.dumps(value))}


def differences(before: Any, after: Any) -> dict[str, str]:
    """What differs between two nested objects, by dotted key, such as "256 before, 512 now"."""
    old, new = flat(before), flat(after)
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    return {key: f"{key}: {brief(old.get(key))} before, {brief(new.get(key))} now" for key in keys}


def brief(value: Any, max_chars: int = 60) -> str:
    """A value as JSON text of at most so many characters, for messages."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= max_chars else f"{text[: max_chars - 1]}…"


def _without_duplicates(message: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        unique_keys: set[str] = set()
        duplicate = next(key for key, _ in pairs if key in unique_keys or unique_keys.add(key))
        raise JsonRuleError(message.format(duplicate), duplicate)
    return mapping


def _no_constant(name: str) -> None:
    raise JsonRuleError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise JsonRuleError("a number is too large")
    return number


def plain_number(text: str) -> float | int:
    """A number in one form: 4.0 and 4 are one JSON number; beyond 2^53 a float no longer names one whole number."""
    number = _finite(text)
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def deeper(value: Any, depth: int) -> bool:
    """Whether a value has more levels of objects and lists than so many."""
    level = [value]
    for _ in range(depth + 1):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
    return bool(level)
