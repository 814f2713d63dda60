"""The text in which a model that is held to a JSON schema writes a value: what it is taught and shown as an answer.

The grammars write properties in the schema's own order (further ones after them), without white space.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from bedplate.text.json_schema import Schema

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
    fields: list[tuple[str, str, str]] = []
    for name, inner in _properties(schema, schema).items():
        node = resolved(schema, inner)
        description = "" if isinstance(node, bool) else str(node.get("description", ""))
        fields.append((name, type_words(schema, inner), description))
    return fields


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
    return {"array": "list", "number": "number", "integer": "whole number", "boolean": "true or false"}.get(
        declared_type, declared_type
    )


def labels_rules(labels: Sequence[str]) -> str:
    """A grammar in Lark's notation: a JSON list of any of the labels, each at most once, in their order. Two rules for
    each label: what may follow while none before it was written (`first`), and after one was (`next`)."""
    rules = ['start: "[" first_0']
    for i, label in enumerate(labels):
        text = json.dumps(json.dumps(label, ensure_ascii=False), ensure_ascii=False)
        rules += [
            f"first_{i}: {text} next_{i + 1} | first_{i + 1}",
            f'next_{i}: "," {text} next_{i + 1} | next_{i + 1}',
        ]
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
        node: Any = root
        for part in str(schema["$ref"]).removeprefix("#").strip("/").split("/"):
            key = part.replace("~1", "/").replace("~0", "~")
            node = node if not part else node[int(key)] if isinstance(node, list) else node[key]
        schema = node
    return schema
