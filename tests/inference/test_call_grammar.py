"""The grammar of calls follows the format: what templates write is allowed, and nothing else once a call has begun."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tests.text.calling import SHAPES, shaped_tokenizer

from bedplate.core.errors import RequestError
from bedplate.inference.engine.grammar import Grammars
from bedplate.inference.engine.requests import Grammar
from bedplate.serving.schemas.tool_fields import calls_grammar
from bedplate.text.calls.call_formats import BY_NAME, written_calls
from bedplate.text.calls.reading import CallReader
from bedplate.text.calls.reply_form import reply_form, thinking_of
from bedplate.text.calls.tools import Tool
from bedplate.text.tokenizer import Tokenizer

CITY = {"properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"], "additionalProperties": False}
TOOLS = [Tool("weather", "", CITY), Tool("now")]


@pytest.mark.parametrize("choice", ["required", "auto"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_template_s_own_calls_are_allowed(name: str, choice: str, tmp_path: Path) -> None:
    shape, tokenizer = SHAPES[name], shaped_tokenizer(tmp_path, SHAPES[name])
    grammars = Grammars(tokenizer, tokenizer.vocab_size, tokenizer.eos_ids)
    assert tokenizer.chat is not None
    form = reply_form(tokenizer, tokenizer.encode(shape.prompt), TOOLS)
    compiled = grammars.compile(calls_grammar(TOOLS, choice, True, form))
    written = form.calls
    assert written is not None
    for city, allowed in (("Rome", True), ("Paris", False)):
        if name == "channels":
            text = f'<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{{"city": "{city}"}}'
        else:
            text = written_calls([("weather", {"city": city})], written)
            text = text.removeprefix(written.begin) if written.bare else text
            if form.opened:
                text = f"so</think>{text}"
        assert compiled().matches(tokenizer.encode(text)) is allowed, text
    assert not compiled().matches(tokenizer.encode("Hello.")) or (choice == "auto" and not form.channels)


ANSWER = Grammar(
    "json_schema",
    '{"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": false}',
)


@pytest.mark.parametrize("name", SHAPES)
def test_an_answer_beside_calls_follows_its_schema(name: str, tmp_path: Path) -> None:
    shape, tokenizer = SHAPES[name], shaped_tokenizer(tmp_path, SHAPES[name])
    grammars = Grammars(tokenizer, tokenizer.vocab_size, tokenizer.eos_ids)
    form = reply_form(tokenizer, tokenizer.encode(shape.prompt), TOOLS)
    assert form.calls is not None
    grammar = calls_grammar(TOOLS, "auto", True, form, ANSWER)
    if form.calls.bare:
        with pytest.raises(RequestError, match="leave tools out"):
            grammars.compile(grammar)
        return
    before = "<|channel|>final<|message|>" if form.channels else "so</think>" if form.opened else ""
    for text, allowed in (('{"ok":true}', True), ('{"ok":1}', False), ("Hello.", False)):
        assert grammars.matcher(grammar).matches(tokenizer.encode(before + text)) is allowed, text
    if form.thinking is not None and not form.opened:
        reasoned = f'{form.thinking[0]}so{form.thinking[1]}{{"ok":false}}'
        assert grammars.matcher(grammar).matches(tokenizer.encode(reasoned))


RICH: dict[str, Any] = {
    "$defs": {
        "node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "additionalProperties": False}
    },
    "properties": {
        "unit": {"enum": ["C", "F"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "sure": {"type": ["boolean", "null"]},
        "cities": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 2},
        "at": {"anyOf": [{"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}, {"const": 0}]},
        "tree": {"$ref": "#/$defs/node"},
        "more": {},
    },
    "required": ["days"],
    "additionalProperties": False,
}
Q = '<|"|>'
WRITTEN = {
    "pythonic": (
        [
            *("days=3", 'unit="C", days=3', "days=3, sure=True", "days=3, sure=None", 'days=3, cities=["a\\n", "b"]'),
            *(
                'days=3, at={"x": 0.5}',
                "days=3, at=0",
                'days=3, tree={"next": {"next": {}}}',
                'days=3, more=[{"k": None}]',
            ),
        ],
        ["", "days=0", 'unit="K", days=3', "days=3, sure=true", "days=3, cities=[]", 'days=3, at={"y": 1}', "days=3,"],
    ),
    "lines": (
        [
            *("days=3", 'unit="C", days=3', "days=3, sure=true", 'days=3, cities=["a"]', 'days=3, at={"x": 0.5}'),
            *('days=3, tree={"next": {"next": {}}}', 'days=3, more=[{"k": null}]'),
        ],
        ["", "days=10", "days=3, sure=True", 'days=3, cities=["a", "b", "c"]', 'days=3, unit="C"', "days=3 "],
    ),
    "spoken": (
        [
            *("days:3", f"days:3,unit:{Q}C{Q}", "days:3,sure:true", f'cities:[{Q}a"b{Q},{Q}c{Q}],days:3'),
            *(
                "at:{x:0.5},days:3",
                "at:0,days:3",
                "days:3,tree:{next:{next:{}}}",
                f"days:3,more:[{{k:{Q}v{Q},n:null}}]",
            ),
        ],
        [
            "",
            "days:0",
            f"days:3,unit:{Q}K{Q}",
            f"unit:{Q}C{Q},days:3",
            "days:3,sure:True",
            'days:3,unit:"C"',
            "days:3,",
        ],
    ),
}


Shaped = dict[str, tuple[Tokenizer, Grammars]]


@pytest.fixture(scope="module")
def shaped(tmp_path_factory: pytest.TempPathFactory) -> Shaped:
    shape_tokenizers = {name: shaped_tokenizer(tmp_path_factory.mktemp(name), SHAPES[name]) for name in WRITTEN}
    return {
        name: (tokenizer, Grammars(tokenizer, tokenizer.vocab_size, tokenizer.eos_ids))
        for name, tokenizer in shape_tokenizers.items()
    }


def shape_grammar(tokenizer: Tokenizer, name: str, tools: list[Tool], choice: str, parallel: bool) -> Grammar:
    form = reply_form(tokenizer, tokenizer.encode(SHAPES[name].prompt), tools)
    return calls_grammar(tools, choice, parallel, form)


@pytest.mark.parametrize("name", WRITTEN)
def test_literals_follow_the_schema(name: str, shaped: Shaped) -> None:
    (tokenizer, grammars), written, tools = shaped[name], BY_NAME[name], [Tool("f", "", RICH)]
    matcher = grammars.compile(shape_grammar(tokenizer, name, tools, "required", False))
    assert written.literals is not None
    begin = written.begin + written.openings[0] + written.heads[0].replace("§", "f")
    allowed, refused = WRITTEN[name]
    for inside in (*allowed, *refused):
        text = begin + inside + written.literals.end + written.closes[0]
        assert matcher().matches(tokenizer.encode(text)) is (inside in allowed), text
        if inside in allowed:
            reader = CallReader(written, tools)
            pieces = [*reader.push(text), *reader.finish()]
            arguments = json.loads("".join(piece.text for piece in pieces if piece.section == "arguments"))
            jsonschema.validate(arguments, tools[0].schema)


@pytest.mark.parametrize("name", WRITTEN)
def test_one_call_or_several_and_reasoning_before_them(name: str, shaped: Shaped) -> None:
    (tokenizer, grammars), written = shaped[name], BY_NAME[name]
    for calls in ([("now", {})], [("now", {}), ("weather", {"city": "Oslo"})]):
        tokens = tokenizer.encode(written_calls(calls, written))
        for parallel in (True, False):
            matcher = grammars.matcher(shape_grammar(tokenizer, name, TOOLS, "required", parallel))
            assert matcher.matches(tokens) is (parallel or len(calls) == 1)
        assert not grammars.matcher(shape_grammar(tokenizer, name, TOOLS[:1], "required", True)).matches(tokens)
    if SHAPES[name].thinking:
        opening, closing = thinking_of(SHAPES[name].template) or ("", "")
        whole = tokenizer.encode(f"{opening}hm{closing}{written_calls([('now', {})], written)}")
        for choice in ("auto", "required"):
            assert grammars.matcher(shape_grammar(tokenizer, name, TOOLS, choice, True)).matches(whole), choice


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"properties": {"a": {"type": "string", "pattern": "a+"}}}, r"'f' \(pattern\)"),
        ({"properties": {"a": {"type": "array", "prefixItems": []}}}, "prefixItems"),
        ({"properties": {"a": {"type": "array", "minItems": 2, "maxItems": 0}}}, "minItems 2 above maxItems 0"),
        ({"properties": {}, "required": ["b"]}, r"\(b\)"),
        ({"properties": {"a": {}}, "minProperties": 1}, "minProperties"),
        ({"properties": {"a:b": {}}}, r"\(a:b\)"),
        ({"properties": {"a": {"type": "string", "enum": [1]}}}, r"\(enum\)"),
    ],
)
def test_what_cannot_be_held_to_in_literals_is_refused(schema: dict[str, Any], why: str, shaped: Shaped) -> None:
    tokenizer, grammars = shaped["spoken"]
    with pytest.raises(RequestError, match=why) as raised:
        grammars.compile(shape_grammar(tokenizer, "spoken", [Tool("f", "", schema)], "auto", True))
    assert (raised.value.param, raised.value.code) == ("tools", "invalid_grammar")
