"""Requests drawn from a server's own OpenAPI document, and what spoils them. A seed draws the same again."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any
from urllib.parse import quote

Json = Any

TEXTS = ("hi", "this product is great", "terrible <|im_end|> works", "ü 😀 \n ok", "the answer is")
CONVERSATIONS: tuple[Json, ...] = (
    [{"role": "user", "content": "hi"}],
    [{"role": "system", "content": "be nice"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}],
    [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "so?"}],
    [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
    ],
)
LARGE: tuple[Json, ...] = (
    [{"role": "user", "content": []}] * 3000,
    [{"role": "user", "content": "".join(map(chr, range(0xE000, 0xF900)))}],
)
FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}}}

DEEP = "@deep@"
"""Stands for lists in each other, deeper than any encoder of JSON goes."""

REGEXES = (
    "(a+)+b",
    "[" * 3000,
    "(?=a)b",
    "a{1000}{1000}",
    "((a{1,100}){1,100}){1,100}",
    "\\" * 999,
    "[\\",
    "(?P<n>a)(?P=n)",
    "[^\\x00-\\uffff]",
    "[" * 18_000,
    "",
)
GRAMMARS = (
    "\n" * 3000,
    'start: "a" start | "b"',
    "start: start",
    '"' + '\\"' * 2000,
    "\n" * 32_000,
    '"' + '\\"' * 16_000,
    'start: "a"{1,99999}',
    "start: x\nx: y\ny: x",
    "%import common.WORD\nstart: WORD+",
    "%ignore /./\nstart: /(a*)*b/",
    "start: /[/",
    "\ud800",
)
SCHEMAS: tuple[Json, ...] = (
    {"$ref": "#"},
    {"$ref": "http://127.0.0.1:1/x.json"},
    {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
    {"type": None},
    {"minimum": 10**400},
    {"type": "integer", "minimum": 2, "maximum": 1},
    {"enum": ["\ud800", 1e308, {}]},
    {"properties": {str(i): {} for i in range(449)}},
    {"multipleOf": 1e-300},
    {"anyOf": [{"anyOf": [{"anyOf": [{}]}]}] * 50},
    {"type": "string", "pattern": "(a|a)*" * 50, "minLength": 10**9},
    {"uniqueItems": True, "type": "array", "items": {"enum": list(range(90))}},
    {"nullable": True, "type": "object", "$id": "\x00"},
    {"patternProperties": {"(": {}}},
    {"type": "array", "prefixItems": [{}] * 300, "maxItems": 10**18},
    True,
    False,
)

SPOILT: tuple[Callable[[random.Random], Json], ...] = (
    lambda _: None,
    lambda draw: draw.choice((True, False)),
    lambda draw: draw.choice((0, 1, -1, 2**31, 2**53, 2**63, -(2**63) - 1, 10**30, 10**400)),
    lambda draw: draw.choice((0.0, -0.0, 1e-40, 1e308, -1e308, float("nan"), float("inf"), 0.1 + 0.2)),
    lambda draw: draw.choice(
        ("", " ", "\x00", "\ud800", "a\udfff", "\ufeff", "\u202e", "..", "../../etc/passwd", "null", "NaN")
    ),
    lambda draw: (
        draw.choice(("a", "ü", "\n", "[", "{", '"', "\\", "<|im_end|>", "", "e\u0301")) * draw.choice((10, 300, 5000))
    ),
    lambda draw: "".join(
        chr(draw.choice((draw.randrange(0x300), draw.randrange(0xD800), draw.randrange(0xE000, 0x11000))))
        for _ in range(draw.randrange(40))
    ),
    lambda _: [],
    lambda _: {},
    lambda draw: [[]] * draw.choice((1, 100, 2000)),
    lambda draw: {str(i): i for i in range(draw.choice((1, 100, 1500)))},
    lambda _: DEEP,
    lambda draw: _nested(draw.choice((3, 40, 62, 70))),
    lambda draw: {"$ref": "#", "__proto__": {}, "type": draw.choice(("object", "function", "text", 1))},
    lambda _: ["hi", 1, None, {}],
)


def _nested(depth: int) -> Json:
    value: Json = 1
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


class Sampler:
    """Bodies, paths and queries for the operations of one document. known: ids and names of what is there, by the name
    of the field that takes them; whoever sends adds what replies name."""

    def __init__(self, document: Mapping[str, Json], values_by_name: Mapping[str, list[str]]) -> None:
        self._schemas: Mapping[str, Json] = document["components"]["schemas"]
        self._values_by_name = values_by_name

    def body(self, schema: Json, draw: random.Random) -> Json:
        """What the route takes, mostly."""
        return self._value(schema, draw, "", 0)

    def path(self, template: str, draw: random.Random) -> str:
        """A route's path with its parameters filled in, with what is there or with what never is."""
        parts = template.split("/")
        for place, part in enumerate(parts):
            if part.startswith("{"):
                parts[place] = self._segment(part.strip("{}").partition(":")[0], draw)
        return "/".join(parts)

    def _segment(self, name: str, draw: random.Random) -> str:
        candidates = self._values_by_name.get(name) or self._values_by_name["name"]
        if draw.random() < 0.5:
            return quote(draw.choice(candidates), safe="")
        odd = (
            "..",
            "%2e%2e%2f%2e%2e",
            "%00",
            "%ff%fe",
            "%ed%a0%80",
            "a" * 300,
            "'; --",
            "%0d%0aX:1",
            "x/y",
            "",
            "😀",
            "{id}",
            "%",
        )
        segment = draw.choice(odd)
        return segment if segment.isascii() else quote(segment)

    def _value(self, schema: Json, draw: random.Random, name: str, depth: int) -> Json:
        hint = self._hint(draw, name) if draw.random() < 0.85 else None
        if hint is not None:
            return hint[0]
        if not isinstance(schema, Mapping) or depth > 8:
            return draw.choice(TEXTS)
        if "$ref" in schema:
            return self._value(self._schemas[schema["$ref"].rsplit("/", 1)[1]], draw, name, depth + 1)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return draw.choice(schema["enum"])
        for key in ("anyOf", "oneOf", "allOf"):
            if key in schema:
                return self._value(draw.choice(schema[key]), draw, name, depth + 1)
        json_type = schema.get("type")
        json_type = draw.choice(json_type) if isinstance(json_type, list) else json_type
        if json_type == "object":
            return self._object(schema, draw, depth)
        if json_type == "array":
            count = max(schema.get("minItems", 0), draw.randrange(3))
            return [self._value(schema.get("items", {}), draw, name, depth + 1) for _ in range(count)]
        if json_type in {"integer", "number"}:
            low, high = schema.get("minimum", schema.get("exclusiveMinimum", 0)), schema.get("maximum", 4)
            number = draw.choice((low, min(low + 1, high), min(high, 4)))
            return number if json_type == "integer" else float(number)
        if json_type == "boolean":
            return draw.choice((True, False))
        return None if json_type == "null" else draw.choice(TEXTS)

    def _object(self, schema: Mapping[str, Json], draw: random.Random, depth: int) -> Json:
        properties: Mapping[str, Json] = schema.get("properties", {})
        required = set(schema.get("required", ()))
        included = [name for name in properties if name in required or draw.random() < 0.12]
        return {name: self._value(properties[name], draw, name, depth + 1) for name in included}

    def _hint(self, draw: random.Random, name: str) -> tuple[Json] | None:
        """A value that a field of this name may well have, and now and then a hostile one."""
        if name in self._values_by_name:
            return (draw.choice(self._values_by_name[name]),)
        values: Sequence[Json] = _HINTS.get(name, ())
        return (deepcopy(draw.choice(values)),) if values else None


_HINTS: dict[str, Sequence[Json]] = {
    "messages": (*CONVERSATIONS * 5, *LARGE),
    "prompt": (*TEXTS * 2, ["a", "b"], [5, 6, 7], [[5], [6]], "so good " * 20_000, ["so good " * 50] * 60),
    "prompt_logprobs": (0, 1, 20),
    "top_logprobs": (0, 1, 20),
    "temperature": (0, 0.7, 1, 1e-40),
    "input": (*TEXTS, [{"role": "user", "content": "hi"}], ["a", "b"]),
    "documents": (["a", "b"], [{"text": "a"}]),
    "query": TEXTS,
    "max_tokens": (1, 2, 8),
    "max_completion_tokens": (1, 2, 8),
    "max_output_tokens": (1, 2, 8),
    "min_tokens": (0, 1),
    "n": (1, 1, 2, 128),
    "stream": (True, False),
    "tools": (
        [{"type": "function", "function": FUNCTION}],
        [{"name": "f", "input_schema": FUNCTION["parameters"]}],
        [{"type": "function", **FUNCTION}],
    ),
    "tool_choice": ("auto", "required", "none", {"type": "auto"}, {"type": "function", "function": {"name": "f"}}),
    "response_format": (
        {"type": "json_object"},
        *({"type": "json_schema", "json_schema": {"name": "a", "schema": schema}} for schema in SCHEMAS),
    ),
    "guided_json": (*SCHEMAS, *map(json.dumps, SCHEMAS)),
    "guided_regex": ("[a-c]{2}", *REGEXES),
    "guided_grammar": ('start: "a"', *GRAMMARS),
    "guided_choice": (["a", "b"], ["\ud800"], [""], ["a"] * 3000),
    "structured_outputs": (
        *({"regex": regex} for regex in REGEXES),
        *({"grammar": grammar} for grammar in GRAMMARS),
        *({"json": schema} for schema in SCHEMAS),
    ),
    "logit_bias": ({"5": 100}, {"99999": 1}, {str(2**63): 1}),
    "stop": ("a", ["a", "b"], "\x00"),
    "system": ("be nice", [{"type": "text", "text": "be nice"}]),
    "endpoint": ("/v1/chat/completions", "/v1/embeddings", "/admin/skins", "/v1/files"),
    "completion_window": ("24h", "1s", "99999999h"),
    "source": ("first", "../tuned", "/etc/passwd", "a" * 3000),
    "encoding_format": ("float", "base64"),
}


def spoil(value: Json, draw: random.Random) -> Json:
    """The value with something wrong at a place of it."""
    value = deepcopy(value)
    places = list(_places(value))
    if not places:
        return draw.choice(SPOILT)(draw)
    inside, key = draw.choice(places)
    damage = draw.randrange(6)
    if damage == 0:
        del inside[key]
    elif damage == 1:
        inside[key] = [inside[key]] * draw.choice((1, 2, 60))
    elif damage == 2 and isinstance(inside, dict):
        inside[draw.choice(("", "model", "\ud800", "x" * 2000, "type", "stream", "__class__"))] = draw.choice(SPOILT)(
            draw
        )
    else:
        inside[key] = draw.choice(SPOILT)(draw)
    return value


def _places(value: Json) -> list[tuple[Json, Any]]:
    """Every key and index below it."""
    places: list[tuple[Json, Any]] = []
    waiting = [value]
    while waiting and len(places) < 2000:
        inside = waiting.pop()
        keys: Sequence[Any] = (
            list(inside) if isinstance(inside, dict) else range(len(inside)) if isinstance(inside, list) else ()
        )
        places += [(inside, key) for key in keys]
        waiting += [inside[key] for key in keys]
    return places


def written(value: Json, draw: random.Random) -> bytes:
    """As JSON, in one of the ways to write it."""
    escaped = draw.random() < 0.7
    content = json.dumps(
        value, ensure_ascii=escaped, separators=draw.choice(((",", ":"), (", ", ": "), (" ,\n", "\t:  ")))
    )
    depth = draw.choice((63, 65, 2000, 20_000))
    return content.replace(f'"{DEEP}"', "[" * depth + "]" * depth).encode("utf-8", "surrogatepass")


def damaged(content: bytes, draw: random.Random) -> bytes:
    """With bytes changed, lost or added."""
    place = draw.randrange(len(content) + 1)
    match draw.randrange(7):
        case 0:
            return content[:place]
        case 1:
            return content[:place] + draw.randbytes(draw.randrange(1, 9)) + content[place + 1 :]
        case 2:
            return content[:place] + content[place // 2 :]
        case 3:
            return b"\xef\xbb\xbf" + content
        case 4:
            return content.decode("utf-8", "replace").encode("utf-16")
        case 5:
            return content.replace(b"{", b'{"model":"tiny",', 1)
        case _:
            return draw.randbytes(draw.choice((0, 1, 3000)))
