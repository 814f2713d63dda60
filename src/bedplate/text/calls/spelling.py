"""Texts and JSON in the notation of llguidance's grammars."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_SPACED = {"item_separator": ", ", "key_separator": ": "}


def as_json(schema: Any, spacing: Mapping[str, str] = _SPACED) -> str:
    """A rule's right side: JSON of the schema."""
    options = {"whitespace_flexible": False, **spacing}
    return f"%json {json.dumps({**schema, 'x-guidance': options})}"


class Spelling:
    """Texts in the grammar's notation. Special tokens are no text for it, and stand there by their numbers."""

    def __init__(self, marks: Mapping[str, int]) -> None:
        self._marks = marks
        longest = sorted(marks, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, longest)) + ")") if marks else None

    def __call__(self, text: str) -> str:
        parts = [text] if self._split is None else self._split.split(text)
        return " ".join(
            f"<[{self._marks[part]}]>" if part in self._marks else json.dumps(part, ensure_ascii=False)
            for part in parts
            if part
        )

    def after_text(self, name: str, mark: str, text: str = "TEXT") -> str:
        """A rule for any text up to a mark, and the mark."""
        if mark in self._marks:
            return f"{name}: {text} {self(mark)}"
        return f"{name}[lazy]: {text} {self(mark)}"
