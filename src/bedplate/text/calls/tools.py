"""Tools that a model may call, and how they are shown to it.

Where a chat template shows tools itself, it is left to it, and calls are read as it writes them
(`text.calls.call_formats`). Where it shows calls only, the system message tells of the tools (`told_tools`). For every
other base the tools stand in the system message, calls in the assistant's text and results in a user message, as
`with_tools` writes them, in the Hermes function-calling format:

    <tool_call> {"name": "…", "arguments": {…}} </tool_call>
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from bedplate.core.errors import RequestError, TemplateError
from bedplate.core.json import JsonRuleError, load_json
from bedplate.text.calls.call_formats import HERMES, CallFormat, knows_results, tools_key, written_calls
from bedplate.text.chat_template import ChatTemplate, Message
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


def with_tools(messages: Sequence[Message], tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """The conversation for a template that knows of no tools: no tool calls, no role `tool`."""
    shown: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "tool":
            text = f"{RESULT}\n{message['content']}\n{RESULT_END}"
            if shown and "results" in shown[-1]:
                shown[-1]["results"].append(text)
            else:
                shown.append({"role": "user", "content": "", "results": [text]})
            continue
        calls = written_calls([_named(call) for call in message.get("tool_calls") or ()], HERMES)
        content = "\n".join(part for part in (message.get("content") or "", calls) if part)
        shown.append({**{k: v for k, v in message.items() if k != "tool_calls"}, "content": content})
    for message in shown:
        if "results" in message:
            message["content"] = "\n".join(message.pop("results"))
    return _with_system_text(shown, _instructions(tools, HERMES, str)) if tools else shown


def told_tools(
    messages: Sequence[Message], tools: Sequence[Tool], written: CallFormat, spell: Callable[[str], str]
) -> Sequence[Message]:
    """The conversation for a template that shows calls, and no tools. spell: see `written_calls`."""
    return _with_system_text(messages, _instructions(tools, written, spell)) if tools else messages


def _with_system_text(messages: Sequence[Message], text: str) -> list[dict[str, Any]]:
    """The conversation with a text at the end of its system message."""
    shown = [dict(message) for message in messages]
    if shown and shown[0]["role"] == "system":
        shown[0]["content"] = f"{shown[0]['content']}\n\n{text}"
    else:
        shown.insert(0, {"role": "system", "content": text})
    return shown


def as_shown(
    messages: Sequence[Message],
    written: CallFormat,
    chat: ChatTemplate | None = None,
    tools: Sequence[Tool] = (),
    spell: Callable[[str], str] = str,
) -> list[dict[str, Any]]:
    """The conversation for a template that shows tools itself: arguments as objects or as JSON text, whichever it
    wants; calls one by one, each before its result, where it shows no more; in the content where it shows none. What
    came of calls stands in the role that it knows, and beside the calls where it looks for it there. Tools stand in
    the system message where it is given no list of them. chat: None for one that shows all of them as lists. spell: see
    `written_calls`."""
    shown: list[dict[str, Any]] = []
    waiting: dict[str, dict[str, Any]] = {}
    for message in messages:
        turn = dict(message)
        if turn["role"] == "tool" and turn.get("tool_call_id") in waiting:
            shown.append(waiting.pop(turn["tool_call_id"]))
        if turn.get("tool_calls"):
            calls = [_call(call, written) for call in turn["tool_calls"]]
            turn |= {"tool_calls": calls, "content": turn.get("content") or ""}
            if written.single:
                turn["tool_calls"] = calls[:1]
                later = {"role": turn["role"], "content": ""}
                waiting |= {call["id"]: {**later, "tool_calls": [call]} for call in calls[1:]}
        shown.append(turn)
    if chat is None:
        return shown
    if not knows_results(chat.source) and "tool_responses" in chat.source:
        shown = _with_responses(shown)
    elif not knows_results(chat.source) and written.results:
        shown = [{**turn, "role": written.results} if turn["role"] == "tool" else turn for turn in shown]
    shown = [_with_calls(message, written, spell, chat) for message in shown]
    key = tools_key(chat.source)
    return shown if key is None or not tools else _with_listed(shown, key, tools)


@lru_cache(maxsize=64)
def tools_variable(chat: ChatTemplate) -> str | None:
    """The variable whose tools a template shows, tried out; None where it shows none. SmolLM3's has a name of its
    own."""
    tool = Tool("tool-to-be-seen")
    for name in ("tools", "xml_tools"):
        if re.search(rf"\b{name}\b", chat.source):
            variables: dict[str, Any] = {name: [tool.plain()]}
            try:
                text = chat.render([{"role": "user", "content": "a"}], **variables)
            except TemplateError:  # it says what is wrong where it is given the conversation itself
                return name
            if tool.name in text:
                return name
    return None


@lru_cache(maxsize=128)
def _shows_calls(chat: ChatTemplate, written: CallFormat, beside_content: bool) -> bool:
    """Whether a template shows the calls of earlier turns, tried out: some do so only where there is no content, or
    where its field is not there at all."""
    if "tool_calls" not in chat.source:
        return False
    name = "call-to-be-seen"
    function = {"name": name, "arguments": "{}" if written.arguments == "text" else {}}
    calls = [{"id": "0" * 9, "type": "function", "function": function}]
    user_turn = {"role": "user", "content": "a"}
    turn = {"role": "assistant", "content": "b" if beside_content else "", "tool_calls": calls}
    try:
        return name in chat.render([user_turn, turn], add_generation_prompt=False)
    except TemplateError:  # it says what is wrong where it is given the conversation itself
        return True


def _with_calls(
    message: dict[str, Any], written: CallFormat, spell: Callable[[str], str], chat: ChatTemplate
) -> dict[str, Any]:
    """The message with its calls in its content, where the template would not show them."""
    if not message.get("tool_calls") or _shows_calls(chat, written, bool(message["content"])):
        return message
    gap = written.gap if message["content"] else ""
    content = message["content"] + gap + written_calls([_named(call) for call in message["tool_calls"]], written, spell)
    return {**{key: value for key, value in message.items() if key != "tool_calls"}, "content": content}


def _with_responses(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What came of calls, as `tool_responses` of the message that made them."""
    shown: list[dict[str, Any]] = []
    # of the message that was shown last: its calls' names by their ids, and what came of them
    names, results = dict[Any, str](), list[dict[str, Any]]()
    for message in messages:
        name = names.get(message.get("tool_call_id")) if message["role"] == "tool" else None
        if name is None:
            shown.append(message)
            names = {call.get("id"): call["function"]["name"] for call in message.get("tool_calls", ())}
            results = list[dict[str, Any]]()
            continue
        if not results:
            shown[-1] = {**shown[-1], "tool_responses": results}
        results.append({"name": name, "response": message["content"]})
    return shown


def _with_listed(messages: Sequence[dict[str, Any]], key: str, tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """The tools as text, on the first system message."""
    text = json.dumps([tool.plain()["function"] for tool in tools], ensure_ascii=False)
    if messages and messages[0]["role"] == "system":
        return [{**messages[0], key: text}, *messages[1:]]
    return [{"role": "system", "content": "You are a helpful assistant with some tools.", key: text}, *messages]


def _call(call: Mapping[str, Any], written: CallFormat) -> dict[str, Any]:
    arguments = _arguments(call)  # raises where they are no JSON, whatever form is wanted
    arguments = call["function"]["arguments"] if written.arguments == "text" else arguments
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


def _named(call: Mapping[str, Any]) -> tuple[str, Any]:
    """A call's name and arguments."""
    arguments = call["function"]["arguments"]
    return call["function"]["name"], _arguments(call) if isinstance(arguments, str) else arguments


def _instructions(tools: Sequence[Tool], written: CallFormat, spell: Callable[[str], str]) -> str:
    lines = "\n".join(json.dumps(tool.plain()["function"], ensure_ascii=False) for tool in tools)
    listed = "You can call these tools. Each line is one tool, with the JSON schema of its arguments:"
    listed += f"\n<tools>\n{lines}\n</tools>\nTo call a tool, write its name and its arguments"
    plain = "Answer in plain text where no tool is needed."
    if written is not HERMES:
        example = written_calls([("name", {"argument": "value"})], written, spell)
        return f"{listed} so, and nothing after them:\n{example}\n{plain}"
    return (
        f'{listed} as JSON between tags, and nothing after them:\n{CALL}\n{{"name": "…", "arguments": {{…}}}}\n'
        f"{CALL_END}\nIts result then follows between {RESULT} and {RESULT_END}. {plain}"
    )
