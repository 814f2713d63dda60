"""Replies with calls and reasoning, in each family's format: what a template writes is read back, however it is cut;
templates show conversations as transformers has them show."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.text.calling import SHAPES, shaped_tokenizer

from bedplate.core.errors import RequestError
from bedplate.serving.schemas.tool_fields import conversation_tokens
from bedplate.text.calls.call_formats import BY_NAME, format_of
from bedplate.text.calls.reading import PlainReader, ReplyPiece, ReplyReader
from bedplate.text.calls.reply_form import ReplyForm, ThinkingReader, reply_form, thinking_of
from bedplate.text.calls.tools import Tool
from bedplate.text.tokenizer import Tokenizer

TOOLS = [
    Tool("get-it", "", {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "more": {}}}),
    Tool("now"),
]
CITIES = ["Rome", 'a "b" }] <', "", "12", "x</tool", "ünï\n\nz"]
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("get-it", {"city": CITIES[1], "days": 3, "more": {"a": [1, None, "]}"]}}),
    ("now", {}),
]


def called(calls: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    return [
        {"id": f"{i:09}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for i, (name, arguments) in enumerate(calls)
    ]


def read(reader: ReplyReader, pieces: list[str]) -> tuple[str, str, list[tuple[str, Any]], bool]:
    """Content, reasoning, calls, and whether they are whole."""
    reply_pieces = [piece for text in pieces for piece in reader.push(text)] + reader.finish()
    texts = {
        piece_type: "".join(p.text for p in reply_pieces if p.section == piece_type)
        for piece_type in ("content", "reasoning")
    }
    names = [piece.text for piece in reply_pieces if piece.section == "name"]
    arguments = [
        "".join(p.text for p in reply_pieces if p.section == "arguments" and p.call == i) for i in range(len(names))
    ]
    calls = [(name, json.loads(text)) for name, text in zip(names, arguments, strict=True)] if reader.closed else []
    return texts["content"], texts["reasoning"], calls or list(zip(names, arguments, strict=True)), reader.closed


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tokenizer, Path]]:
    places = {name: tmp_path_factory.mktemp(name) for name in SHAPES}
    return {name: (shaped_tokenizer(place, SHAPES[name]), place) for name, place in places.items()}


def form_of(name: str, opened: bool = False) -> ReplyForm:
    written = format_of(SHAPES[name].template)
    assert written is BY_NAME[name]
    thinking = None if written.channels else thinking_of(SHAPES[name].template)
    return ReplyForm(written, tuple(TOOLS), thinking, opened, written.channels)


@pytest.mark.parametrize("name", SHAPES)
def test_conversations_are_shown_as_transformers_shows_them_and_replies_read_back(
    name: str, tokenizers: dict[str, tuple[Tokenizer, Path]]
) -> None:
    shape, (tokenizer, place) = SHAPES[name], tokenizers[name]
    reference = transformers.AutoTokenizer.from_pretrained(place)
    calls = CALLS if shape.parallel else CALLS[:1]
    reasoning = {"reasoning_content": "hm, {so}"} if shape.thinking else {}
    content = "" if name in {"bare", "channels"} else "Let me look."
    prompt_turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "go"}]
    turn = {"role": "assistant", "content": content, "tool_calls": called(calls), **reasoning}
    results = [{"role": "tool", "content": f"r{i}", "tool_call_id": f"{i:09}"} for i in range(len(calls))]
    talk = [*prompt_turns, turn, *results, {"role": "assistant", "content": "Done."}, {"role": "user", "content": "ok"}]

    def reference_text(messages: list[dict[str, Any]], prompt: bool) -> str:
        shown = []
        for message in messages:
            converted = {
                ("thinking" if name == "channels" and k == "reasoning_content" else k): v for k, v in message.items()
            }
            if "tool_calls" in converted and BY_NAME[name].arguments == "object":
                as_objects = [
                    dict(c, function={**c["function"], "arguments": a})
                    for c, (_, a) in zip(converted["tool_calls"], calls, strict=True)
                ]
                converted["tool_calls"] = as_objects
            shown.append(converted)
        tools = [tool.plain() for tool in TOOLS]
        return reference.apply_chat_template(shown, tools=tools, add_generation_prompt=prompt, tokenize=False)

    for messages, prompt in ((talk, True), (talk[:3], False)):
        ids = conversation_tokens(tokenizer, messages, TOOLS, answer=prompt)
        text = reference_text(messages, prompt)
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        assert ids == reference(text, add_special_tokens=False)["input_ids"]

    before, after = reference_text(prompt_turns, True), reference_text(talk[:3], False)
    form = reply_form(tokenizer, tokenizer.encode(before), TOOLS)
    reply = after.removeprefix(before).removesuffix(shape.end)
    assert form.marks.keys() == {mark for mark in shape.special if mark in reply} | (form.marks.keys() - set(reply))
    expected = (content, reasoning.get("reasoning_content", ""), calls, True)
    for pieces in ([reply], list(reply)):
        assert read(form.reader(), pieces) == expected
    # the marks are in the text that the engine gives, though they are special tokens
    stream = tokenizer.stream(marks=frozenset(form.marks.values()))
    pieces = [stream.push(index) for index in tokenizer.encode(reply)]
    assert read(form.reader(), pieces) == expected


@pytest.mark.parametrize("name", [name for name in SHAPES if SHAPES[name].parallel is False])
def test_calls_of_one_turn_are_shown_one_by_one(name: str, tokenizers: dict[str, tuple[Tokenizer, Path]]) -> None:
    tokenizer, _ = tokenizers[name]
    talk: list[dict[str, Any]] = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "", "tool_calls": called(CALLS)},
        {"role": "tool", "content": "r1", "tool_call_id": "000000001"},
        {"role": "tool", "content": "r0", "tool_call_id": "000000000"},
    ]
    text = tokenizer.decode(conversation_tokens(tokenizer, talk, TOOLS), skip_special_tokens=False)
    places = [text.rindex(part) for part in ("]}", "now", "r1", "r0")]
    assert places == sorted(places)


def test_a_mark_that_opens_a_reply_is_read_alike_whole_and_letter_by_letter() -> None:
    for name in SHAPES:
        for text in ("<|end|>", "<|end|>a", "<|call|><|end|>", "<|en", "a<|end|><|end|>b"):
            form = form_of(name, True)
            assert read(form.reader(), list(text)) == read(form.reader(), [text]), (name, text)


def test_white_space_before_a_reply_is_looked_at_once() -> None:
    marks = ("<think>", "</think>")
    for end, expected in (("x", ("x", "")), ("<think>y</think>x", ("x", "y")), ("<thin", ("<thin", ""))):
        reader = ThinkingReader(PlainReader(), marks, False)
        reply_pieces = list[ReplyPiece]()
        for piece in [*["\n "] * 30, *end]:
            reply_pieces += reader.push(piece)
            assert len(reader._buffer) < 9
        reply_pieces += reader.finish()
        content, reasoned = (
            "".join(reply_piece.text for reply_piece in reply_pieces if reply_piece.section == piece_type)
            for piece_type in ("content", "reasoning")
        )
        assert (content.lstrip(), reasoned) == expected
        assert ("\n " * 30 in content) is not bool(reasoned)


@settings(max_examples=25)
@given(data=st.data(), name=st.sampled_from(sorted(SHAPES)))
def test_reading_does_not_depend_on_the_cuts(data: st.DataObject, name: str) -> None:
    form = form_of(name, data.draw(st.booleans()))
    parts = ["a", " ", "\n", "<", "{", "}", '"', "get-it", '{"x": 1}', '"name": "now", ', '"arguments": {}', "<think>"]
    parts += ["</think>", "<tool_call>", "assistant", "analysis", "commentary to=functions.now ", *SHAPES[name].special]
    written = BY_NAME[name]
    parts += [text.replace("§", "now") for text in written.texts if text]
    text = "".join(data.draw(st.lists(st.sampled_from(parts), max_size=25)))
    whole = read(form.reader(), [text])
    assert read(form.reader(), list(text)) == whole
    places = data.draw(st.lists(st.integers(0, max(len(text) - 1, 0)), max_size=6))
    edges = sorted({0, *places, len(text)})
    assert read(form.reader(), [text[a:b] for a, b in pairwise(edges)]) == whole


@pytest.mark.parametrize("name", SHAPES)
def test_reading_takes_linear_time(name: str) -> None:
    form = form_of(name)
    written = form.calls
    assert written is not None
    head = written.begin + written.openings[0] + written.heads[0].replace("§", "now")
    for text in (" ", "<", written.begin + "{", head + "{", head + "{}", head + "{ <parameter=a>\n", "<think>"):

        def seconds(count: int, text: str = text) -> float:
            best = 9.0
            for _ in range(2):
                reader, begin = form.reader(), time.process_time()
                reader.push(text * (count // len(text)))
                reader.finish()
                best = min(best, time.process_time() - begin)
            return best

        assert seconds(20_000) < 25 * max(seconds(2_000), 0.002), text


def test_a_prompt_may_have_begun_the_reasoning(tokenizers: dict[str, tuple[Tokenizer, Path]]) -> None:
    tokenizer, _ = tokenizers["marked"]
    talk = [{"role": "user", "content": "go"}]
    form = reply_form(tokenizer, conversation_tokens(tokenizer, talk, ()), ())
    assert (form.opened, form.calls) == (True, None)
    assert read(form.reader(), ["\nso", "  \n</thi", "nk>\n\nYes. "]) == ("Yes. ", "so", [], True)
    assert read(form.reader(), ["so"]) == ("", "so", [], True)
    assert thinking_of("{{ '<think>' }}") == ("<think>", "</think>")  # whose end is the reply's
    closed = ReplyForm(thinking=("<think>", "</think>"))
    assert read(closed.reader(), ["\n<thi", "nk>a</think>b"]) == ("b", "a", [], True)
    assert read(closed.reader(), [" <this", "> <think>"]) == (" <this> <think>", "", [], True)


def test_channels() -> None:
    form = form_of("channels")
    analysis = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant"
    call = '<|channel|>commentary to=functions.now <|constrain|>json<|message|>{"a": 1}'
    for end in ("", "<|call|>"):
        assert read(form.reader(), [analysis, call, end]) == ("", "hm", [("now", {"a": 1})], True)
    assert read(form.reader(), [analysis, call[:-1]])[3] is False
    final = (
        "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>final<|message|>It is 5 < 6.<|ret"
    )
    assert read(form.reader(), [final]) == ("I look.It is 5 < 6.<|ret", "", [], True)
    assert read(form.reader(), ['{"a": 1}']) == ('{"a": 1}', "", [], True)
    plain = ReplyForm(channels=True)
    assert read(plain.reader(), [call]) == ('{"a": 1}', "", [], True)


def test_a_format_that_is_not_known_is_refused(tmp_path: Path) -> None:
    shape = SHAPES["hermes"]
    odd = type(shape)(shape.assistant.replace("tool_call>", "odd>"))
    tokenizer = shaped_tokenizer(tmp_path, odd)
    talk = [{"role": "user", "content": "go"}]
    with pytest.raises(RequestError, match="no format that is known") as raised:
        conversation_tokens(tokenizer, talk, TOOLS)
    assert raised.value.param == "tools"
    assert conversation_tokens(tokenizer, talk, ())
