"""Which JSON schemas a model's output can be held to, and the checks that decide it.

A keyword is either enforced or refused by its name; nothing is ignored silently. Reference: JSON Schema 2020-12,
validation vocabulary.

`schema_form` is the text in which a model that is held to a schema writes a value: properties in the schema's own order
(further ones after them), without white space.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from graphlib import CycleError, TopologicalSorter
from typing import Any, cast

from bedplate.core.errors import RequestError
from bedplate.core.json import load_json

INVALID = "invalid_grammar"
SOURCE_BYTES = 256 * 1024
DEPTH = 64
NODES = 5_000
ROUNDS = 20
MULTIPLES = 1_000
"""Sum over all `multipleOf`: an automaton of so many states checks them."""

SHOWN = 200
"""Characters of a place that a message names."""
PROPERTIES = 450
"""The most properties of one object: any of them may come next, and each is an item in the parser's row."""
EXPANSION = 20_000
"""Size of a regular expression with its counted repetitions written out."""

# No place is looked at twice: a class gives nothing back, and the first without an end ends the search.
_PATTERN = re.compile(r"\\.|\[(?:\\.|[^\]\\])*+\]|\{(\d++)(?:,(\d*+))?\}|\((?:\?[^)(:=!<>]*+[:>])?|.", re.DOTALL)
_TYPES = ("string", "number", "integer", "boolean", "null", "array", "object")
_MARKS = ("deprecated", "readOnly", "writeOnly", "discriminator")
ANNOTATIONS = frozenset(("$comment", "$schema", "title", "description", "default", "examples", *_MARKS))
_IN_PLACE = ("anyOf", "oneOf", "allOf")
_SINGLE_SCHEMAS = ("items", "additionalProperties")
_LISTS = (*_IN_PLACE, "prefixItems")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_TEXTS = ("pattern", "format", "$ref")
_ENFORCED = frozenset(
    (*_SINGLE_SCHEMAS, *_LISTS, *_MAPS, *_COUNTS, *_NUMBERS, *_TEXTS, "type", "enum", "const", "required")
)

Schema = Mapping[str, Any] | bool


def parse_schema(source: str) -> Schema:
    """A schema from JSON text, checked. RequestError (code invalid_grammar) says what is wrong and where."""
    size = len(source.encode("utf-8", "surrogatepass"))
    if size > SOURCE_BYTES:
        raise _error(f"the JSON schema has {size:,} bytes; at most {SOURCE_BYTES:,} are accepted")
    try:
        schema = load_json(source, repeated=None)
    except ValueError as error:
        raise _error(f"the JSON schema cannot be read: {error}") from None
    check_schema(schema)
    return schema


def check_schema(schema: Any) -> None:
    """Raises RequestError (code invalid_grammar) for a schema that is malformed, too large, refers to what is not in
    it, uses a keyword that is not enforced, that no finite value satisfies, or that asks of a value what it asks
    without end (2020-12 core, 9.4.1)."""
    multiples, targets, places = Decimal(0), dict[str, Any](), set[int]()
    in_place_schemas = dict[int, list[Any]]()
    for number, (location, node, depth) in enumerate(_nodes(schema)):
        if number >= NODES:
            raise _error(f"the JSON schema has more than {NODES:,} subschemas")
        if depth > DEPTH:
            raise _error(f"the JSON schema is nested deeper than {DEPTH} levels")
        places.add(id(node))
        if isinstance(node, bool):
            continue
        if not isinstance(node, Mapping):
            raise _error(f"{_at(location)} must be a schema (an object or a boolean), not {_type_text(node)}")
        _check_keywords(node, location)
        if "multipleOf" in node:
            multiples += _digits(node["multipleOf"])
        if "$ref" in node:
            targets[node["$ref"]] = _target(schema, node["$ref"], location)
        in_place_schemas[id(node)] = [subschema for key in _IN_PLACE for subschema in node.get(key, ())]
        in_place_schemas[id(node)] += [targets[node["$ref"]]] if "$ref" in node else []
    stray = next((reference for reference, node in targets.items() if id(node) not in places), None)
    if stray is not None:
        raise _error(f"$ref {stray[:100]!r} points at what is not a schema")
    if multiples > MULTIPLES:
        raise _error(f"the multipleOf values of the JSON schema add up to more than {MULTIPLES:,}; that is too costly")
    if not _Finite(targets).is_satisfiable(schema):
        raise _error("no finite value satisfies the JSON schema: what it requires contains itself without end")
    try:
        TopologicalSorter({place: map(id, subschemas) for place, subschemas in in_place_schemas.items()}).prepare()
    except CycleError:
        problem = "a $ref of the JSON schema leads back to itself for the same value; checking would not end"
        raise _error(problem) from None


def _nodes(schema: Any) -> Iterator[tuple[str, Any, int]]:
    """Every subschema with its place and depth; stops going down where a node is no object."""
    waiting: list[tuple[str, Any, int]] = [("", schema, 0)]
    while waiting:
        location, node, depth = waiting.pop()
        yield location, node, depth
        if not isinstance(node, Mapping) or depth > DEPTH:
            continue
        for key, value in node.items():
            inner = _below(location, key)
            if key in _SINGLE_SCHEMAS:
                waiting.append((inner, value, depth + 1))
            elif key in _LISTS and isinstance(value, list):
                waiting += [(f"{inner}[{i}]", subschema, depth + 1) for i, subschema in enumerate(value)]
            elif key in _MAPS and isinstance(value, Mapping):
                waiting += [(_below(inner, name), subschema, depth + 1) for name, subschema in value.items()]


def _check_keywords(node: Mapping[str, Any], location: str) -> None:
    for key, value in node.items():
        place = _at(f"{location}.{key}" if location else key)
        if key in ANNOTATIONS:
            continue
        if key not in _ENFORCED:
            raise _error(f"{place}: the JSON schema keyword {key!r} is not supported; leave it out")
        if key in _LISTS and not (isinstance(value, list) and value):
            raise _error(f"{place} must be a list of at least one schema")
        if key in _MAPS and not isinstance(value, Mapping):
            raise _error(f"{place} must be an object of schemas, not {_type_text(value)}")
        if key in _TEXTS and not isinstance(value, str):
            raise _error(f"{place} must be a string, not {_type_text(value)}")
        if key == "pattern" and isinstance(value, str):
            check_pattern(value, place)
        if key == "properties" and len(value) > PROPERTIES:
            raise _error(f"{place} has {len(value):,} properties; at most {PROPERTIES} are accepted")
        if key == "items" and isinstance(value, list):
            raise _error(f"{place} is a list; give one schema, or use prefixItems")
        if key in _COUNTS and not (type(value) is int and value >= 0):
            raise _error(f"{place} must be a whole number of at least 0, not {repr(value)[:SHOWN]}")
        if key in _NUMBERS:
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise _error(f"{place} must be a number, not {_type_text(value)}")
            if not -sys.float_info.max <= value <= sys.float_info.max:
                raise _error(f"{place} is larger than any number that a 64-bit float holds")
            if key == "multipleOf" and value <= 0:
                raise _error(f"{place} must be more than 0")
        if key == "enum" and not (isinstance(value, list) and value):
            raise _error(f"{place} must be a list of at least one value")
        if key == "type":
            names = value if isinstance(value, list) else [value]
            if not names or any(name not in _TYPES for name in names):
                raise _error(f"{place} is {repr(value)[:SHOWN]}; the types are {', '.join(_TYPES)}")
        if key == "required" and not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
            raise _error(f"{place} must be a list of property names")


def _target(root: Any, reference: str, location: str) -> Any:
    """What a `$ref` points at."""
    if reference != "#" and not reference.startswith("#/"):
        raise _error(
            f"{_at(location)}: $ref {reference[:100]!r} points outside the schema, and nothing is fetched; only '#' "
            "and '#/…' are supported"
        )
    node = root
    for part in reference[2:].split("/") if len(reference) > 1 else ():
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, Mapping) and name in node:
            node = node[name]
        elif isinstance(node, list) and name.isdecimal() and int(name) < len(node):
            node = node[int(name)]
        else:
            raise _error(f"{_at(location)}: $ref {reference[:100]!r} points at nothing")
    return node


def check_pattern(pattern: str, place: str) -> None:
    """Raises RequestError (code invalid_grammar) for a regular expression whose counted repetitions, written out, are
    too long: `(a{1000}){1000}`. Whether it is well formed is seen when it is compiled."""
    sizes, last = [0], 0  # of each open group, and of the latest atom
    for match in _PATTERN.finditer(pattern):
        text = match.group()
        if text == "[":
            raise _error(f"{place}: a class of the regular expression, begun at character {match.start()}, has no end")
        if match.group(1) is not None:
            low, high = int(match.group(1)[:9]), int((match.group(2) or "0")[:9])
            sizes[-1] += last * (max(low, high, 1) - 1)
            last *= max(low, high, 1)
        elif text.startswith("("):
            sizes.append(0)
        elif text == ")" and len(sizes) > 1:
            last = sizes.pop()
            sizes[-1] += last
        elif text not in "|*+?^$":
            last = 1
            sizes[-1] += 1
        if sizes[-1] > EXPANSION:
            raise _error(
                f"{place}: the regular expression {pattern[:60]!r} is longer than {EXPANSION:,} with its counted "
                "repetitions written out; use smaller counts"
            )


class _Finite:
    """Which schemas a value that ends may satisfy: the least fixed point over the references."""

    def __init__(self, targets: Mapping[str, Any]) -> None:
        self._targets = targets
        self._finite_ids: set[int] = set()
        self._verdicts: dict[int, bool] = {}

    def is_satisfiable(self, schema: Any) -> bool:
        for _ in range(ROUNDS):
            previous_count = len(self._finite_ids)
            self._verdicts.clear()
            try:
                if self._node(schema):
                    return True
            except RecursionError:
                break
            if len(self._finite_ids) == previous_count:
                return False
        raise _error("the references of the JSON schema are too entangled to check")

    def _node(self, node: Any) -> bool:
        """Schemas that are being looked at count as having no value: what needs them to be finite is not."""
        place = id(node)
        if place in self._finite_ids:
            return True
        if place not in self._verdicts:
            self._verdicts[place] = False
            self._verdicts[place] = self._look(node)
            if self._verdicts[place]:
                self._finite_ids.add(place)
        return self._verdicts[place]

    def _look(self, node: Any) -> bool:
        if not isinstance(node, Mapping) or "enum" in node or "const" in node:
            return True
        if "$ref" in node and not self._node(self._targets[node["$ref"]]):
            return False
        if not all(self._node(subschema) for subschema in node.get("allOf", ())):
            return False
        for key in ("anyOf", "oneOf"):
            if key in node and not any(self._node(subschema) for subschema in node[key]):
                return False
        types = node.get("type", _TYPES)
        types = (types,) if isinstance(types, str) else types
        if any(name not in {"array", "object"} for name in types):
            return True
        min_items, items = node.get("minItems", 0), node.get("prefixItems", [])
        needed = [*items[:min_items], *([node["items"]] if min_items > len(items) and "items" in node else [])]
        if "array" in types and all(map(self._node, needed)):
            return True
        properties = node.get("properties", {})
        needed = [properties[name] for name in node.get("required", ()) if name in properties]
        return "object" in types and all(map(self._node, needed))


def _digits(value: float) -> Decimal:
    """The multiple without its power of ten: what the automaton counts."""
    sign, digits, _ = Decimal(str(value)).normalize().as_tuple()
    return Decimal((sign, digits, 0))


def _type_text(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _below(location: str, key: str) -> str:
    """A place's name, no longer than it is shown: there are thousands of places, and keys of any length."""
    return (f"{location}.{key[: SHOWN + 1]}" if location else key)[: SHOWN + 1]


def _at(location: str) -> str:
    return (location if len(location) <= SHOWN else location[:SHOWN] + "…") or "the JSON schema"


def _error(message: str) -> RequestError:
    return RequestError(message, param="grammar", code=INVALID)


_DEEPEST = 8
"""Schemas within each other that `type_words` tells of."""


def schema_form(schema: Schema, value: Any) -> str:
    """`value` as JSON text with its properties in the order of `schema`. Where subschemas are alternatives, the first
    that fits the value decides."""
    text = json.dumps(_ordered(schema, schema, value), ensure_ascii=False, separators=(",", ":"))
    # the one control character that JSON allows as it is, and the grammars do not
    return text.replace("\x7f", "\\u007f")


def schema_fields(schema: Schema) -> list[tuple[str, str, str]]:
    """The properties of an object's schema: name, type in a few words, description (may be empty). [] for others."""
    nodes = {name: (inner, resolved(schema, inner)) for name, inner in _properties(schema, schema).items()}
    return [
        (name, type_words(schema, inner), "" if isinstance(node, bool) else str(node.get("description", "")))
        for name, (inner, node) in nodes.items()
    ]


def type_words(root: Schema, schema: Schema) -> str:
    """What a value of the schema is: "string", "list of numbers", "one of "a", "b"", "object with x, y". What contains
    itself, or is nested deeply, ends in "…"."""
    return _words(root, schema, ())


def _words(root: Schema, schema: Schema, around: tuple[int, ...]) -> str:
    """around: the schemas that this one is told as a part of."""
    node = resolved(root, schema)
    if isinstance(node, bool):
        return "any value"
    if id(node) in around or len(around) == _DEEPEST:
        return "…"
    around = (*around, id(node))
    if "const" in node:
        return json.dumps(node["const"], ensure_ascii=False)
    if "enum" in node:
        return "one of " + ", ".join(json.dumps(value, ensure_ascii=False) for value in node["enum"])
    for word in ("anyOf", "oneOf"):
        if word in node:
            return " or ".join(dict.fromkeys(_words(root, branch, around) for branch in node[word]))
    declared_type: Any = node.get("type", "object" if "properties" in node else "any value")
    if isinstance(declared_type, list):
        type_names = cast("list[str]", declared_type)
        return " or ".join(_words(root, {**node, "type": type_name}, around) for type_name in type_names)
    if declared_type == "array" and "items" in node:
        return f"list of {_plural(_words(root, node['items'], around))}"
    if declared_type == "object" and node.get("properties"):
        return "object with " + ", ".join(node["properties"])
    names = {"array": "list", "integer": "whole number", "boolean": "true or false"}
    return names.get(declared_type, declared_type)


def labels_rules(labels: Sequence[str]) -> str:
    """A grammar in Lark's notation: a JSON list of any of the labels, each at most once, in their order. Two rules for
    each label: what may follow while none before it was written (`first`), and after one was (`next`)."""
    rules = ['start: "[" first_0']
    for i, label in enumerate(labels):
        text = json.dumps(json.dumps(label, ensure_ascii=False), ensure_ascii=False)
        rules.append(f"first_{i}: {text} next_{i + 1} | first_{i + 1}")
        rules.append(f'next_{i}: "," {text} next_{i + 1} | next_{i + 1}')
    return "\n".join([*rules, f'first_{len(labels)}: "]"', f'next_{len(labels)}: "]"'])


def _plural(words: str) -> str:
    return f"{words}s" if words in ("string", "number", "whole number", "object", "list") else f"({words})"


def _ordered(root: Schema, schema: Schema, value: Any) -> Any:
    node = _chosen(root, schema, value)
    if isinstance(value, Mapping):
        properties = _properties(root, node)
        names = [name for name in properties if name in value]
        names += [name for name in value if name not in properties]
        default_schema = True if isinstance(node, bool) else node.get("additionalProperties", True)
        return {name: _ordered(root, properties.get(name, default_schema), value[name]) for name in names}
    if isinstance(value, Sequence) and not isinstance(value, str):
        first = [] if isinstance(node, bool) else node.get("prefixItems", [])
        default_schema = True if isinstance(node, bool) else node.get("items", True)
        return [_ordered(root, first[i] if i < len(first) else default_schema, child) for i, child in enumerate(value)]
    return value


def _properties(root: Schema, schema: Schema) -> Mapping[str, Schema]:
    node = resolved(root, schema)
    if isinstance(node, bool):
        return {}
    properties: dict[str, Schema] = dict(node.get("properties", {}))
    for part in node.get("allOf", ()):
        properties |= _properties(root, part)
    return properties


def _chosen(root: Schema, schema: Schema, value: Any) -> Schema:
    """The subschema that decides how the value is written."""
    from jsonschema import Draft202012Validator

    node = resolved(root, schema)
    if isinstance(node, bool):
        return node
    for word in ("anyOf", "oneOf"):
        for branch in node.get(word, ()):
            # references in the branch point into the whole schema
            if Draft202012Validator(root).evolve(schema=branch).is_valid(value):
                return _chosen(root, branch, value)
    return node


def resolved(root: Schema, schema: Schema) -> Schema:
    """The schema itself, where it is a reference into `root`. Checked schemas have no endless ones."""
    while not isinstance(schema, bool) and "$ref" in schema:
        schema = _target(root, schema["$ref"], "")
    return schema
