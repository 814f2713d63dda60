"""The grammar of arguments that are written as literals (`calls.literals`): a JSON schema as rules in Lark's notation.

Where the notation writes JSON for a value, the library's own rules of the schema hold it. What can be told in neither
way is refused by the keyword's name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from bedplate.text.calls.formats import Literals
from bedplate.text.calls.literals import is_plain_key
from bedplate.text.calls.spelling import Spelling, as_json
from bedplate.text.calls.writing import Literal, in_order
from bedplate.text.json_form import resolved
from bedplate.text.json_schema import ANNOTATIONS

_DEFINITIONS = frozenset(("$defs", "definitions"))
_KEYWORDS = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
    "string": set[str](),
    "boolean": set[str](),
    "null": set[str](),
}


_SINGLE = r"""/'([^'\\\x00-\x1f]|\\['"\\nrt])*'/"""
"""A text of Python's between single quotes."""
_SINGLE_INSIDE = re.compile(r"[^'\\\x00-\x1f]*")
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "integer": (int,),
    "number": (int, float),
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
}


class Unwritable(Exception):
    """The keyword or the parameter of a schema that cannot be held to in this notation."""


def _fits(value: Any, node: Mapping[str, Any]) -> bool:
    """Whether a listed value is of the schema's types, and its constant if it has one."""
    told: Any = node.get("type", list(_TYPES))
    kinds: Sequence[str] = [told] if isinstance(told, str) else told
    typed = any(isinstance(value, _TYPES[kind]) for kind in kinds if isinstance(value, bool) is (kind == "boolean"))
    return typed and value == node.get("const", value)


class LiteralRules:
    """Rules for one tool's arguments. prefix: of their names; root: the schema of them all."""

    def __init__(self, prefix: str, root: Mapping[str, Any], written: Literals, spell: Spelling) -> None:
        self._prefix, self._root, self._written, self._spell = prefix, root, written, spell
        self._names: dict[str, str] = {}
        self._json_words = written.words == ("true", "false", "null") and not written.bare
        self.rules: list[str] = []

    def arguments(self) -> str:
        """The rule of all arguments, with what ends them. Unwritable."""
        self._check(self._root.keys() - ANNOTATIONS - _DEFINITIONS - _KEYWORDS["object"] - {"type"})
        inside = self._object(self._root, self._written.equals, self._spell)
        return self._rule(f"{inside} {self._spell(self._written.end)}")

    # --- rules

    def _rule(self, right: str, key: str | None = None) -> str:
        name = f"{self._prefix}x{len(self._names)}"
        self._names[key or name] = name
        self.rules.append(f"{name}: {right}")
        return name

    def _shared(self, key: str, right: Callable[[], str]) -> str:
        """The rule under this key, made on first use; it may contain itself."""
        if key not in self._names:
            name = self._names[key] = f"{self._prefix}x{len(self._names)}"
            self.rules.append(f"{name}: {right()}")
        return self._names[key]

    def _json(self, schema: Mapping[str, Any]) -> str:
        return as_json({**schema, **{key: self._root[key] for key in _DEFINITIONS if key in self._root}})

    def _value(self, schema: Any) -> str:
        node = resolved(self._root, schema)
        if node is False:
            raise Unwritable("false")
        if node is True or not node.keys() - ANNOTATIONS:
            return self._rule(as_json({})) if self._json_words else self._any()

        def right() -> str:
            if self._json_words:
                return self._json(node)
            try:
                return " | ".join(list(self._ways(node)))
            except Unwritable:
                if self._written.bare:
                    raise
                return self._json(node)

        return self._shared(f"node {id(node)}", right)

    def _ways(self, node: Mapping[str, Any]) -> Iterator[str]:
        """The alternatives of one schema."""
        held = node.keys() - ANNOTATIONS - _DEFINITIONS
        if held & {"enum", "const"}:
            self._check(held - {"enum", "const", "type"})
            listed = [one for one in node.get("enum", [node.get("const")]) if _fits(one, node)]
            self._check(set() if listed else held)
            for one in listed:
                yield self._spell(Literal(self._written).value(one))
                if isinstance(one, str) and not self._written.bare and _SINGLE_INSIDE.fullmatch(one):
                    yield self._spell(f"'{one}'")
            return
        if "anyOf" in held:
            self._check(held - {"anyOf"})
            for one in node["anyOf"]:
                yield self._value(one)
            return
        told: Any = node.get("type", "object" if "properties" in node else ())
        kinds: Sequence[str] = [told] if isinstance(told, str) else told
        self._check(held - {"type"}.union(*(_KEYWORDS[kind] for kind in kinds)))
        for kind in kinds:
            yield self._kind(kind, node)

    def _check(self, odd: Sequence[str] | set[str] | frozenset[str]) -> None:
        if odd:
            raise Unwritable(min(odd))

    def _kind(self, kind: str, node: Mapping[str, Any]) -> str:
        true, false, null = (self._spell(word) for word in self._written.words)
        if kind == "boolean":
            return f"({true} | {false})"
        if kind == "null":
            return null
        if kind == "string":
            return self._text()
        if kind == "array":
            return self._array(node)
        if kind == "object":
            colon = self._written.equals if self._written.bare else ": "
            return f'"{{" {self._object(node, colon, self._key_of)} "}}"'
        return self._rule(as_json({**{key: node[key] for key in _KEYWORDS[kind] if key in node}, "type": kind}))

    def _key_of(self, key: str) -> str:
        return self._spell(key if self._written.bare else json.dumps(key, ensure_ascii=False))

    def _text(self) -> str:
        if not self._written.bare:
            double = self._shared("double", lambda: as_json({"type": "string"}))
            return self._shared("text", lambda: f"{double} | {_SINGLE}")
        quote = self._written.quote
        if "text" not in self._names:
            name = self._names["text"] = f"{self._prefix}x{len(self._names)}"
            self.rules.append(self._spell.after_text(f"{name}t", quote))
            self.rules.append(f"{name}: {self._spell(quote)} {name}t")
        return self._names["text"]

    def _array(self, node: Mapping[str, Any]) -> str:
        items, between = self._value(node.get("items", True)), self._spell(self._written.between)
        least, most = node.get("minItems", 0), node.get("maxItems")
        if most is not None and most < least:
            raise Unwritable(f"minItems {least} above maxItems {most}")
        if most == 0:
            return '"[" "]"'
        count = "*" if least < 2 and most is None else f"{{{max(least - 1, 0)},{'' if most is None else most - 1}}}"
        more = f"({between} {items}){count}"
        inside = f"{items} {more}"
        return f'"[" {inside} "]"' if least else f'"[" ({inside})? "]"'

    def _any(self) -> str:
        def right() -> str:
            return " | ".join(self._kind(kind, {}) for kind in _KEYWORDS if kind != "integer")

        return self._shared("any", right)

    def _object(self, node: Mapping[str, Any], equals: str, spelled: Callable[[str], str]) -> str:
        """The members of an object, in the schema's order or their names'; what is not required may be missing."""
        properties: Mapping[str, Any] = node.get("properties", {})
        plain = self._written.bare or equals == self._written.equals
        self._check({key for key in properties if plain and not is_plain_key(key, self._written)})
        required: Sequence[str] = node.get("required", ())
        self._check(set(required) - set(properties))
        if not properties:
            return self._free(node.get("additionalProperties", True), equals)
        if isinstance(node.get("additionalProperties"), Mapping):
            raise Unwritable("additionalProperties")
        between = self._spell(self._written.between)
        first, after = '""', '""'  # what may follow while none was written, and after one was
        for key in reversed(in_order(properties, self._written)):
            member = f"{spelled(key)} {self._spell(equals)} {self._value(properties[key])}"
            rest = self._rule(f"{between} {member} {after}" + ("" if key in required else f" | {after}"))
            first = self._rule(f"{member} {after}" + ("" if key in required else f" | {first}"))
            after = rest
        return first

    def _free(self, values: Any, equals: str) -> str:
        """Members of any name."""
        if values is False:
            return '""'
        plain = self._written.bare or equals == self._written.equals
        key = self._shared("key", lambda: "/[A-Za-z_][A-Za-z0-9_]*/") if plain else self._text()
        member = f"{key} {self._spell(equals)} {self._value(values)}"
        return f"({member} ({self._spell(self._written.between)} {member})*)?"
