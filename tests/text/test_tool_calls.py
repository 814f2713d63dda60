"""Tools: calls read the same however their text is cut; conversations for templates that know of no tools."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.core.errors import RequestError
from bedplate.text.calls.call_formats import HERMES, format_of, shows_tools
from bedplate.text.calls.reading import CallReader
from bedplate.text.calls.tools import CALL, CALL_END, Tool, as_shown, with_tools

ARGUMENTS = st.dictionaries(
    st.text(max_size=4),
    st.recursive(st.text(max_size=6) | st.integers(), lambda x: st.lists(x, max_size=2)),
    max_size=3,
)


def read(pieces: list[str]) -> tuple[str, list[tuple[str, str]], bool]:
    reader = CallReader()
    reply_pieces = [piece for text in pieces for piece in reader.push(text)] + reader.finish()
    content = "".join(piece.text for piece in reply_pieces if piece.section == "content")
    names = [piece.text for piece in reply_pieces if piece.section == "name"]
    texts = [
        "".join(p.text for p in reply_pieces if p.section == "arguments" and p.call == i) for i in range(len(names))
    ]
    return content, list(zip(names, texts, strict=True)), reader.closed


@given(
    content=st.text(alphabet="ab<tool_call>\n ", max_size=20).filter(lambda text: CALL not in text),
    calls=st.lists(st.tuples(st.sampled_from(["f", "get-it"]), ARGUMENTS), max_size=3),
    cuts=st.lists(st.integers(0, 200), max_size=8),
)
def test_reading_does_not_depend_on_the_cuts(
    content: str, calls: list[tuple[str, dict[str, object]]], cuts: list[int]
) -> None:
    written = [
        f'{CALL}\n{{"name": "{name}", "arguments": {json.dumps(arguments, ensure_ascii=False)}}}\n{CALL_END}'
        for name, arguments in calls
    ]
    text = content + "\n".join(written)
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in pairwise(edges)]
    expected = content.rstrip() if calls else content
    read_content, read_calls, closed = read(pieces)
    assert (read_content, [(name, json.loads(arguments)) for name, arguments in read_calls], closed) == (
        expected,
        calls,
        True,
    )


def test_what_was_cut_off_is_kept() -> None:
    assert read(["hm <tool_ca"]) == ("hm <tool_ca", [], True)
    assert read([f'{CALL}\n{{"name": "f"']) == (f'{CALL}\n{{"name": "f"', [], False)
    assert read([f'{CALL}\n{{"name": "f", "arguments": {{"a": "x}}']) == ("", [("f", '{"a": "x}')], False)


CALLED = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "go"},
    {"role": "assistant", "content": "", "tool_calls": [CALLED, CALLED]},
    {"role": "tool", "content": "one", "tool_call_id": "1"},
    {"role": "tool", "content": "two", "tool_call_id": "2"},
]


def test_tools_without_a_template_for_them() -> None:
    shown = with_tools(TALK, [Tool("f", "does it")])
    assert [message["role"] for message in shown] == ["system", "user", "assistant", "user"]
    assert shown[0]["content"].startswith("Be brief.\n\nYou can call these tools.")
    assert read([shown[2]["content"]]) == ("", [("f", '{"a": 1}')] * 2, True)
    assert shown[3] == {
        "role": "user",
        "content": "<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response>",
    }
    assert TALK[0]["content"] == "Be brief."


def test_tools_with_a_template_for_them() -> None:
    assert as_shown(TALK, HERMES)[2]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    assert shows_tools("{% if tools %}<tool_call>{% endif %}")
    assert format_of("{% if tools %}<tool_call>{% endif %}") is HERMES
    assert format_of("{% if tools %}{{ tools }}{% endif %}") is None
    assert not shows_tools(None)
    broken = {**CALLED, "function": {"name": "f", "arguments": "{"}}
    with pytest.raises(RequestError, match="not JSON"):
        as_shown([{"role": "assistant", "content": "", "tool_calls": [broken]}], HERMES)


def test_tool_names() -> None:
    with pytest.raises(RequestError, match="cannot be called"):
        Tool("a b")
    assert Tool("a", parameters={"properties": {}}).schema["type"] == "object"
