"""Translates clients' JSON schemas into JSON Schema 2020-12: words of other dialects become words that are enforced.

`nullable` is OpenAPI 3.0's; `$id` names a schema and changes nothing in one that refers to nothing else; `uniqueItems`
holds where few lists are possible, which are then written out. Reference: JSON Schema 2020-12, core 8.2.1 and
validation 6.4.3; the OpenAPI Specification 3.0.3, "nullable".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import permutations
from math import perm
from typing import Any

LISTS, LISTS_IN_ALL = 100, 1000
"""So many lists of different items are written out, at one place and in a whole schema."""

_SCHEMAS = frozenset(("items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames"))
_LISTS_OF_SCHEMAS = frozenset(("anyOf", "oneOf", "allOf", "prefixItems"))
_MAPS_OF_SCHEMAS = frozenset(("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"))


def as_held(schema: Any, *, strict: bool = True) -> Any:
    """The schema that asks the same in the words that can be enforced. strict: `uniqueItems` that cannot be held is
    left for the check that refuses it; else it is a wish, as the API has it of schemas that are not strict. ValueError
    for `nullable` where it says nothing."""
    if not isinstance(schema, Mapping):
        return schema
    name = schema.get("$id")
    return _Writer(strict, name.rstrip("#") if isinstance(name, str) else None).node(schema, root=True)


class _Writer:
    def __init__(self, strict: bool, name: str | None) -> None:
        self._strict, self._name, self._list_budget = strict, name, LISTS_IN_ALL

    def node(self, node: Any, *, root: bool = False) -> Any:
        """Depth is bounded by that of the request's JSON."""
        if not isinstance(node, Mapping):
            return node
        rewritten = {key: self._inner(key, value) for key, value in node.items()}
        if isinstance(rewritten.get("$id"), str) and (root or not _refers(node)):
            del rewritten["$id"]
        reference = rewritten.get("$ref")
        if self._name and isinstance(reference, str) and reference.startswith(f"{self._name}#"):
            rewritten["$ref"] = reference[len(self._name) :]
        if isinstance(rewritten.get("nullable"), bool):
            _nullable(rewritten)
        if isinstance(rewritten.get("uniqueItems"), bool):
            return self._unique(rewritten)
        return rewritten

    def _inner(self, key: str, value: Any) -> Any:
        if key in _SCHEMAS:
            return self.node(value)
        if key in _LISTS_OF_SCHEMAS and isinstance(value, list):
            return [self.node(schema) for schema in value]
        if key in _MAPS_OF_SCHEMAS and isinstance(value, Mapping):
            return {name: self.node(schema) for name, schema in value.items()}
        return value

    def _unique(self, node: dict[str, Any]) -> dict[str, Any]:
        if not node.pop("uniqueItems"):
            return node
        max_items = node.get("maxItems")
        if type(max_items) is int and max_items <= 1:
            return node
        lists = _lists(node) if self._list_budget > 0 else None
        if lists is not None:
            self._list_budget -= len(lists)
            remaining_keywords = {key: value for key, value in node.items() if key not in _OF_LISTS}
            return {**remaining_keywords, "anyOf": lists}
        return {**node, "uniqueItems": True} if self._strict else node


_OF_LISTS = frozenset(("type", "items", "minItems", "maxItems"))
_UNSUPPORTED_KEYWORDS = frozenset(
    ("prefixItems", "contains", "anyOf", "oneOf", "allOf", "not", "enum", "const", "$ref")
)


def _lists(node: Mapping[str, Any]) -> list[Any] | None:
    """Every list of different items, each as a schema; None where these are too many, or more than lists is meant."""
    values, min_items, max_items = _values(node.get("items")), node.get("minItems", 0), node.get("maxItems")
    if values is None or node.get("type") != "array" or node.keys() & _UNSUPPORTED_KEYWORDS:
        return None
    max_items = len(values) if max_items is None else max_items
    if type(min_items) is not int or type(max_items) is not int:
        return None
    max_items = min(max_items, len(values))
    if (
        sum(perm(len(values), count) for count in range(max(min_items, 0), min(max_items, LISTS) + 1)) > LISTS
        or min_items > max_items
    ):
        return None
    return [
        {"type": "array", "prefixItems": [{"const": value} for value in chosen], "items": False, "minItems": count}
        if count
        else {"type": "array", "maxItems": 0}
        for count in range(max(min_items, 0), max_items + 1)
        for chosen in permutations(values, count)
    ]


def _values(item_schema: Any) -> list[Any] | None:
    """The values that an item may have, where they are listed and a few."""
    if not isinstance(item_schema, Mapping):
        return None
    listed = item_schema.get("enum")
    if item_schema.get("type") == "boolean" and listed is None:
        return [False, True]
    if (
        not isinstance(listed, list)
        or len(listed) > LISTS
        or item_schema.keys() - {"enum", "type", "title", "description"}
    ):
        return None
    if "type" in item_schema and not (
        item_schema["type"] == "string" and all(isinstance(value, str) for value in listed)
    ):
        return None
    texts = {json.dumps(value, sort_keys=True) for value in listed}
    return listed if len(texts) == len(listed) else None


def _nullable(node: dict[str, Any]) -> None:
    if not node.pop("nullable"):
        return
    types = node.get("type")
    if not isinstance(types, str | list):
        raise ValueError('nullable has no effect without a type beside it; use anyOf with {"type": "null"}')
    types = [types] if isinstance(types, str) else types
    node["type"] = types if "null" in types else [*types, "null"]


def _refers(node: Any) -> bool:
    """Whether a reference stands in it, which another name would lead elsewhere."""
    if isinstance(node, Mapping):
        return "$ref" in node or any(map(_refers, node.values()))
    return isinstance(node, list) and any(map(_refers, node))
