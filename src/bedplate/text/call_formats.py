"""The formats in which models write calls of tools: one table, and which row a chat template uses.

A row says how a call is framed; reading (`call_reading`) and the grammar of calls (`call_grammar`) both follow it. A
template is known by what stands in its text, never by a model's name:

- hermes: NousResearch's function calling, and Qwen 2.5 and 3; what bases without a format of their own are told to use
- tagged, keyed: parameters one by one between tags (Qwen3-Coder and Qwen 3.5; GLM 4.5)
- list, named: Mistral's, until and since its tokenizer has `[ARGS]`
- granite: a list as well, behind a mark of its own (Granite 3)
- fenced, marked: DeepSeek's V3 and R1, and V3.1
- bare: Llama 3.1's JSON, which is the whole reply
- channels: gpt-oss's harmony (https://cookbook.openai.com/articles/openai-harmony); see `text.channels`
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

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
class CallFormat:
    """How calls stand in a reply: `begin`, `opening`, then a `head`, the arguments and a `tail` for each call, with
    `between` from one to the next, and `close` after the last. Of several heads or tails the first is how calls are
    written; the others are read as well. White space, and any around JSON's punctuation, may differ.

    signs: what a template that uses it holds. between None: each call has a `begin` of its own, with `apart` before
    it. bare: a call may also begin the reply, without `begin`. arguments: how templates want those of earlier calls.
    single: templates show one call of a message only. id_letters: length of a call's id where templates insist."""

    name: str
    signs: tuple[str, ...]
    begin: str
    heads: tuple[str, ...] = ('{"name": "§", "arguments": ',)
    tails: tuple[str, ...] = ("}",)
    opening: str = ""
    between: str | None = None
    apart: str = ""
    close: str = ""
    tags: Tags | None = None
    bare: bool = False
    arguments: Literal["object", "text"] = "object"
    single: bool = False
    id_letters: int | None = None
    channels: bool = False

    @property
    def texts(self) -> tuple[str, ...]:
        """All that it writes around names and arguments."""
        tags = () if self.tags is None else (*self.tags.key, *self.tags.value, self.tags.end)
        ends = (self.opening, self.between or "", self.close, *(CHANNEL_MARKS if self.channels else ()))
        return (self.begin, *self.heads, *self.tails, *tags, *ends)


_DEEP, _ENDS = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_ONE, _SEP, _ONE_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_BODY = '{"name": "§", "arguments": '
_LISTED = ("}", ', "id": "§"}')
_LLAMA = ('{"name": "§", "parameters": ', '{"type": "function", "name": "§", "parameters": ')

HERMES = CallFormat("hermes", ("<tool_call>",), "<tool_call>", opening="\n", apart="\n", close="\n</tool_call>")
FORMATS = (
    CallFormat("channels", ("<|channel|>", "<|message|>", "functions"), "<|channel|>", single=True, channels=True),
    CallFormat(
        "fenced",
        (_DEEP, "```json"),
        _DEEP,
        (f"{_ONE}function{_SEP}{NAME}\n```json\n",),
        (f"\n```{_ONE_END}",),
        between="\n",
        close=_ENDS,
        arguments="text",
    ),
    CallFormat(
        "marked", (_DEEP,), _DEEP, (f"{_ONE}{NAME}{_SEP}",), (_ONE_END,), between="", close=_ENDS, arguments="text"
    ),
    CallFormat(
        "named",
        ("[TOOL_CALLS]", "[ARGS]"),
        "[TOOL_CALLS]",
        (f"{NAME}[ARGS]", f"{NAME}[CALL_ID]{NAME}[ARGS]"),
        ("",),
        id_letters=9,
    ),
    CallFormat(
        "list",
        ("[TOOL_CALLS]",),
        "[TOOL_CALLS]",
        (_BODY, '{"id": "§", "name": "§", "arguments": '),
        _LISTED,
        opening=" [",
        between=", ",
        close="]",
        id_letters=9,
    ),
    CallFormat(
        "tagged",
        ("<tool_call>", "<function=", "<parameter="),
        "<tool_call>",
        (f"<function={NAME}>\n",),
        ("",),
        opening="\n",
        apart="\n",
        close="\n</tool_call>",
        tags=Tags(("<parameter=", ">"), ("", "</parameter>\n"), "\n", "</function>"),
    ),
    CallFormat(
        "keyed",
        ("<tool_call>", "<arg_key>", "<arg_value>"),
        "<tool_call>",
        (f"{NAME}\n",),
        ("",),
        apart="\n",
        close="</tool_call>",
        tags=Tags(("<arg_key>", "</arg_key>"), ("\n<arg_value>", "</arg_value>\n"), "", ""),
    ),
    CallFormat("granite", ("<|tool_call|>",), "<|tool_call|>", (_BODY,), _LISTED, opening="[", between=", ", close="]"),
    HERMES,
    CallFormat(
        "bare", ('"parameters": ', "ipython"), "<|python_tag|>", _LLAMA, ("}",), between="; ", bare=True, single=True
    ),
)
BY_NAME = {one.name: one for one in FORMATS}

_TOOLS = re.compile(r"\btools\b")
_PARTS = re.compile(r"(\s+|[{}\[\]:,]|§)")


def shows_tools(template: str | None) -> bool:
    """Whether a chat template itself shows the tools that it is given."""
    return template is not None and _TOOLS.search(template) is not None


@lru_cache(maxsize=64)
def format_of(template: str | None) -> CallFormat | None:
    """The format in which a model with this template calls tools; None for a template that shows tools but no calls in
    any format that is known. Where a template knows of no tools, what it is told of them says how to call."""
    if template is None or not shows_tools(template):
        spoken = template is not None and all(sign in template for sign in FORMATS[0].signs)
        return FORMATS[0] if spoken else HERMES
    return next((one for one in FORMATS if all(sign in template for sign in one.signs)), None)


# --- frames


@dataclass(frozen=True)
class Framed:
    """A frame that was found: where it ends, and the names in it."""

    end: int
    names: tuple[str, ...]


_WORD = re.compile(r"[a-zA-Z0-9_.-]{1,64}")


@lru_cache(maxsize=256)
def _pieces(frame: str) -> tuple[str, ...]:
    """Literals, names, and "" for white space that may be there."""
    found: list[str] = []
    for part in _PARTS.split(frame):
        if part.isspace():
            found.append("")
        elif part and part in "{}[]:,":
            found += ["", part, ""]
        elif part:
            found.append(part)
    return tuple(found)


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
            there = text[at : at + len(piece)]
            if there != piece:
                return "begun" if piece.startswith(there) and at + len(there) == len(text) else None
            at += len(piece)
    return Framed(at, tuple(names))
