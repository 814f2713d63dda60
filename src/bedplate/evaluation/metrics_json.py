"""How much of a JSON value is right, field by field."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator
from typing import Any

from bedplate.data.splits import normalise


def json_fields(target: str, prediction: str | None) -> float:
    """Mean over the leaf fields that either value has: 1 where they agree, 0 where one lacks the field.

    A leaf is a number, text, boolean, null or empty list or object; its field is the names on the way to it. Numbers
    are compared by value (4 = 4.0), texts as exact_match compares them. The items of a list share one field, whatever
    their order: it scores those found in both over the longer list. Nothing parsed (None) scores 0.
    """
    if prediction is None:
        return 0.0
    target_fields, predicted_fields = _fields(json.loads(target)), _fields(json.loads(prediction))
    scores = [
        _agreement(target_fields[name], predicted_fields[name])
        for name in target_fields.keys() | predicted_fields.keys()
    ]
    return sum(scores) / len(scores)


def _agreement(target_values: Counter[Hashable], predicted_values: Counter[Hashable]) -> float:
    return (target_values & predicted_values).total() / max(target_values.total(), predicted_values.total())


def _fields(value: Any) -> defaultdict[tuple[str, ...], Counter[Hashable]]:
    fields: defaultdict[tuple[str, ...], Counter[Hashable]] = defaultdict(Counter)
    for name, leaf in _leaves(value, ()):
        fields[name][leaf] += 1
    return fields


def _leaves(value: Any, name: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Hashable]]:
    """Every leaf as (field, what is compared). Lists add nothing to the name."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*name, key))
    elif isinstance(value, list) and value:
        for child in value:
            yield from _leaves(child, name)
    elif isinstance(value, str):
        yield name, ("text", normalise(value))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, ("number", value)  # 4 and 4.0 are equal and hash alike
    else:
        yield name, ("other", json.dumps(value))
