"""Answers as a grammar writes them: what is taught and shown is exactly what a model held to the schema may say."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from tests.tiny import tiny_spec, write_tiny_base

from bedplate.inference.engine.grammar import Grammars
from bedplate.inference.engine.requests import Grammar
from bedplate.skins.output import ORDERED_LABELS, JsonOutput, LabelsOutput
from bedplate.text.json_schema import schema_fields, schema_form, type_words
from bedplate.text.tokenizer import Tokenizer

REFERRED: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "children": {"type": "array", "items": {"$ref": "#"}},
        "age": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/age"}]},
    },
    "required": ["name"],
    "additionalProperties": False,
    "$defs": {"age": {"type": "object", "properties": {"years": {"type": "integer"}, "about": {"type": "boolean"}}}},
}


@pytest.fixture(scope="module")
def grammars(tmp_path_factory: pytest.TempPathFactory) -> Grammars:
    tokenizer = Tokenizer.from_directory(write_tiny_base(tmp_path_factory.mktemp("tiny")))
    return Grammars(tokenizer, tiny_spec().vocab_size, tokenizer.eos_ids)


texts = st.text(max_size=8).filter(lambda s: s.encode("utf-8", "ignore").decode() == s)
leaves: dict[str, tuple[dict[str, Any], st.SearchStrategy[Any]]] = {
    "string": ({"type": "string"}, texts),
    "integer": ({"type": "integer"}, st.integers(-(10**9), 10**9)),
    "boolean": ({"type": "boolean"}, st.booleans()),
    "choice": ({"enum": ["a", "b c", 3]}, st.sampled_from(["a", "b c", 3])),
    "strings": ({"type": "array", "items": {"type": "string"}}, st.lists(texts, max_size=3)),
    "either": ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, st.none() | st.integers(0, 9)),
}


@st.composite
def objects(draw: st.DrawFn, depth: int = 2) -> tuple[dict[str, Any], Any]:
    """A schema of an object and a value of it, its properties in any order and some of them missing."""
    names = draw(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=4, unique=True))
    properties: dict[str, Any] = {}
    value: dict[str, Any] = {}
    for name in names:
        if depth and draw(st.booleans()):
            properties[name], child = draw(objects(depth - 1))
        else:
            properties[name], strategy = leaves[draw(st.sampled_from(sorted(leaves)))]
            child = draw(strategy)
        if draw(st.integers(0, 3)):
            value[name] = child
    order = draw(st.permutations(list(value)))
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**schema, "required": [n for n in names if n in value]}, {name: value[name] for name in order}


@settings(max_examples=60, deadline=None)
@given(objects())
def test_what_is_taught_is_what_the_grammar_writes(grammars: Grammars, drawn: tuple[dict[str, Any], Any]):
    schema, value = drawn
    assert Draft202012Validator(schema).is_valid(value)
    text = schema_form(schema, value)
    assert json.loads(text) == value
    assert grammars.accepts(Grammar("json_schema", json.dumps(schema)), text)
    assert JsonOutput(json_schema=schema).comparable(text) == JsonOutput(json_schema=schema).comparable(
        json.dumps(value)
    )


def test_references_and_alternatives_decide_the_order(grammars: Grammars):
    value = {"age": {"about": True, "years": 3}, "children": [{"age": None, "name": "b"}], "name": "a"}
    text = schema_form(REFERRED, value)
    assert text == ('{"name":"a","children":[{"name":"b","age":null}],"age":{"years":3,"about":true}}')
    assert grammars.accepts(Grammar("json_schema", json.dumps(REFERRED)), text)
    assert not grammars.accepts(Grammar("json_schema", json.dumps(REFERRED)), text[:-1])
    assert not grammars.accepts(Grammar("json_schema", json.dumps(REFERRED)), json.dumps(value))


def test_fields_are_named_with_type_and_description():
    schema = {
        "type": "object",
        "properties": {
            "unit": {"type": "string", "description": "what is counted"},
            "sizes": {"type": "array", "items": {"type": "number"}},
            "kind": {"enum": ["a", "b"]},
            "when": {"type": ["string", "null"]},
        },
    }
    assert schema_fields(schema) == [
        ("unit", "string", "what is counted"),
        ("sizes", "list of numbers", ""),
        ("kind", 'one of "a", "b"', ""),
        ("when", "string or null", ""),
    ]
    assert schema_fields({"type": "array"}) == []


def test_schemas_that_contain_themselves_are_told_and_written(grammars: Grammars):
    value: dict[str, Any] = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"$ref": "#/properties/value"}}]}
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {
            "value": value,
            "pair": {
                "anyOf": [
                    {"type": "null"},
                    {"type": "object", "properties": {"b": {"$ref": "#/properties/value"}, "a": {"type": "integer"}}},
                ]
            },
            "nested": {"type": ["array", "null"], "items": {"$ref": "#/properties/nested"}},
        },
        "required": ["value"],
        "additionalProperties": False,
    }
    assert schema_fields(JsonOutput(json_schema=schema).json_schema) == [
        ("value", "string or list of (…)", ""),
        ("pair", "null or object with b, a", ""),
        ("nested", "list of (…) or null", ""),
    ]
    instance = {"pair": {"a": 1, "b": [["x"], "y"]}, "value": [[]]}
    text = schema_form(schema, instance)
    assert text == '{"value":[[]],"pair":{"b":[["x"],"y"],"a":1}}'
    assert grammars.accepts(Grammar("json_schema", json.dumps(schema)), text)
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(60):  # and twice at each level, which told whole would not end
        deep = {"prefixItems": [deep], "items": deep, "type": "array"}
    assert type_words(deep, deep).startswith("list of (list of ")
    doubled: dict[str, Any] = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(200)}
    root = {"$ref": "#/$defs/d0", "$defs": {**doubled, "d200": {"type": "string"}}}
    assert type_words(root, root) == "…"


@pytest.mark.parametrize(
    "loop",
    [
        {"anyOf": [{"type": "string"}, {"$ref": "#"}]},
        {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/a"}], "$defs": {"a": {"$ref": "#/$defs/a"}}},
        {
            "anyOf": [{"type": "string"}, {"$ref": "#/$defs/a"}],
            "$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"oneOf": [{"$ref": "#/$defs/a"}]}},
        },
    ],
)
def test_a_loop_that_no_value_ends_is_refused(loop: dict[str, Any]):
    with pytest.raises(ValueError, match="leads back to itself for the same value"):
        JsonOutput(json_schema=loop)


@settings(max_examples=30, deadline=None)
@given(st.sets(st.integers(0, 4)), st.permutations(range(5)))
def test_labels_are_written_in_their_order_each_once(grammars: Grammars, chosen: set[int], order: list[int]):
    output = LabelsOutput(labels=("red", 'a "b"', "é", "c,d", "red e"))
    grammar = Grammar(*output.grammar())
    named = [output.labels[i] for i in order if i in chosen]
    canonical = output.canonical(named)
    assert grammars.accepts(grammar, canonical)
    written = json.dumps(named, ensure_ascii=False, separators=(",", ":"))
    assert grammars.accepts(grammar, written) == (written == canonical)
    if named:
        assert not grammars.accepts(
            grammar, json.dumps([named[0], named[0]], ensure_ascii=False, separators=(",", ":"))
        )


def test_many_labels_are_still_only_labels(grammars: Grammars):
    output = LabelsOutput(labels=tuple(f"label {i}" for i in range(ORDERED_LABELS + 30)))
    grammar = Grammar(*output.grammar())
    assert grammars.accepts(grammar, '["label 3","label 111"]')
    assert not grammars.accepts(grammar, '["label 3","label 400"]')
    largest = LabelsOutput(labels=output.labels[:ORDERED_LABELS])
    ordered = Grammar(*largest.grammar())
    assert grammars.accepts(ordered, largest.canonical(largest.labels))


def test_without_a_schema_the_order_is_kept_and_what_grammars_refuse_is_escaped():
    assert schema_form(True, {"b": [1, {"c": "\x7f"}], "a": 2}) == '{"b":[1,{"c":"\\u007f"}],"a":2}'
