"""The grammar of calls follows the format: what templates write is allowed, and nothing else once a call has begun."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.text.calling import SHAPES, shaped_tokenizer

from bedplate.core.errors import RequestError
from bedplate.inference.engine.grammar import Grammars
from bedplate.inference.engine.requests import Grammar
from bedplate.serving.wire.tools import calls_grammar
from bedplate.text.calls.reply_form import reply_form
from bedplate.text.calls.tools import Tool
from bedplate.text.calls.writing import written_calls

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
        assert compiled().takes(tokenizer.encode(text)) is allowed, text
    assert not compiled().takes(tokenizer.encode("Hello.")) or (choice == "auto" and not form.channels)


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
    held = calls_grammar(TOOLS, "auto", True, form, ANSWER)
    if form.calls.bare:
        with pytest.raises(RequestError, match="leave tools out"):
            grammars.compile(held)
        return
    before = "<|channel|>final<|message|>" if form.channels else "so</think>" if form.opened else ""
    for text, allowed in (('{"ok":true}', True), ('{"ok":1}', False), ("Hello.", False)):
        assert grammars.matcher(held).takes(tokenizer.encode(before + text)) is allowed, text
    if form.thinking is not None and not form.opened:
        reasoned = f'{form.thinking[0]}so{form.thinking[1]}{{"ok":false}}'
        assert grammars.matcher(held).takes(tokenizer.encode(reasoned))
