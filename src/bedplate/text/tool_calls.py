"""Tools that a model may call: how they are shown to it, and how its calls are read.

Calls are written as in the Hermes function-calling format, which several families' templates use:

    <tool_call>
    {"name": "…", "arguments": {…}}
    </tool_call>

Where a chat template shows tools in this format itself, it is left to it. For every other base the tools stand in the
system message, calls in the assistant's text and results in a user message, as `with_tools` writes them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bedplate.core.errors import RequestError
from bedplate.text.chat_template import Message
from bedplate.text.json_schema import INVALID, check_schema

CALL, CALL_END = "<tool_call>", "</tool_call>"
RESULT, RESULT_END = "<tool_response>", "</tool_response>"
MAX_TOOLS = 128

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_HEADER = re.compile(r'\s*\{\s*"name"\s*:\s*"([a-zA-Z0-9_-]{1,64})"\s*,\s*"arguments"\s*:\s*(?=\{)')


@dataclass(frozen=True)
class Tool:
    """`parameters`: a JSON schema of an object; None for a tool without arguments."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise RequestError(
                f"a tool cannot be called {self.name[:80]!r}; use 1 to 64 letters, digits, dashes and underscores",
                param="tools",
            )

    def plain(self) -> dict[str, Any]:
        """As chat templates see it."""
        function = {"name": self.name, "description": self.description, "parameters": self.schema}
        return {"type": "function", "function": function}

    @property
    def schema(self) -> dict[str, Any]:
        """The schema of its arguments; an object also where `parameters` leave that out."""
        if self.parameters is None:
            return {"type": "object", "properties": {}, "additionalProperties": False}
        return {"type": "object", **self.parameters}


# --- showing


def shows_tools(template: str | None) -> bool:
    """Whether a chat template itself shows tools, and calls in the format above."""
    return template is not None and "tools" in template and CALL in template and "<function=" not in template


def with_tools(messages: Sequence[Message], tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """The conversation for a template that knows of no tools: no tool calls, no role `tool`."""
    shown: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "tool":
            text = f"{RESULT}\n{message['content']}\n{RESULT_END}"
            if shown and shown[-1].get("results"):
                shown[-1]["content"] += f"\n{text}"
            else:
                shown.append({"role": "user", "content": text, "results": True})
            continue
        calls = [_written(call) for call in message.get("tool_calls") or ()]
        content = "\n".join(part for part in (message.get("content") or "", *calls) if part)
        shown.append({**{k: v for k, v in message.items() if k != "tool_calls"}, "content": content})
    for message in shown:
        message.pop("results", None)
    if tools:
        text = _instructions(tools)
        if shown and shown[0]["role"] == "system":
            shown[0]["content"] = f"{shown[0]['content']}\n\n{text}"
        else:
            shown.insert(0, {"role": "system", "content": text})
    return shown


def with_objects(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The conversation for a template that shows calls itself: arguments as objects, not as JSON text."""
    shown: list[dict[str, Any]] = []
    for message in messages:
        found = dict(message)
        if message.get("tool_calls"):
            found["tool_calls"] = [
                {**call, "function": {**call["function"], "arguments": _arguments(call)}}
                for call in message["tool_calls"]
            ]
            found["content"] = message.get("content") or ""
        shown.append(found)
    return shown


def _arguments(call: Mapping[str, Any]) -> Any:
    text = call["function"]["arguments"]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RequestError(
            f"the arguments of the call to {call['function']['name']!r} are not JSON", param="messages"
        ) from None


def _written(call: Mapping[str, Any]) -> str:
    function = {"name": call["function"]["name"], "arguments": _arguments(call)}
    return f"{CALL}\n{json.dumps(function, ensure_ascii=False)}\n{CALL_END}"


def _instructions(tools: Sequence[Tool]) -> str:
    lines = "\n".join(json.dumps(tool.plain()["function"], ensure_ascii=False) for tool in tools)
    return (
        f"You can call these tools. Each line is one tool, with the JSON schema of its arguments:\n<tools>\n{lines}\n"
        f"</tools>\nTo call a tool, write its name and its arguments as JSON between tags, and nothing after them:\n"
        f'{CALL}\n{{"name": "…", "arguments": {{…}}}}\n{CALL_END}\n'
        f"Its result then follows between {RESULT} and {RESULT_END}. Answer in plain text where no tool is needed."
    )


# --- holding the model to valid calls


def call_grammar_source(tools: Sequence[Tool], *, required: bool, parallel: bool) -> str:
    """What a grammar of kind `tool_calls` says: which calls may be written, and whether there must be one."""
    listed = [{"name": tool.name, "parameters": tool.schema} for tool in tools]
    return json.dumps({"tools": listed, "required": required, "parallel": parallel}, sort_keys=True)


def call_grammar(source: str) -> str:
    """The rules (in llguidance's dialect of Lark) for such a text: free text or calls, and a call that was begun is
    valid to its end. RequestError (code invalid_grammar) names the tool whose parameters cannot be enforced."""
    asked = json.loads(source)
    rules: list[str] = []
    for number, tool in enumerate(asked["tools"]):
        name, parameters = tool["name"], tool["parameters"]
        try:
            check_schema(parameters)
        except RequestError as error:
            raise RequestError(
                f"the parameters of tool {name!r}: {error.message}", param="tools", code=INVALID
            ) from None
        if parameters["type"] != "object":
            raise RequestError(f"the parameters of tool {name!r} must be of type object", param="tools", code=INVALID)
        # Spaced as Python's json writes it, which is how templates show calls.
        options = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        schema = json.dumps({**parameters, "x-guidance": options})
        begin = json.dumps(f'\n{{"name": "{name}", "arguments": ')
        end = json.dumps(f"}}\n{CALL_END}")
        rules.append(f"tool{number}: {begin} args{number} {end}\nargs{number}: %json {schema}")
    body = " | ".join(f"tool{number}" for number in range(len(rules)))
    more = f'("\\n{CALL}" body)*' if asked["parallel"] else ""
    if asked["required"]:
        start = f'start: "{CALL}" body {more}'
    else:
        start = f'start: text | head body {more}\ntext: TEXT\nhead[lazy]: TEXT "{CALL}"\nTEXT: /(.|\\n)*/'
    return "\n".join((start, f"body: {body}", *rules))


# --- reading


@dataclass(frozen=True)
class ReplyPiece:
    """What newly read text adds: to the reply's `content`, or to a call: its `name`, then pieces of its `arguments`.
    `call` counts from 0."""

    kind: Literal["content", "name", "arguments"]
    text: str
    call: int = -1


class CallReader:
    """Text that comes in pieces, told apart into content and calls."""

    def __init__(self) -> None:
        self._held = ""
        self._state: Literal["content", "header", "arguments", "end"] = "content"
        self._depth, self._quoted, self._escaped = 0, False, False
        self.calls = 0

    @property
    def closed(self) -> bool:
        """No call is unfinished."""
        return self._state == "content"

    def push(self, text: str) -> list[ReplyPiece]:
        self._held += text
        found: list[ReplyPiece] = []
        while self._step(found):
            pass
        return found

    def finish(self) -> list[ReplyPiece]:
        """What is still held when the text ends. A call without a name yet is given as the text that it is."""
        held, self._held = self._held, ""
        if self._state == "header":
            held = CALL + held
        elif self._state == "end" or (self._state == "content" and self.calls and not held.strip()):
            return []
        return [ReplyPiece("content", held)] if held else []

    def _step(self, found: list[ReplyPiece]) -> bool:
        """One move; False where more text is needed."""
        if self._state == "content":
            return self._content(found)
        if self._state == "header":
            match = _HEADER.match(self._held)
            if match is None:
                return False
            self._held = self._held[match.end() :]
            found.append(ReplyPiece("name", match.group(1), self.calls))
            self.calls += 1
            self._state = "arguments"
            return True
        if self._state == "arguments":
            return self._take_arguments(found)
        before, tag, after = self._held.partition(CALL_END)
        if not tag:
            return False
        assert before.strip() == "}"
        self._held, self._state = after, "content"
        return True

    def _content(self, found: list[ReplyPiece]) -> bool:
        before, tag, after = self._held.partition(CALL)
        if tag:
            text, self._held, self._state = before.rstrip(), after, "header"
        else:
            # White space waits for what follows it, and so does what may become a tag.
            cut = next((n for n in range(min(len(before), len(CALL) - 1), 0, -1) if CALL.startswith(before[-n:])), 0)
            text = before[: len(before) - cut].rstrip()
            self._held = before[len(text) :]
        if text:
            found.append(ReplyPiece("content", text))
        return bool(tag)

    def _take_arguments(self, found: list[ReplyPiece]) -> bool:
        end = len(self._held)
        for place, character in enumerate(self._held):
            if self._quoted:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._quoted = False
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    end, self._state = place + 1, "end"
                    break
        text, self._held = self._held[:end], self._held[end:]
        if text:
            found.append(ReplyPiece("arguments", text, self.calls - 1))
        return self._state == "end"
