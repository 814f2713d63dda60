"""Arguments written as literals, against Python's own reading of its literals; what models write besides."""

from __future__ import annotations

import ast
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.text.test_reply_form import read

from bedplate.text.calls.call_formats import BY_NAME, FORMATS, FRAME_CHARACTERS, CallFormat, written_calls
from bedplate.text.calls.literals import LiteralReader
from bedplate.text.calls.reading import CallReader
from bedplate.text.calls.tools import Tool

TEXTS = st.text(alphabet="ab' \"\\\n,=:)(]}{<|>é\u2028\x00", max_size=8) | st.sampled_from(
    ["<|tool_call_end|>", "<tool_call|>", "</function_calls>", "<|/tool_call|>", '<|"|>', "'''", "true", "1"]
)
NUMBERS = st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    TEXTS | NUMBERS | st.booleans() | st.none(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b c", "true"]), inner, max_size=3)
    ),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(st.sampled_from(["city", "x_1", "from", "ünï"]), VALUES, max_size=3)
CALLS = st.lists(st.tuples(st.sampled_from(["f", "get-it"]), ARGUMENTS), min_size=1, max_size=2)
COUNT = 700
WRITTEN = [fmt.name for fmt in FORMATS if not fmt.channels]


def ambiguous(written: CallFormat, value: Any) -> bool:
    """Whether a text ends itself where it stands between marks that nothing can escape."""
    if isinstance(value, str):
        ends = [written.literals.quote] if written.literals and written.literals.bare else []
        ends += [written.tags.value[1].strip()] if written.tags else []
        return any(mark in value for mark in ends)
    inner = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    return any(ambiguous(written, member) for member in inner)


@settings(max_examples=60)
@given(name=st.sampled_from(WRITTEN), calls=CALLS, cuts=st.lists(st.integers(0, 300), max_size=4))
def test_what_is_written_is_read_back(name: str, calls: list[tuple[str, dict[str, Any]]], cuts: list[int]) -> None:
    written = BY_NAME[name]
    calls = calls[:1] if written.single else calls
    if any(ambiguous(written, arguments) for _, arguments in calls):
        return
    text = f"{'' if written.bare else 'So: '}{written_calls(calls, written)}"
    edges = sorted({0, *(cut for cut in cuts if cut < len(text)), len(text)})
    # one by one between tags, a text and what it spells are alike but for the schema
    json_types = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
    tools = [
        Tool(
            tool_name,
            "",
            {"properties": {key: {"type": json_types.get(type(value), "null")} for key, value in arguments.items()}},
        )
        for tool_name, arguments in dict(calls).items()
    ]
    if written.tags is not None and len(tools) < len(calls):
        return
    for pieces in ([text], [text[a:b] for a, b in pairwise(edges)]):
        content, _, read_calls, closed = read(CallReader(written, tools), pieces)
        assert (content, read_calls, closed) == ("" if written.bare else "So:", calls, True)


@given(arguments=st.dictionaries(st.sampled_from(["city", "x_1"]), VALUES, max_size=3), quoted=st.booleans())
def test_python_s_own_literals_are_read_as_python_reads_them(arguments: dict[str, Any], quoted: bool) -> None:
    shown = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    for text in (shown, written_calls([("f", arguments)], BY_NAME["pythonic"])[len("<|tool_call_start|>[f(") : -19]):
        call = ast.parse(f"f({text})", mode="eval").body
        assert isinstance(call, ast.Call)
        assert {word.arg: ast.literal_eval(word.value) for word in call.keywords} == arguments
        parsed = read(CallReader(BY_NAME["pythonic"]), [f"<|tool_call_start|>[f({text})]<|tool_call_end|>"])
        assert parsed == ("", "", [("f", arguments)], True)


LOOSE = [
    ("a='it's', b=''c''", {"a": "it's", "b": "'c'"}),
    ("a='say 'hi', then', b=2", {"a": "say 'hi', then", "b": 2}),
    ('a="""x\n"y" """, b=\'\'\'z\'\'\',', {"a": 'x\n"y" ', "b": "z"}),
    (r"a='\x41\u00e9\U0001F600\ud83d\ude00\q\'\n\''", {"a": "Aé😀😀\\q'\n'"}),
    ("a=07, b=+1, c=.5, d=5., e=1_000, f=-1E-2", {"a": 7, "b": 1, "c": 0.5, "d": 5.0, "e": 1000, "f": -0.01}),
    ("a=True, b=true, c=None, d=null, e=celsius", {"a": True, "b": True, "c": None, "d": None, "e": "celsius"}),
    ("a=(1, 2,), b=[], c={'k': {}, 1: 2, x: 3,},\n", {"a": [1, 2], "b": [], "c": {"k": {}, "1": 2, "x": 3}}),
]


@pytest.mark.parametrize(("text", "arguments"), LOOSE)
def test_what_is_no_strict_python_is_read_where_it_is_plain(text: str, arguments: dict[str, Any]) -> None:
    for name, begin, end in (
        ("pythonic", "<|tool_call_start|>[f(", ")]<|tool_call_end|>"),
        ("lines", "<function_calls>\nf(", ")\n</function_calls>"),
    ):
        whole = read(CallReader(BY_NAME[name]), [begin + text + end])
        assert whole == ("", "", [("f", arguments)], True)
        assert read(CallReader(BY_NAME[name]), list(begin + text + end)) == whole


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pythonic", '<|tool_call_start|>[f("Rome")]<|tool_call_end|>'),
        ("pythonic", "<|tool_call_start|>[see(above)]<|tool_call_end|>"),
        ("pythonic", "<|tool_call_start|>none<|tool_call_end|>"),
        ("lines", "<function_calls>nothing to call</function_calls>"),
        ("closed", "<|tool_call|>[1]<|/tool_call|>"),
        ("spoken", "<|tool_call>f{a:1}<tool_call|>"),
        ("spoken", "<|tool_call>call:f{1}<tool_call|>"),
    ],
)
def test_what_is_no_call_is_content(name: str, text: str) -> None:
    for pieces in ([text], list(text)):
        assert read(CallReader(BY_NAME[name]), ["a ", *pieces]) == (f"a {text}", "", [], False)


@pytest.mark.parametrize(
    ("text", "arguments_text", "remainder"),
    [
        ("a=g(1))]", '{"a": ', "g(1))]"),
        ("a=1 + 2)]", '{"a": 1', "+ 2)]"),
        ("a='x', 'y')]", '{"a": "x\', \'y"}', ""),
        ("a=1, b)]", '{"a": 1, "b"', ")]"),
        ("a={1, 2})]", '{"a": {"1"', ", 2})]"),
    ],
)
def test_what_stops_being_arguments_is_content_from_there_on(text: str, arguments_text: str, remainder: str) -> None:
    reader = CallReader(BY_NAME["pythonic"])
    pieces = [*reader.push(f"<|tool_call_start|>[f({text}<|tool_call_end|>"), *reader.finish()]
    assert "".join(piece.text for piece in pieces if piece.section == "arguments") == arguments_text
    content = "".join(piece.text for piece in pieces if piece.section == "content")
    assert content == (f"{remainder}<|tool_call_end|>" if remainder else "")
    assert reader.closed is not remainder


def test_several_forms_of_one_format() -> None:
    first_call = '{"name": "f", "arguments": {"a": 1}}'
    two = '{"name": "g", "arguments": {}, "id": "x"}'
    expected = ("", "", [("f", {"a": 1}), ("g", {})], True)
    for text in (
        f"<|tool_call|>[{first_call}, {two}]<|/tool_call|>",
        f"<|tool_call|>{first_call}<|/tool_call|><|tool_call|>{two}<|/tool_call|>",
        f"<|tool_call|>{first_call}, {two}<|/tool_call|>",
        f"<|tool_call|>[{first_call},\n{two}]",
    ):
        assert read(CallReader(BY_NAME["closed"]), [text]) == expected, text
    begin, end = "<|tool_call_start|>", "<|tool_call_end|>"
    for text in (
        f"{begin}[f(a=1), g()]",
        f"{begin}[f(a=1), g()",
        f"{begin}[{first_call}, {two}]{end}",
        f"{begin}[f(a=1),\n g()]{end}",
        f"{begin}f(a=1){end}{begin}g(){end}",
    ):
        assert read(CallReader(BY_NAME["pythonic"]), [text]) == expected, text
    for text in ("f(a=1)\ng()", "\nf(a=1)\ng()\n", "[f(a=1), g()]"):
        assert read(CallReader(BY_NAME["lines"]), [f"<function_calls>{text}</function_calls>"]) == expected, text
    for name, mark, decoded in (("lines", "<function_calls>", "x/y"), ("pythonic", begin, "x\\/y")):
        assert read(CallReader(BY_NAME[name]), [f'{mark}f(a="x\\/y")'])[2] == [("f", {"a": decoded})]
    spoken = '<|tool_call>call:f{ <|"|>a<|"|>: 1 }<tool_call|>\n<|tool_call>call:g{}<tool_call|>'
    assert read(CallReader(BY_NAME["spoken"]), [spoken]) == expected
    texts = read(CallReader(BY_NAME["spoken"]), ['<|tool_call>call:f{a:New York,b:"x, y",c:None}<tool_call|>'])
    assert texts[2] == [("f", {"a": "New York", "b": "x, y", "c": None})]


@pytest.mark.parametrize("name", ["pythonic", "spoken"])
def test_little_is_held_and_each_step_reads_on(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the work grows with the text and no faster."""
    written, steps = BY_NAME[name], list[str]()
    step = LiteralReader._step

    def counted(self: LiteralReader) -> str:
        steps.append(step(self))
        return steps[-1]

    monkeypatch.setattr(LiteralReader, "_step", counted)
    assert written.literals is not None
    quote, equals = written.literals.quote, written.literals.equals
    head = written.begin + written.openings[0] + written.heads[0].replace("§", "f") + f"a{equals}"
    for text in (quote + quote, f"{quote}, ", f"{quote}, a", "\\", "[", "1", f"1, a{equals}", " "):
        for begin in (head, head + quote):
            reader, longest = CallReader(written), 0
            steps.clear()
            for piece in (begin, *[text] * COUNT):
                reader.push(piece)
                longest = max(longest, len(reader._buffer))
            assert longest <= FRAME_CHARACTERS + len(begin + text)
            assert len(steps) <= COUNT + 1 + COUNT * len(text) + len(begin)
