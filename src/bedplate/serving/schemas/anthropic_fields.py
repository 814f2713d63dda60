"""Fields of POST /v1/messages, and their translation into a `ChatRequest`.

Reference: Anthropic's Messages API. Blocks that are no text, uses of tools or their results are refused, and so are
tools that a server would run itself; nothing that a request links to is fetched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from bedplate.core.errors import RequestError
from bedplate.serving.schemas.messages import MAX_MESSAGES
from bedplate.serving.schemas.openai_fields import ChatRequest, RequestFields, any_of_types, as_chat
from bedplate.serving.schemas.request_fields import MAX_STOPS, TOKEN_LIMIT, Effort, TopK, TopP

# Names of chat fields in this API.
_NAMES = {
    "max_completion_tokens": "max_tokens",
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "parallel_tool_calls": "tool_choice",
}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
# Fields of a block that change nothing here: a prompt's beginning is always cached.
_HINTS = frozenset({"cache_control", "citations", "eager_input_streaming"})

_SYSTEM = any_of_types(str, list, message="it must be a text or a list of text blocks")

ChatMessage = dict[str, Any]


class Thinking(RequestFields):
    """How long a model reasons is its own matter: a budget is a wish. Whether it does, a template may ask."""

    type: Literal["disabled", "enabled", "adaptive"]
    budget_tokens: Annotated[int, Field(ge=1, le=TOKEN_LIMIT)] | None = None
    display: Literal["summarized"] | None = None


class RequestMetadata(RequestFields):
    user_id: str | None = None


class OutputConfig(RequestFields):
    """`format`: {"type": "json_schema", "schema": …}. effort: how much is to be reasoned."""

    format: dict[str, Any] | None = None
    effort: Effort | None = None


class _MessagesFields(RequestFields):
    """What a message and the counting of its tokens have in common."""

    model: str
    messages: Annotated[list[Any], Field(min_length=1, max_length=MAX_MESSAGES)]
    system: Annotated[str | list[Any] | None, _SYSTEM] = None
    tools: list[Any] | None = None
    cache_control: dict[str, Any] | None = None  # a prompt's beginning is always cached
    tool_choice: dict[str, Any] | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None

    def chat(self) -> ChatRequest:
        """As a chat. RequestError names this API's fields."""
        head = [] if self.system is None else [{"role": "system", "content": _text_of(self.system, "system")}]
        messages: list[ChatMessage] = [*head]
        places = ["system"] * len(head)
        for index, message in enumerate(self.messages):
            chat_messages = _messages_of(message, f"messages[{index}]")
            messages += chat_messages
            places += [f"messages[{index}]"] * len(chat_messages)
        begun = messages[-1]["role"] == "assistant"
        if begun and messages[-1].get("tool_calls"):
            message = f"{places[-1]}: tool calls must be followed by their results, in a user message"
            raise RequestError(message, param=places[-1])
        body = {
            "model": self.model,
            "messages": messages,
            "tools": None if self.tools is None else [_tool_of(tool, i) for i, tool in enumerate(self.tools)],
            **_choice_of(self.tool_choice),
            **_format_of(self.output_config),
            "reasoning_effort": self._effort,
            "continue_final_message": begun or None,
            **self._settings(),
        }
        try:
            return as_chat(body, _NAMES)
        except RequestError as error:
            if error.param == "continue_final_message":
                message = f"{places[-1]}: {error.message.partition(': ')[2]}"
                raise RequestError(message, param=places[-1], code=error.code) from None
            error.param = _place(error.param, places)
            raise

    @property
    def _effort(self) -> str | None:
        if self.thinking is not None and self.thinking.type == "disabled":
            return "none"
        if self.output_config is not None and self.output_config.effort is not None:
            return self.output_config.effort
        return None if self.thinking is None else "medium"

    def _settings(self) -> dict[str, Any]:
        return {}


class CountRequest(_MessagesFields):
    """POST /v1/messages/count_tokens."""


class MessagesRequest(_MessagesFields):
    """POST /v1/messages."""

    max_tokens: Annotated[int, Field(ge=1, le=TOKEN_LIMIT)]
    stop_sequences: Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=MAX_STOPS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    stream: bool | None = None
    metadata: RequestMetadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None

    def _settings(self) -> dict[str, Any]:
        return {
            "max_completion_tokens": self.max_tokens,
            "stop": self.stop_sequences or None,
            **self.model_dump(include={"temperature", "top_p", "top_k"}),
        }


def _place(param: str | None, places: Sequence[str]) -> str | None:
    """A chat's messages[3].content as this API's, where one message may have become several."""
    match = re.match(r"messages\[(\d+)\](.*)", param or "")
    return param if match is None else f"{places[int(match.group(1))]}{match.group(2)}"


def _messages_of(message: Any, location: str) -> list[ChatMessage]:
    """One message as chats have it: results of tools stand before what the user says with them."""
    if not isinstance(message, dict):
        raise _wrong(location, "a message is an object")
    unknown = next((name for name in message if name not in {"role", "content"}), None)
    if unknown is not None:
        raise RequestError(
            f"unknown field '{location}.{unknown}'", param=f"{location}.{unknown}", code="unknown_parameter"
        )
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant"):  # it may be of any kind, also of those that no set holds
        raise _wrong(f"{location}.role", "the roles are user and assistant; a system prompt is the field system")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list) or not content:
        raise _wrong(f"{location}.content", "it must be a text or a list of blocks")
    texts: list[str] = []
    reasoning: list[str] = []
    calls: list[dict[str, Any]] = []
    results: list[ChatMessage] = []
    for index, block in enumerate(content):
        place = f"{location}.content[{index}]"
        block_type = _kind_of(block, place)
        if block_type == "text":
            texts.append(_text(block, "text", place))
        elif block_type == "thinking" and role == "assistant":
            reasoning.append(_text(block, "thinking", place))
        elif block_type == "tool_use" and role == "assistant":
            arguments = block.get("input")
            if not isinstance(arguments, dict):
                raise _wrong(f"{place}.input", "it must be an object")
            function = {"name": _text(block, "name", place), "arguments": json.dumps(arguments, ensure_ascii=False)}
            calls.append({"id": _text(block, "id", place), "type": "function", "function": function})
        elif block_type == "tool_result" and role == "user":
            result_content = block.get("content")
            result_text = "" if result_content is None else _text_of(result_content, f"{place}.content")
            if block.get("is_error"):
                result_text = f"Error: {result_text}"
            results.append({"role": "tool", "tool_call_id": _text(block, "tool_use_id", place), "content": result_text})
        else:
            raise _wrong(
                f"{place}.type",
                f"blocks of type {block_type[:60]!r} are not supported in a message of the {role}: this server reads "
                "text, uses of tools and their results only, and fetches nothing",
            )
    text = "".join(texts)
    if role == "assistant":
        extras = {"tool_calls": calls, "reasoning_content": "".join(reasoning)}
        return [{**_plain(role, text), **{key: value for key, value in extras.items() if value}}]
    return [*results, _plain(role, text)] if texts or not results else results


def _plain(role: str, text: str) -> ChatMessage:
    return {"role": role, "content": text}


def _text_of(content: Any, location: str) -> str:
    """A text, or the joined blocks of one."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _wrong(location, "it must be a text or a list of text blocks")
    texts: list[str] = []
    for index, block in enumerate(content):
        place = f"{location}[{index}]"
        block_type = _kind_of(block, place)
        if block_type != "text":
            message = f"blocks of type {block_type[:60]!r} are not supported: this server reads text only"
            message += ", and fetches nothing"
            raise _wrong(f"{place}.type", message)
        texts.append(_text(block, "text", place))
    return "".join(texts)


def _kind_of(block: Any, place: str) -> str:
    if not isinstance(block, dict) or not isinstance(block.get("type"), str):
        raise _wrong(place, 'a block is an object such as {"type": "text", "text": "…"}')
    return block["type"]


def _text(block: Mapping[str, Any], name: str, location: str) -> str:
    if name not in block:
        raise RequestError(
            f"{location}.{name} is missing", param=f"{location}.{name}", code="missing_required_parameter"
        )
    if not isinstance(block[name], str):
        raise _wrong(f"{location}.{name}", "it must be a text")
    return block[name]


def _wrong(place: str, message: str) -> RequestError:
    return RequestError(f"{place}: {message}", param=place, code="invalid_value")


def _tool_of(tool: Any, index: int) -> dict[str, Any]:
    """A tool as chats have it."""
    location = f"tools[{index}]"
    if not isinstance(tool, dict):
        raise _wrong(location, "a tool is an object with name and input_schema")
    if tool.get("type") not in (None, "custom"):
        raise _wrong(
            f"{location}.type", f"tools of type {str(tool['type'])[:60]!r} are not supported; only your own are"
        )
    function = {name: value for name, value in tool.items() if name not in {"type", "input_schema", *_HINTS}}
    return {"type": "function", "function": {**function, "parameters": tool.get("input_schema")}}


def _choice_of(choice: dict[str, Any] | None) -> dict[str, Any]:
    """tool_choice and parallel_tool_calls, as chats have them."""
    if choice is None:
        return {}
    choice_type = choice.get("type")
    parallel = {"parallel_tool_calls": False} if choice.get("disable_parallel_tool_use") else {}
    if choice_type == "tool":
        named = {"type": "function", "function": {"name": _text(choice, "name", "tool_choice")}}
        return {"tool_choice": named, **parallel}
    if not isinstance(choice_type, str) or choice_type not in _CHOICES:
        raise _wrong("tool_choice.type", f"it must be {', '.join(_CHOICES)} or tool")
    return {"tool_choice": _CHOICES[choice_type], **parallel}


def _format_of(config: OutputConfig | None) -> dict[str, Any]:
    """output_config.format as the chat's response_format."""
    if config is None or config.format is None:
        return {}
    if config.format.keys() != {"type", "schema"} or config.format["type"] != "json_schema":
        raise _wrong("output_config.format", 'it must be {"type": "json_schema", "schema": {…}}')
    schema = {"name": "output", "strict": True, "schema": config.format["schema"]}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}
