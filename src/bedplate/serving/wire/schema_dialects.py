"""Schemas as clients write them, as JSON Schema 2020-12: what other dialects have a word for is said in the words that
are enforced, where these can say it.

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
        self._strict, self._name, self._left = strict, name, LISTS_IN_ALL

    def node(self, node: Any, *, root: bool = False) -> Any:
        """Depth is bounded by that of the request's JSON."""
        if not isinstance(node, Mapping):
            return node
        found = {key: self._inner(key, value) for key, value in node.items()}
        if isinstance(found.get("$id"), str) and (root or not _refers(node)):
            del found["$id"]
        reference = found.get("$ref")
        if self._name and isinstance(reference, str) and reference.startswith(f"{self._name}#"):
            found["$ref"] = reference[len(self._name) :]
        if isinstance(found.get("nullable"), bool):
            _nullable(found)
        if isinstance(found.get("uniqueItems"), bool):
            return self._unique(found)
        return found

    def _inner(self, key: str, value: Any) -> Any:
        if key in _SCHEMAS:
            return self.node(value)
        if key in _LISTS_OF_SCHEMAS and isinstance(value, list):
            return [self.node(one) for one in value]
        if key in _MAPS_OF_SCHEMAS and isinstance(value, Mapping):
            return {name: self.node(one) for name, one in value.items()}
        return value

    def _unique(self, node: dict[str, Any]) -> dict[str, Any]:
        if not node.pop("uniqueItems"):
            return node
        most = node.get("maxItems")
        if type(most) is int and most <= 1:
            return node
        lists = _lists(node) if self._left > 0 else None
        if lists is not None:
            self._left -= len(lists)
            rest = {key: value for key, value in node.items() if key not in _OF_LISTS}
            return {**rest, "anyOf": lists}
        return {**node, "uniqueItems": True} if self._strict else node


_OF_LISTS = frozenset(("type", "items", "minItems", "maxItems"))
_OTHER = frozenset(("prefixItems", "contains", "anyOf", "oneOf", "allOf", "not", "enum", "const", "$ref"))


def _lists(node: Mapping[str, Any]) -> list[Any] | None:
    """Every list of different items, each as a schema; None where these are too many, or more than lists is meant."""
    values, least, most = _values(node.get("items")), node.get("minItems", 0), node.get("maxItems")
    if values is None or node.get("type") != "array" or node.keys() & _OTHER:
        return None
    most = len(values) if most is None else most
    if type(least) is not int or type(most) is not int:
        return None
    most = min(most, len(values))
    if sum(perm(len(values), count) for count in range(max(least, 0), min(most, LISTS) + 1)) > LISTS or least > most:
        return None
    return [
        {"type": "array", "prefixItems": [{"const": one} for one in chosen], "items": False, "minItems": count}
        if count
        else {"type": "array", "maxItems": 0}
        for count in range(max(least, 0), most + 1)
        for chosen in permutations(values, count)
    ]


def _values(items: Any) -> list[Any] | None:
    """The values that an item may have, where they are listed and a few."""
    if not isinstance(items, Mapping):
        return None
    listed = items.get("enum")
    if items.get("type") == "boolean" and listed is None:
        return [False, True]
    if not isinstance(listed, list) or len(listed) > LISTS or items.keys() - {"enum", "type", "title", "description"}:
        return None
    if "type" in items and not (items["type"] == "string" and all(isinstance(one, str) for one in listed)):
        return None
    texts = {json.dumps(one, sort_keys=True) for one in listed}
    return listed if len(texts) == len(listed) else None


def _nullable(node: dict[str, Any]) -> None:
    if not node.pop("nullable"):
        return
    kinds = node.get("type")
    if not isinstance(kinds, str | list):
        raise ValueError('nullable has no effect without a type beside it; use anyOf with {"type": "null"}')
    kinds = [kinds] if isinstance(kinds, str) else kinds
    node["type"] = kinds if "null" in kinds else [*kinds, "null"]


def _refers(node: Any) -> bool:
    """Whether a reference stands in it, which another name would lead elsewhere."""
    if isinstance(node, Mapping):
        return "$ref" in node or any(map(_refers, node.values()))
    return isinstance(node, list) and any(map(_refers, node))
