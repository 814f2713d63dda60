"""Calls in the text of a format: what a template that shows no calls of earlier turns is given as their content."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bedplate.core.errors import RequestError
from bedplate.text.calls.call_formats import NAME, CallFormat, Literals


def written_calls(calls: Sequence[tuple[str, Any]], written: CallFormat, spell: Callable[[str], str] = str) -> str:
    """Calls (name and arguments) as a reply makes them. spell: how the format's own text is spelled, around the names
    and values that a caller may have chosen. RequestError for arguments without names where the format needs them."""
    parts: list[str] = []
    for number, (name, arguments) in enumerate(calls):
        before = written.separator
        if number == 0 or before is None:
            before = f"{written.gap if number else ''}{written.begin}{written.opening}"
        first, _, last = written.heads[0].partition(NAME)
        if not isinstance(arguments, Mapping) and (written.literals is not None or written.tags is not None):
            message = (
                f"the arguments of the call to {name!r} are no JSON object, and this model's calls name each of them"
            )
            raise RequestError(message, param="messages")
        parts += [spell(before + first), name, spell(last), _arguments(arguments, written, spell)]
        if number == len(calls) - 1 or written.separator is None:
            parts.append(spell(written.close))
    return "".join(parts)


def _arguments(arguments: Mapping[str, Any], written: CallFormat, spell: Callable[[str], str]) -> str:
    literals, tags = written.literals_behind(written.heads[0]), written.tags
    if literals is not None:
        members = Literal(literals, spell).members(arguments, literals.equals)
        return members + spell(literals.end)
    if tags is None:
        return json.dumps(arguments, ensure_ascii=False) + spell(written.tails[0])
    parts: list[str] = []
    for key, value in arguments.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        before, after = f"{tags.key[1]}{tags.value[0]}{tags.pad}", f"{tags.pad}{tags.value[1]}"
        parts += [spell(tags.key[0]), key, spell(before), text, spell(after)]
    return "".join([*parts, spell(tags.end)])


class Literal:
    """Values in a notation of literals."""

    def __init__(self, written: Literals, spell: Callable[[str], str] = str) -> None:
        self._written, self._spell = written, spell

    def members(self, values: Mapping[str, Any], equals: str) -> str:
        """Named values, without what stands around them. equals: behind a name."""
        plain = equals == self._written.equals
        ordered = in_order(values, self._written)
        members = [f"{key if plain else self.value(key)}{equals}{self.value(values[key])}" for key in ordered]
        return self._written.separator.join(members)

    def value(self, value: Any) -> str:
        written = self._written
        if isinstance(value, str):
            escaped = written.quote in ("'", '"')
            inner = json.dumps(value, ensure_ascii=False)[1:-1] if escaped else value
            return f"{self._spell(written.quote)}{inner}{self._spell(written.quote)}"
        if isinstance(value, Mapping):
            return "{" + self.members(value, written.equals if written.bare else ": ") + "}"
        if isinstance(value, Sequence):
            return "[" + written.separator.join(map(self.value, value)) + "]"
        if value is None or isinstance(value, bool):
            return written.words[2 if value is None else 0 if value else 1]
        return json.dumps(value)


def in_order(values: Mapping[str, Any], written: Literals) -> list[str]:
    """Names in the order in which they are written."""
    return sorted(values, key=str.lower) if written.ordered else list(values)
