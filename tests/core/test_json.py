"""JSON rules that Python's own reader does not know."""

from __future__ import annotations

import json

import pytest

from bedplate.core.json import JsonRuleError, load_json


@pytest.mark.parametrize(
    "text", ['{"a": [1, 2.5, null, true, "x"]}', "1e999", '{"a": {"b": 1}, "b": 1}', "[" * 65 + "]" * 65]
)
def test_what_the_standard_allows_is_read_as_python_reads_it(text: str) -> None:
    assert load_json(text) == load_json(text.encode()) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "rules", "message"),
    [
        ('{"a": 1, "b": {"c": 1, "d": 2, "c": 3}}', {}, "a key appears twice in one object: 'c'"),
        ('{"a": 1, "a": 2}', {"repeated": "{!r} is there again"}, "'a' is there again"),
        ("[NaN]", {}, "NaN is not JSON"),
        ("-Infinity", {}, "-Infinity is not JSON"),
        ("[" * 100_000, {}, "nested too deeply"),
        ("[1e999]", {"finite": True}, "a number is too large"),
        ('{"a":' * 4 + "1" + "}" * 4, {"depth": 3}, "nested deeper than 3 levels"),
    ],
)
def test_broken_rules_are_named(text: str, rules: dict, message: str) -> None:
    with pytest.raises(JsonRuleError, match=message):
        load_json(text, **rules)


def test_what_is_no_json_is_told_by_python() -> None:
    for text in (b"\xff", "{", "9" * 5000):
        with pytest.raises(ValueError):
            load_json(text)
