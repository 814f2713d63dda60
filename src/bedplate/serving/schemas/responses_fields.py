"""Fields of POST /v1/responses, and their translation into a `ChatRequest`.

Reference: the OpenAI API's "create a model response". Items that are no text, calls of functions or their results are
refused, and so are tools that a server would run itself; nothing that a request links to is fetched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from bedplate.core.errors import RequestError
from bedplate.serving.schemas.messages import MAX_MESSAGES
from bedplate.serving.schemas.openai_fields import ChatRequest, RequestFields, any_of_types, as_chat
from bedplate.serving.schemas.request_fields import TOKEN_LIMIT, Effort, Metadata, Temperature, TopP

_LOGPROBS = "message.output_text.logprobs"
# Of these there is nothing to include here.
_NOTHING = ("reasoning.encrypted_content",)
_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
_TEXTS = ("input_text", "output_text", "text")
# Names of chat fields in this API.
_NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "logprobs": "top_logprobs",
}

_CHOICE = any_of_types(str, dict, message="it must be none, auto, required, or an object")

ChatMessage = dict[str, Any]


class TextOptions(RequestFields):
    """`format`: {"type": "text"}, {"type": "json_object"}, or {"type": "json_schema", "name", "schema", …}."""

    format: dict[str, Any] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningOptions(RequestFields):
    """effort: for models whose template asks. Reasoning is given as it is, so that there is nothing to sum up."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class ResponseStreamOptions(RequestFields):
    include_obfuscation: bool | None = None


def _input_of(value: Any) -> Any:
    if not isinstance(value, str | list) or value == []:
        raise ValueError("it must be a text or a list of items, at least one")
    if isinstance(value, list) and len(value) > MAX_MESSAGES:
        raise ValueError(f"it holds {len(value):,} items; at most {MAX_MESSAGES:,} are read")
    return value


def _include_of(value: Any) -> Any:
    includable = (_LOGPROBS, *_NOTHING)
    if isinstance(value, list) and not all(name in includable for name in value):
        raise ValueError(f"only {' and '.join(includable)} can be included")
    return value


class ResponsesRequest(RequestFields):
    """POST /v1/responses."""

    model: str
    input: Annotated[str | list[Any], BeforeValidator(_input_of)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=TOKEN_LIMIT)] | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    text: TextOptions | None = None
    tools: list[Any] | None = None
    tool_choice: Annotated[str | dict[str, Any] | None, _CHOICE] = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    include: Annotated[list[str], BeforeValidator(_include_of)] | None = None
    metadata: Metadata | None = None
    reasoning: ReasoningOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None
    background: Literal[False] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only for requests with stream set to true")
        if self.includes_logprobs and self.tools:
            raise ValueError(f"include: {_LOGPROBS} is not for requests with tools")
        return self

    @property
    def obfuscates(self) -> bool:
        """Whether a stream's deltas are to be padded, so that their sizes tell less of what is in them."""
        return self.stream_options is not None and bool(self.stream_options.include_obfuscation)

    @property
    def includes_logprobs(self) -> bool:
        return self.include is not None and _LOGPROBS in self.include

    def chat(self, earlier: Sequence[ChatMessage] = ()) -> tuple[ChatRequest, list[ChatMessage]]:
        """The chat, and its messages but for the instructions, which hold for this reply only."""
        messages = [*earlier, *messages_of(self.input)]
        head = [] if self.instructions is None else [{"role": "system", "content": self.instructions}]
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [*head, *messages],
            "max_completion_tokens": self.max_output_tokens,
            **self.model_dump(include={"temperature", "top_p", "parallel_tool_calls"}),
            "response_format": _format_of(self.text),
            "tools": None if self.tools is None else [_tool_of(tool, i) for i, tool in enumerate(self.tools)],
            "tool_choice": _choice_of(self.tool_choice),
            "reasoning_effort": None if self.reasoning is None else self.reasoning.effort,
        }
        if self.includes_logprobs or self.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": self.top_logprobs or 0}
        try:
            return as_chat(body, _NAMES), messages
        except RequestError as error:
            error.param = _place_in_input(error.param, len(head) + len(earlier))
            raise


def _place_in_input(param: str | None, before: int) -> str | None:
    """messages[3].content as input[1].content, where two messages come from elsewhere."""
    match = re.match(r"messages\[(\d+)\](.*)", param or "")
    if match is None:
        return param
    place = int(match.group(1)) - before
    return f"input[{place}]{match.group(2)}" if place >= 0 else "input"


def messages_of(input_items: str | Sequence[Any]) -> list[ChatMessage]:
    """Input items as messages: calls belong to the assistant's message before them, results are messages of tools."""
    if isinstance(input_items, str):
        return [{"role": "user", "content": input_items}]
    messages: list[ChatMessage] = []
    reasoning = ""
    for index, input_item in enumerate(input_items):
        location = f"input[{index}]"
        if not isinstance(input_item, dict):
            raise _wrong(location, "an item is an object such as a message", location)
        item_type = input_item.get("type", "message")
        if item_type == "message":
            messages.append(_message_of(input_item, location))
        elif item_type == "reasoning":
            reasoning += _reasoning_of(input_item, location)
            continue
        elif item_type == "function_call":
            name, arguments = _text(input_item, "name", location), _text(input_item, "arguments", location)
            function = {"name": name, "arguments": arguments}
            call = {"id": _text(input_item, "call_id", location), "type": "function", "function": function}
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": ""})
            messages[-1].setdefault("tool_calls", []).append(call)
        elif item_type == "function_call_output":
            content = _content_of(input_item.get("output"), f"{location}.output")
            messages.append(
                {"role": "tool", "tool_call_id": _text(input_item, "call_id", location), "content": content}
            )
        else:
            supported = "messages, reasoning, function calls and their outputs"
            raise _wrong(
                f"{location}.type",
                f"items of type {str(item_type)[:60]!r} are not supported; only {supported} are",
                location,
            )
        if reasoning and messages[-1]["role"] == "assistant":
            # it belongs to what the assistant says or calls after it
            messages[-1]["reasoning_content"] = messages[-1].get("reasoning_content", "") + reasoning
        reasoning = ""
    return messages


def _reasoning_of(input_item: Mapping[str, Any], location: str) -> str:
    parts: Any = input_item.get("content") or []
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise _wrong(f"{location}.content", "it must be a list of parts with texts", location)
    return "".join(_text(part, "text", f"{location}.content[{i}]") for i, part in enumerate(parts))


def _message_of(input_item: Mapping[str, Any], location: str) -> ChatMessage:
    unknown = next(
        (name for name in input_item if name not in {"type", "role", "content", "id", "status", "phase"}), None
    )
    if unknown is not None:
        raise RequestError(
            f"unknown field '{location}.{unknown}'", param=f"{location}.{unknown}", code="unknown_parameter"
        )
    role = input_item.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise _wrong(f"{location}.role", f"the roles are {', '.join(_ROLES)}", location)
    return {"role": _ROLES[role], "content": _content_of(input_item.get("content"), f"{location}.content")}


def _content_of(content: Any, location: str) -> str:
    """A text, or the joined parts of one."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise _wrong(location, "it must be a text or a list of parts of type input_text", location)
    texts: list[str] = []
    for index, part in enumerate(content):
        place = f"{location}[{index}]"
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise _wrong(place, 'a part is an object such as {"type": "input_text", "text": "…"}', place)
        if part["type"] not in _TEXTS:
            part_type = part["type"][:60]
            message = f"parts of type {part_type!r} are not supported: this server reads text only, and fetches nothing"
            raise _wrong(f"{place}.type", message, place)
        texts.append(_text(part, "text", place))
    return "".join(texts)


def _text(container: Mapping[str, Any], name: str, location: str) -> str:
    if name not in container:
        raise RequestError(
            f"{location}.{name} is missing", param=f"{location}.{name}", code="missing_required_parameter"
        )
    if not isinstance(container[name], str):
        raise _wrong(f"{location}.{name}", "it must be a text", location)
    return container[name]


def _wrong(place: str, message: str, location: str) -> RequestError:
    return RequestError(f"{location}: {message}", param=place, code="invalid_value")


def _format_of(text: TextOptions | None) -> dict[str, Any] | None:
    """text.format as the chat's response_format, which nests what belongs to a schema."""
    if text is None or text.format is None:
        return None
    format_type = text.format.get("type")
    if format_type == "json_schema":
        return {
            "type": format_type,
            "json_schema": {name: value for name, value in text.format.items() if name != "type"},
        }
    return text.format


def _tool_of(tool: Any, index: int) -> dict[str, Any]:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        tool_type = tool.get("type") if isinstance(tool, dict) else tool
        message = f"only tools of type function are supported here, not {str(tool_type)[:60]!r}"
        raise RequestError(message, param=f"tools[{index}].type", code="invalid_value")
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _choice_of(choice: Any) -> Any:
    """As chats have it, which nest what belongs to a type."""
    if not isinstance(choice, dict) or choice.get("type") not in ("function", "allowed_tools"):
        return choice
    choice_type, options = choice["type"], {name: value for name, value in choice.items() if name != "type"}
    if choice_type == "allowed_tools" and isinstance(options.get("tools"), list):
        options["tools"] = [_choice_of(tool) for tool in options["tools"]]
    return {"type": choice_type, choice_type: options}
