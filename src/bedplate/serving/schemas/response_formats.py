"""`response_format` and the guided-decoding fields of other servers, as grammars.

Reference: the OpenAI API's structured outputs. The schema holds whether `strict` is set or not; a keyword that cannot
be enforced is refused. `guided_json`, `guided_regex`, `guided_choice`, `guided_grammar` and `structured_outputs` are
vLLM's names; grammars are in Lark's notation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import permutations
from math import perm
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from bedplate.core.errors import RequestError
from bedplate.inference.engine.requests import Grammar
from bedplate.serving.schemas.request_fields import RequestFields

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
        if lists is None:
            return {**node, "uniqueItems": True} if self._strict else node
        self._list_budget -= len(lists)
        return {**{key: value for key, value in node.items() if key not in _OF_LISTS}, "anyOf": lists}


_OF_LISTS = frozenset(("type", "items", "minItems", "maxItems"))
_UNSUPPORTED_KEYWORDS = {"prefixItems", "contains", "anyOf", "oneOf", "allOf", "not", "enum", "const", "$ref"}


def _lists(node: Mapping[str, Any]) -> list[Any] | None:
    """Every list of different items, each as a schema; None where these are too many, or more than lists is meant."""
    values, min_items, max_items = _values(node.get("items")), node.get("minItems", 0), node.get("maxItems")
    if values is None or node.get("type") != "array" or node.keys() & _UNSUPPORTED_KEYWORDS:
        return None
    max_items = len(values) if max_items is None else max_items
    if type(min_items) is not int or type(max_items) is not int:
        return None
    counts = range(max(min_items, 0), min(max_items, len(values)) + 1)
    if not counts or sum(perm(len(values), count) for count in counts[: LISTS + 1]) > LISTS:
        return None
    empty = [{"type": "array", "maxItems": 0}] if counts[0] == 0 else []
    return empty + [
        {"type": "array", "prefixItems": [{"const": value} for value in chosen], "items": False, "minItems": count}
        for count in counts
        if count
        for chosen in permutations(values, count)
    ]


def _values(item_schema: Any) -> list[Any] | None:
    """The values that an item may have, where they are listed and a few."""
    if not isinstance(item_schema, Mapping):
        return None
    listed = item_schema.get("enum")
    if item_schema.get("type") == "boolean" and listed is None:
        return [False, True]
    if not isinstance(listed, list) or len(listed) > LISTS:
        return None
    all_texts = item_schema.get("type") == "string" and all(isinstance(value, str) for value in listed)
    if item_schema.keys() - {"enum", "type", "title", "description"} or ("type" in item_schema and not all_texts):
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


def _schema_of(value: Any) -> Any:
    """A schema or its JSON text; what is no JSON is refused where it is compiled."""
    if isinstance(value, dict):
        return as_held(value)
    if value is not None and not isinstance(value, str):
        raise ValueError("it must be a JSON schema: an object, or its JSON text")
    return value


SCHEMA = BeforeValidator(_schema_of)


class NamedSchema(RequestFields):
    """A schema under a name, which nothing but the client uses."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None

    @property
    def enforced_schema(self) -> dict[str, Any]:
        return as_held(self.schema_, strict=bool(self.strict))

    @model_validator(mode="after")
    def _words(self) -> Self:
        as_held(self.schema_)
        return self


class ResponseFormat(RequestFields):
    """`response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to the type json_schema, and to no other")
        return self

    @property
    def grammar(self) -> Grammar | None:
        if self.json_schema is not None:
            return Grammar("json_schema", json.dumps(self.json_schema.enforced_schema, ensure_ascii=False))
        return None if self.type == "text" else Grammar("json_object")


class StructuredOutputs(RequestFields):
    """`structured_outputs`: exactly one of its fields."""

    json_: Annotated[dict[str, Any] | str | None, SCHEMA, Field(alias="json")] = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None

    @model_validator(mode="after")
    def _check_single(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError("give exactly one of json, regex, choice, grammar, json_object")
        return self

    @property
    def requested_grammar(self) -> Grammar | None:
        if self.json_object is not None:
            return Grammar("json_object") if self.json_object else None
        return guided(self.json_, self.regex, self.choice, self.grammar)


def guided(
    schema: dict[str, Any] | str | None = None,
    regex: str | None = None,
    choice: list[str] | None = None,
    rules: str | None = None,
) -> Grammar | None:
    if schema is not None:
        return Grammar("json_schema", schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False))
    if regex is not None:
        return Grammar("regex", regex)
    if choice is not None:
        return Grammar("choice", json.dumps(choice, ensure_ascii=False))
    return None if rules is None else Grammar("ebnf", rules)


def compiled(
    compile_grammar: Callable[[Grammar, str], Grammar], named_grammar: tuple[str, Grammar] | None, tenant: str
) -> Grammar | None:
    """The grammar that a field asks for, ready to be used. RequestError names the field. tenant: who asks."""
    if named_grammar is None:
        return None
    field, grammar = named_grammar
    try:
        return replace(compile_grammar(grammar, tenant), named=field)
    except RequestError as error:
        if error.param == "grammar":
            error.param = field
        raise
