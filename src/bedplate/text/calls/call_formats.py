"""The formats in which models write calls of tools: one table, and which row a chat template uses.

A row says how a call is framed; reading (`calls.reading`) and the grammar of calls (`calls.call_grammar`) both follow
it. A template is known by what stands in its text, never by a model's name:

- hermes: NousResearch's function calling, and Qwen 2.5 and 3; what bases without a format of their own are told to use
- tagged, keyed: parameters one by one between tags (Qwen3-Coder and Qwen 3.5; GLM 4.5)
- list, named: Mistral's, until and since its tokenizer has `[ARGS]`
- granite: a list as well, behind a mark of its own (Granite 3)
- fenced, marked: DeepSeek's V3 and R1, and V3.1
- pythonic, lines: Python's calls, in a list (LFM2) or one on each line (OLMo 3, whose values are JSON)
- closed: a list again, with marks at both ends (Phi-4-mini)
- spoken: Gemma 4's notation, whose texts stand between tokens of their own
- bare: Llama 3.1's JSON, which is the whole reply
- channels: gpt-oss's harmony (https://cookbook.openai.com/articles/openai-harmony); see `text.calls.reading`
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from bedplate.core.errors import RequestError

NAME = "§"
"""Where a frame has the tool's name (or an id that nobody needs)."""

CHANNEL_MARKS = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>")


@dataclass(frozen=True)
class Tags:
    """Arguments that are written one by one: `key` stands around a parameter's name, `value` around its value, with
    `pad` inside; `end` after the last."""

    key: tuple[str, str]
    value: tuple[str, str]
    pad: str
    end: str


@dataclass(frozen=True)
class Literals:
    """Arguments as a language's literals, behind a head that ends with `begin`: `equals` stands between a parameter's
    name and its value, `separator` from one to the next, `end` after the last. In objects it is a colon. quotes: what
    may stand around a text, of two that begin alike the longer first; quote: the one that texts are written in.
    words: true, false and null. bare: names in objects, and texts, may stand without quotes. ordered: members are
    written by their names' order."""

    begin: str
    end: str
    equals: str
    separator: str
    quotes: tuple[str, ...]
    quote: str
    words: tuple[str, str, str]
    bare: bool = False
    ordered: bool = False


@dataclass(frozen=True)
class CallFormat:
    """How calls stand in a reply: `begin`, an `opening`, then a `head`, the arguments and a `tail` for each call, with
    `separator` from one to the next, and a `close` after the last. Of several the first is how calls are written; the
    others are read as well. White space, and any around JSON's punctuation, may differ.

    signs: what a template that uses it holds; fallback_signs: any of them suffices where no format's signs are all
    there. betweens None: each call has a `begin` of its own, with `gap` before it. literals: how arguments are written
    behind heads that end in their `begin`. bare: a call may also begin the reply, without `begin`. arguments: how
    templates want those of earlier calls. single: templates show one call of a message only. id_letters: length of a
    call's id where templates insist. open_end: the reply's end closes as well. results: the role in which a template
    that knows no role `tool` is told what came of a call."""

    name: str
    signs: tuple[str, ...]
    begin: str
    heads: tuple[str, ...] = ('{"name": "§", "arguments": ',)
    tails: tuple[str, ...] = ("}",)
    openings: tuple[str, ...] = ("",)
    betweens: tuple[str, ...] | None = None
    gap: str = ""
    closes: tuple[str, ...] = ("",)
    tags: Tags | None = None
    literals: Literals | None = None
    fallback_signs: tuple[str, ...] = ()
    bare: bool = False
    arguments: Literal["object", "text"] = "object"
    single: bool = False
    id_letters: int | None = None
    channels: bool = False
    open_end: bool = False
    results: str | None = None

    @property
    def separator(self) -> str | None:
        return None if self.betweens is None else self.betweens[0]

    @property
    def texts(self) -> tuple[str, ...]:
        """All that it writes around names and arguments."""
        tags = () if self.tags is None else (*self.tags.key, *self.tags.value, self.tags.end)
        quotes = () if self.literals is None else self.literals.quotes
        ends = (*self.openings, *(self.betweens or ()), *self.closes, *(CHANNEL_MARKS if self.channels else ()))
        return (self.begin, *self.heads, *self.tails, *tags, *quotes, *ends)

    def literals_behind(self, head: str) -> Literals | None:
        """How arguments are written behind one of the heads; None where they are not literals."""
        return self.literals if self.literals is not None and head.endswith(self.literals.begin) else None


_DEEP, _ENDS = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL_BEGIN, _SEP, _ONE_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_BODY = '{"name": "§", "arguments": '
_LISTED = ("}", ', "id": "§"}')
_NAMED = '{"id": "§", "name": "§", "arguments": '
_PYTHON_QUOTES = ('"""', "'''", '"', "'")
_PYTHON = Literals("(", ")", "=", ", ", _PYTHON_QUOTES, '"', ("True", "False", "None"))
_JSON_VALUES = Literals("(", ")", "=", ", ", _PYTHON_QUOTES, '"', ("true", "false", "null"))
_GEMMA = Literals("{", "}", ":", ",", ('<|"|>', '"'), '<|"|>', ("true", "false", "null"), bare=True, ordered=True)
_LLAMA = ('{"name": "§", "parameters": ', '{"type": "function", "name": "§", "parameters": ')

HERMES = CallFormat("hermes", ("<tool_call>",), "<tool_call>", openings=("\n",), gap="\n", closes=("\n</tool_call>",))
# fmt: off
FORMATS = (
    CallFormat("channels", ("<|channel|>", "<|message|>", "functions"), "<|channel|>", single=True, channels=True),
    CallFormat("fenced", (_DEEP, "```json"), _DEEP, (f"{_CALL_BEGIN}function{_SEP}{NAME}\n```json\n",),
               (f"\n```{_ONE_END}",), betweens=("\n",), closes=(_ENDS,), arguments="text"),
    CallFormat("marked", (_DEEP,), _DEEP, (f"{_CALL_BEGIN}{NAME}{_SEP}",), (_ONE_END,), betweens=("",),
               closes=(_ENDS,), arguments="text"),
    CallFormat("named", ("[TOOL_CALLS]", "[ARGS]"), "[TOOL_CALLS]",
               (f"{NAME}[ARGS]", f"{NAME}[CALL_ID]{NAME}[ARGS]"), ("",), id_letters=9),
    CallFormat("list", ("[TOOL_CALLS]",), "[TOOL_CALLS]", (_BODY, _NAMED), _LISTED, openings=(" [",),
               betweens=(", ",), closes=("]",), id_letters=9),
    CallFormat("tagged", ("<tool_call>", "<function=", "<parameter="), "<tool_call>", (f"<function={NAME}>\n",), ("",),
               openings=("\n",), gap="\n", closes=("\n</tool_call>",),
               tags=Tags(("<parameter=", ">"), ("", "</parameter>\n"), "\n", "</function>")),
    CallFormat("keyed", ("<tool_call>", "<arg_key>", "<arg_value>"), "<tool_call>", (f"{NAME}\n",), ("",), gap="\n",
               closes=("</tool_call>",),
               tags=Tags(("<arg_key>", "</arg_key>"), ("\n<arg_value>", "</arg_value>\n"), "", "")),
    CallFormat("spoken", ("<|tool_call>", '<|"|>'), "<|tool_call>", (f"call:{NAME}{{",), ("",),
               closes=("<tool_call|>", "\n<tool_call|>"), literals=_GEMMA, open_end=True),
    CallFormat("pythonic", ("<|tool_call_start|>",), "<|tool_call_start|>", (f"{NAME}(", _BODY, _NAMED), _LISTED,
               openings=("[", ""), betweens=(", ",), closes=("]<|tool_call_end|>", "\n<|tool_call_end|>"),
               literals=_PYTHON, open_end=True, fallback_signs=("<|tool_list_start|>", "List of tools: [")),
    CallFormat("lines", ("<function_calls>",), "<function_calls>", (f"{NAME}(",), ("",), openings=("", "\n", "["),
               betweens=("\n", ", "), closes=("</function_calls>", "\n</function_calls>", "]</function_calls>"),
               literals=_JSON_VALUES, open_end=True, results="environment"),
    CallFormat("closed", ("<|tool_call|>", "<|/tool_call|>"), "<|tool_call|>", (_BODY, _NAMED), _LISTED,
               openings=("[", ""), betweens=(", ",), closes=("]<|/tool_call|>", "\n<|/tool_call|>"),
               fallback_signs=("<|/tool|>",), open_end=True, results="tool_response"),
    CallFormat("granite", ("<|tool_call|>",), "<|tool_call|>", (_BODY,), _LISTED, openings=("[",), betweens=(", ",),
               closes=("]",)),
    HERMES,
    CallFormat("bare", ('"parameters": ', "ipython"), "<|python_tag|>", _LLAMA, ("}",), betweens=("; ",), bare=True,
               single=True),
)
# fmt: on
BY_NAME = {call_format.name: call_format for call_format in FORMATS}

_ON_MESSAGE = re.compile(
    r"""['"](tools|functions)['"] in m\w*|\bm\w*(?:\[0\])?(?:\.get\(|[.\[])['"]?(tools|functions)\b"""
)
_TOOLS = re.compile(r"\btools\b")
_TOOL_ROLE = re.compile(r"""role\b[^\w=!]{0,4}(?:==|!=|in\b)[^%}]{0,80}['"]tool['"]""")
_PARTS = re.compile(r"(\s+|[{}\[\]:,]|§)")


@lru_cache(maxsize=64)
def tools_key(template: str) -> str | None:
    """What a system message calls the text that shows the tools, for a template that is given no list of them."""
    match = _ON_MESSAGE.search(template)
    return None if match is None or _TOOLS.search(_ON_MESSAGE.sub("", template)) else match[1] or match[2]


def shows_tools(template: str | None) -> bool:
    """Whether a chat template itself shows the tools that it is given."""
    return template is not None and (_TOOLS.search(template) is not None or tools_key(template) is not None)


@lru_cache(maxsize=64)
def knows_results(template: str) -> bool:
    """Whether a chat template knows messages of the role `tool`."""
    return _TOOL_ROLE.search(template) is not None


@lru_cache(maxsize=64)
def format_of(template: str | None) -> CallFormat | None:
    """The format in which a model with this template calls tools; None for a template that shows tools but no calls in
    any format that is known. Where a template knows of no tools, what it is told of them says how to call: as it
    shows calls, if it does."""
    if template is None:
        return HERMES
    signed = (call_format for call_format in FORMATS if all(sign in template for sign in call_format.signs))
    if not shows_tools(template):
        return next((call_format for call_format in signed if call_format.channels or "tool_calls" in template), HERMES)
    fallback = (call_format for call_format in FORMATS if any(sign in template for sign in call_format.fallback_signs))
    return next(signed, None) or next(fallback, None)


FRAME_CHARACTERS = 512
"""A head, tail, key or number longer than this is none."""


def partial_mark(text: str, mark: str) -> int:
    """How many characters at the text's end may be the beginning of a mark."""
    max_length = min(len(text), len(mark) - 1)
    return next((n for n in range(max_length, 0, -1) if mark.startswith(text[-n:])), 0)


@dataclass(frozen=True)
class Framed:
    """A frame that was found: where it ends, and the names in it."""

    end: int
    names: tuple[str, ...]


_WORD = re.compile(r"[a-zA-Z0-9_.-]{1,64}")


@lru_cache(maxsize=256)
def _pieces(frame: str) -> tuple[str, ...]:
    """Literals, names, and "" for white space that may be there."""
    pieces: list[str] = []
    for part in _PARTS.split(frame):
        if part.isspace():
            pieces.append("")
        elif part and part in "{}[]:,":
            pieces += ["", part, ""]
        elif part:
            pieces.append(part)
    return tuple(pieces)


def find_frame(frame: str, text: str) -> Framed | Literal["begun"] | None:
    """The frame at the text's start; "begun" where the text ends within it."""
    at, names = 0, list[str]()
    for piece in _pieces(frame):
        if piece == "":
            at += len(text[at:]) - len(text[at:].lstrip())
        elif piece == NAME:
            word = _WORD.match(text, at)
            if word is None:
                return "begun" if at == len(text) else None
            at = word.end()
            names.append(word.group())
            if at == len(text):
                return "begun"
        else:
            segment = text[at : at + len(piece)]
            if segment != piece:
                return "begun" if piece.startswith(segment) and at + len(segment) == len(text) else None
            at += len(piece)
    return Framed(at, tuple(names))


def written_calls(calls: Sequence[tuple[str, Any]], written: CallFormat, spell: Callable[[str], str] = str) -> str:
    """Calls (name and arguments) as a reply makes them. spell: how the format's own text is spelled, around the names
    and values that a caller may have chosen. RequestError for arguments without names where the format needs them."""
    parts: list[str] = []
    for number, (name, arguments) in enumerate(calls):
        before = written.separator
        if number == 0 or before is None:
            before = f"{written.gap if number else ''}{written.begin}{written.openings[0]}"
        first, _, last = written.heads[0].partition(NAME)
        if not isinstance(arguments, Mapping) and (written.literals is not None or written.tags is not None):
            raise RequestError(
                f"the arguments of the call to {name!r} are no JSON object, and this model's calls name each of them",
                param="messages",
            )
        parts += [spell(before + first), name, spell(last), _arguments(arguments, written, spell)]
        if number == len(calls) - 1 or written.separator is None:
            parts.append(spell(written.closes[0]))
    return "".join(parts)


def _arguments(arguments: Mapping[str, Any], written: CallFormat, spell: Callable[[str], str]) -> str:
    literals, tags = written.literals_behind(written.heads[0]), written.tags
    if literals is not None:
        return LiteralWriter(literals, spell).members(arguments, literals.equals) + spell(literals.end)
    if tags is None:
        return json.dumps(arguments, ensure_ascii=False) + spell(written.tails[0])
    parts: list[str] = []
    for key, value in arguments.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        before, after = f"{tags.key[1]}{tags.value[0]}{tags.pad}", f"{tags.pad}{tags.value[1]}"
        parts += [spell(tags.key[0]), key, spell(before), text, spell(after)]
    return "".join([*parts, spell(tags.end)])


class LiteralWriter:
    """Values in a notation of literals."""

    def __init__(self, written: Literals, spell: Callable[[str], str] = str) -> None:
        self._written, self._spell = written, spell

    def members(self, values: Mapping[str, Any], equals: str) -> str:
        """Named values, without what stands around them. equals: behind a name."""
        plain = equals == self._written.equals
        ordered = in_order(values, self._written)
        members = [f"{key if plain else self.value(key)}{equals}{self.value(values[key])}" for key in ordered]
        return self._written.separator.join(members)

    def value(self, value: Any) -> str:
        written = self._written
        if isinstance(value, str):
            escaped = written.quote in ("'", '"')
            inner = json.dumps(value, ensure_ascii=False)[1:-1] if escaped else value
            return f"{self._spell(written.quote)}{inner}{self._spell(written.quote)}"
        if isinstance(value, Mapping):
            return "{" + self.members(value, written.equals if written.bare else ": ") + "}"
        if isinstance(value, Sequence):
            return "[" + written.separator.join(map(self.value, value)) + "]"
        if value is None or isinstance(value, bool):
            return written.words[2 if value is None else 0 if value else 1]
        return json.dumps(value)


def in_order(values: Mapping[str, Any], written: Literals) -> list[str]:
    """Names in the order in which they are written."""
    return sorted(values, key=str.lower) if written.ordered else list(values)
