"""The grammar of arguments that are written as literals (`calls.literals`): a JSON schema as rules in Lark's notation.

Where the notation writes JSON for a value, the library's own rules of the schema hold it. What can be told in neither
way is refused by the keyword's name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from bedplate.text.calls.call_formats import Literals
from bedplate.text.calls.call_writing import Literal, in_order
from bedplate.text.calls.literals import is_plain_key
from bedplate.text.json_form import resolved
from bedplate.text.json_schema import ANNOTATIONS

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
    declared: Any = node.get("type", list(_TYPES))
    types: Sequence[str] = [declared] if isinstance(declared, str) else declared
    typed = any(
        isinstance(value, _TYPES[type_name])
        for type_name in types
        if isinstance(value, bool) is (type_name == "boolean")
    )
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
                return " | ".join(list(self._alternatives(node)))
            except Unwritable:
                if self._written.bare:
                    raise
                return self._json(node)

        return self._shared(f"node {id(node)}", right)

    def _alternatives(self, node: Mapping[str, Any]) -> Iterator[str]:
        """The alternatives of one schema."""
        keywords = node.keys() - ANNOTATIONS - _DEFINITIONS
        if keywords & {"enum", "const"}:
            self._check(keywords - {"enum", "const", "type"})
            listed = [candidate for candidate in node.get("enum", [node.get("const")]) if _fits(candidate, node)]
            self._check(set() if listed else keywords)
            for constant in listed:
                yield self._spell(Literal(self._written).value(constant))
                if isinstance(constant, str) and not self._written.bare and _SINGLE_INSIDE.fullmatch(constant):
                    yield self._spell(f"'{constant}'")
            return
        if "anyOf" in keywords:
            self._check(keywords - {"anyOf"})
            for branch in node["anyOf"]:
                yield self._value(branch)
            return
        declared: Any = node.get("type", "object" if "properties" in node else ())
        types: Sequence[str] = [declared] if isinstance(declared, str) else declared
        self._check(keywords - {"type"}.union(*(_KEYWORDS[name] for name in types)))
        for type_name in types:
            yield self._rule_of_type(type_name, node)

    def _check(self, odd: Sequence[str] | set[str] | frozenset[str]) -> None:
        if odd:
            raise Unwritable(min(odd))

    def _rule_of_type(self, type_name: str, node: Mapping[str, Any]) -> str:
        true, false, null = (self._spell(word) for word in self._written.words)
        if type_name == "boolean":
            return f"({true} | {false})"
        if type_name == "null":
            return null
        if type_name == "string":
            return self._text()
        if type_name == "array":
            return self._array(node)
        if type_name == "object":
            colon = self._written.equals if self._written.bare else ": "
            return f'"{{" {self._object(node, colon, self._key_of)} "}}"'
        return self._rule(
            as_json({**{key: node[key] for key in _KEYWORDS[type_name] if key in node}, "type": type_name})
        )

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
        item_rule, separator = self._value(node.get("items", True)), self._spell(self._written.separator)
        min_items, max_items = node.get("minItems", 0), node.get("maxItems")
        if max_items is not None and max_items < min_items:
            raise Unwritable(f"minItems {min_items} above maxItems {max_items}")
        if max_items == 0:
            return '"[" "]"'
        count = (
            "*"
            if min_items < 2 and max_items is None
            else f"{{{max(min_items - 1, 0)},{'' if max_items is None else max_items - 1}}}"
        )
        repeats = f"({separator} {item_rule}){count}"
        inside = f"{item_rule} {repeats}"
        return f'"[" {inside} "]"' if min_items else f'"[" ({inside})? "]"'

    def _any(self) -> str:
        def right() -> str:
            return " | ".join(self._rule_of_type(type_name, {}) for type_name in _KEYWORDS if type_name != "integer")

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
        separator = self._spell(self._written.separator)
        first, after = '""', '""'  # what may follow while none was written, and after one was
        for key in reversed(in_order(properties, self._written)):
            member = f"{spelled(key)} {self._spell(equals)} {self._value(properties[key])}"
            tail = self._rule(f"{separator} {member} {after}" + ("" if key in required else f" | {after}"))
            first = self._rule(f"{member} {after}" + ("" if key in required else f" | {first}"))
            after = tail
        return first

    def _free(self, values: Any, equals: str) -> str:
        """Members of any name."""
        if values is False:
            return '""'
        plain = self._written.bare or equals == self._written.equals
        key = self._shared("key", lambda: "/[A-Za-z_][A-Za-z0-9_]*/") if plain else self._text()
        member = f"{key} {self._spell(equals)} {self._value(values)}"
        return f"({member} ({self._spell(self._written.separator)} {member})*)?"
