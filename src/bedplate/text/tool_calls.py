"""Tools that a model may call, and how they are shown to it.

Where a chat template shows tools itself, it is left to it, and calls are read as it writes them (`text.call_formats`).
For every other base the tools stand in the system message, calls in the assistant's text and results in a user message,
as `with_tools` writes them, in the Hermes function-calling format:

    <tool_call>
    {"name": "…", "arguments": {…}}
    </tool_call>
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bedplate.core.errors import RequestError
from bedplate.core.json import JsonRuleError, load_json
from bedplate.text.call_formats import CallFormat
from bedplate.text.chat_template import Message
from bedplate.text.json_schema import DEPTH

CALL, CALL_END = "<tool_call>", "</tool_call>"
RESULT, RESULT_END = "<tool_response>", "</tool_response>"
MAX_TOOLS = 128

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


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


def as_shown(messages: Sequence[Message], written: CallFormat) -> list[dict[str, Any]]:
    """The conversation for a template that shows calls itself: arguments as objects or as JSON text, whichever it
    wants; calls one by one, each before its result, where it shows no more."""
    shown: list[dict[str, Any]] = []
    waiting: dict[str, dict[str, Any]] = {}
    for message in messages:
        found = dict(message)
        if found["role"] == "tool" and found.get("tool_call_id") in waiting:
            shown.append(waiting.pop(found["tool_call_id"]))
        if found.get("tool_calls"):
            found["tool_calls"] = calls = [_call(call, written) for call in found["tool_calls"]]
            found["content"] = found.get("content") or ""
            if written.single and len(calls) > 1:
                later = {call["id"]: {"role": found["role"], "content": "", "tool_calls": [call]} for call in calls[1:]}
                waiting |= later
                found["tool_calls"] = calls[:1]
        shown.append(found)
    return shown


def _call(call: Mapping[str, Any], written: CallFormat) -> dict[str, Any]:
    arguments = _arguments(call)
    if written.arguments == "text":
        arguments = call["function"]["arguments"]
    return {**call, "function": {**call["function"], "arguments": arguments}}


def _arguments(call: Mapping[str, Any]) -> Any:
    text = call["function"]["arguments"]
    try:
        return load_json(text, depth=DEPTH, finite=True, repeated=None)
    except ValueError as error:
        why = f": {error}" if isinstance(error, JsonRuleError) else ""
        raise RequestError(
            f"the arguments of the call to {call['function']['name']!r} are not JSON that can be read{why}",
            param="messages",
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
