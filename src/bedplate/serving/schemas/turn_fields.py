"""Fields of POST /v1/messages and /v1/responses, and their translation into a `ChatRequest`.

Reference: Anthropic's Messages API; the OpenAI API's "create a model response". Blocks and items that are no text, uses
of tools or their results are refused, and so are tools that a server would run itself; nothing that a request links to
is fetched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from bedplate.core.errors import RequestError
from bedplate.serving.schemas import request_fields
from bedplate.serving.schemas.openai_fields import MAX_MESSAGES, ChatRequest, as_chat

ChatMessage = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """A value in a request, of any type, and where it stands: for messages about it."""

    path: str
    value: Any

    def wrong(self, message: str, name: str = "") -> RequestError:
        """The refusal of the value, or of its field `name`."""
        path = f"{self.path}.{name}" if name else self.path
        return RequestError(f"{path}: {message}", param=path, code="invalid_value")

    def get(self, name: str) -> Place:
        return Place(f"{self.path}.{name}", self.value.get(name))

    def text(self, name: str) -> str:
        """The text of a field that must be there."""
        if name not in self.value:
            path = f"{self.path}.{name}"
            raise RequestError(f"{path} is missing", param=path, code="missing_required_parameter")
        if not isinstance(self.value[name], str):
            raise self.wrong("it must be a text", name)
        return self.value[name]

    def need_object(self, names: Collection[str]) -> None:
        """Refuses what is no object, or has other fields."""
        if not isinstance(self.value, dict):
            raise self.wrong("it must be an object, such as a message")
        unknown = next((name for name in self.value if name not in names), None)
        if unknown is not None:
            path = f"{self.path}.{unknown}"
            raise RequestError(f"unknown field '{path}'", param=path, code="unknown_parameter")

    def parts(self) -> Iterator[tuple[str, Place]]:
        """The types of a list's objects, and these."""
        if not isinstance(self.value, list):
            raise self.wrong("it must be a text or a list of parts")
        for index, part in enumerate(self.value):
            place = Place(f"{self.path}[{index}]", part)
            if not isinstance(part, dict) or not isinstance(part.get("type"), str):
                raise place.wrong('a part is an object such as {"type": "text", "text": "…"}')
            yield part["type"], place

    def joined(self, types: Collection[str] = ("text",)) -> str:
        """A text, or the joined parts of one."""
        if isinstance(self.value, str):
            return self.value
        texts: list[str] = []
        for part_type, part in self.parts():
            if part_type not in types:
                message = f"parts of type {part_type[:60]!r} are not supported: this server reads text only"
                raise part.wrong(f"{message}, and fetches nothing", "type")
            texts.append(part.text("text"))
        return "".join(texts)


def _moved(error: RequestError, places: Sequence[str]) -> RequestError:
    """The error about a chat's messages[3].content, about this API's field: the place that each message came from."""
    match = re.match(r"messages\[(\d+)\](.*)", error.param or "")
    if match is not None:
        place = places[int(match[1])]
        error.param = f"{place}{match[2]}" if place.endswith("]") else place
    return error


# --- /v1/messages

# Names of chat fields in this API.
_MESSAGES_NAMES = {
    "max_completion_tokens": "max_tokens",
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "parallel_tool_calls": "tool_choice",
}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
# Fields of a tool that change nothing here: a prompt's beginning is always cached.
_HINTS = frozenset({"cache_control", "citations", "eager_input_streaming"})

_SYSTEM = request_fields.any_of_types(str, list, message="it must be a text or a list of text blocks")


class Thinking(request_fields.RequestFields):
    """How long a model reasons is its own matter: a budget is a wish. Whether it does, a template may ask."""

    type: Literal["disabled", "enabled", "adaptive"]
    budget_tokens: Annotated[int, Field(ge=1, le=request_fields.TOKEN_LIMIT)] | None = None
    display: Literal["summarized"] | None = None


class RequestMetadata(request_fields.RequestFields):
    user_id: str | None = None


class OutputConfig(request_fields.RequestFields):
    """`format`: {"type": "json_schema", "schema": …}. effort: how much is to be reasoned."""

    format: dict[str, Any] | None = None
    effort: request_fields.Effort | None = None


class CountRequest(request_fields.RequestFields):
    """POST /v1/messages/count_tokens, and what a message has in common with it."""

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
        messages: list[ChatMessage] = []
        if self.system is not None:
            messages.append({"role": "system", "content": Place("system", self.system).joined()})
        places = ["system"] * len(messages)
        for index, message in enumerate(self.messages):
            chat_messages = _messages_of(Place(f"messages[{index}]", message))
            messages += chat_messages
            places += [f"messages[{index}]"] * len(chat_messages)
        begun, last = messages[-1]["role"] == "assistant", Place(places[-1], messages[-1])
        if begun and messages[-1].get("tool_calls"):
            message = f"{last.path}: tool calls must be followed by their results, in a user message"
            raise RequestError(message, param=last.path)
        body = {
            "model": self.model,
            "messages": messages,
            "tools": None if self.tools is None else [_own_tool(tool, i) for i, tool in enumerate(self.tools)],
            **_choice_of(self.tool_choice),
            "response_format": self._format(),
            "reasoning_effort": self._effort(),
            "continue_final_message": begun or None,
            **self._settings(),
        }
        try:
            return as_chat(body, _MESSAGES_NAMES)
        except RequestError as error:
            if error.param == "continue_final_message":
                message = f"{last.path}: {error.message.partition(': ')[2]}"
                raise RequestError(message, param=last.path, code=error.code) from None
            raise _moved(error, places) from None

    def _effort(self) -> str | None:
        if self.thinking is not None and self.thinking.type == "disabled":
            return "none"
        if self.output_config is not None and self.output_config.effort is not None:
            return self.output_config.effort
        return None if self.thinking is None else "medium"

    def _format(self) -> dict[str, Any] | None:
        form = None if self.output_config is None else self.output_config.format
        if form is None:
            return None
        if form.keys() != {"type", "schema"} or form["type"] != "json_schema":
            raise Place("output_config.format", form).wrong('it must be {"type": "json_schema", "schema": {…}}')
        schema = {"name": "output", "strict": True, "schema": form["schema"]}
        return {"type": "json_schema", "json_schema": schema}

    def _settings(self) -> dict[str, Any]:
        return {}


class MessagesRequest(CountRequest):
    """POST /v1/messages."""

    max_tokens: Annotated[int, Field(ge=1, le=request_fields.TOKEN_LIMIT)]
    stop_sequences: (
        Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=request_fields.MAX_STOPS)] | None
    ) = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: request_fields.TopP | None = None
    top_k: request_fields.TopK | None = None
    stream: bool | None = None
    metadata: RequestMetadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None

    def _settings(self) -> dict[str, Any]:
        settings = self.model_dump(include={"temperature", "top_p", "top_k"})
        return {"max_completion_tokens": self.max_tokens, "stop": self.stop_sequences or None, **settings}


def _messages_of(message: Place) -> list[ChatMessage]:
    """One message as chats have it: results of tools stand before what the user says with them."""
    message.need_object(("role", "content"))
    role, content = message.value.get("role"), message.get("content")
    if role not in ("user", "assistant"):  # it may be of any kind, also of those that no set holds
        raise message.wrong("the roles are user and assistant; a system prompt is the field system", "role")
    if isinstance(content.value, str):
        return [{"role": role, "content": content.value}]
    if not content.value:
        raise content.wrong("it must be a text or a list of blocks")
    texts: list[str] = []
    reasoning: list[str] = []
    calls: list[dict[str, Any]] = []
    results: list[ChatMessage] = []
    for block_type, block in content.parts():
        match role, block_type:
            case _, "text":
                texts.append(block.text("text"))
            case "assistant", "thinking":
                reasoning.append(block.text("thinking"))
            case "assistant", "tool_use":
                if not isinstance(block.value.get("input"), dict):
                    raise block.wrong("it must be an object", "input")
                arguments = json.dumps(block.value["input"], ensure_ascii=False)
                function = {"name": block.text("name"), "arguments": arguments}
                calls.append({"id": block.text("id"), "type": "function", "function": function})
            case "user", "tool_result":
                result = "" if block.value.get("content") is None else block.get("content").joined()
                result = f"Error: {result}" if block.value.get("is_error") else result
                results.append({"role": "tool", "tool_call_id": block.text("tool_use_id"), "content": result})
            case _:
                raise block.wrong(
                    f"blocks of type {block_type[:60]!r} are not supported in a message of the {role}: this server "
                    "reads text, uses of tools and their results only, and fetches nothing",
                    "type",
                )
    chat_message: ChatMessage = {"role": role, "content": "".join(texts)}
    if calls:
        chat_message["tool_calls"] = calls
    if any(reasoning):
        chat_message["reasoning_content"] = "".join(reasoning)
    return [*results, chat_message] if texts or not results else results


def _own_tool(tool: Any, index: int) -> dict[str, Any]:
    place = Place(f"tools[{index}]", tool)
    if not isinstance(tool, dict):
        raise place.wrong("a tool is an object with name and input_schema")
    if tool.get("type") not in (None, "custom"):
        raise place.wrong(f"tools of type {str(tool['type'])[:60]!r} are not supported; only your own are", "type")
    function = {name: value for name, value in tool.items() if name not in {"type", "input_schema", *_HINTS}}
    return {"type": "function", "function": {**function, "parameters": tool.get("input_schema")}}


def _choice_of(choice: dict[str, Any] | None) -> dict[str, Any]:
    """tool_choice and parallel_tool_calls, as chats have them."""
    if choice is None:
        return {}
    place, choice_type = Place("tool_choice", choice), choice.get("type")
    parallel = {"parallel_tool_calls": False} if choice.get("disable_parallel_tool_use") else {}
    if choice_type == "tool":
        return {"tool_choice": {"type": "function", "function": {"name": place.text("name")}}, **parallel}
    if not isinstance(choice_type, str) or choice_type not in _CHOICES:
        raise place.wrong(f"it must be {', '.join(_CHOICES)} or tool", "type")
    return {"tool_choice": _CHOICES[choice_type], **parallel}


# --- /v1/responses

_LOGPROBS = "message.output_text.logprobs"
# What can be included; of the second there is nothing here.
_INCLUDABLE = (_LOGPROBS, "reasoning.encrypted_content")
_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
_TEXTS = ("input_text", "output_text", "text")
_MESSAGE_FIELDS = ("type", "role", "content", "id", "status", "phase")
_RESPONSES_NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "logprobs": "top_logprobs",
}

_CHOICE = request_fields.any_of_types(str, dict, message="it must be none, auto, required, or an object")


class TextOptions(request_fields.RequestFields):
    """`format`: {"type": "text"}, {"type": "json_object"}, or {"type": "json_schema", "name", "schema", …}."""

    format: dict[str, Any] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningOptions(request_fields.RequestFields):
    """effort: for models whose template asks. Reasoning is given as it is, so that there is nothing to sum up."""

    effort: request_fields.Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class ResponseStreamOptions(request_fields.RequestFields):
    include_obfuscation: bool | None = None


def _input_of(value: Any) -> Any:
    if not isinstance(value, str | list) or value == []:
        raise ValueError("it must be a text or a list of items, at least one")
    if isinstance(value, list) and len(value) > MAX_MESSAGES:
        raise ValueError(f"it holds {len(value):,} items; at most {MAX_MESSAGES:,} are read")
    return value


def _include_of(value: Any) -> Any:
    if isinstance(value, list) and not all(name in _INCLUDABLE for name in value):
        raise ValueError(f"only {' and '.join(_INCLUDABLE)} can be included")
    return value


class ResponsesRequest(request_fields.RequestFields):
    """POST /v1/responses."""

    model: str
    input: Annotated[str | list[Any], BeforeValidator(_input_of)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=request_fields.TOKEN_LIMIT)] | None = None
    temperature: request_fields.Temperature | None = None
    top_p: request_fields.TopP | None = None
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
    metadata: request_fields.Metadata | None = None
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
        messages = [*earlier, *_messages_of_items(self.input)]
        head = [] if self.instructions is None else [{"role": "system", "content": self.instructions}]
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [*head, *messages],
            "max_completion_tokens": self.max_output_tokens,
            **self.model_dump(include={"temperature", "top_p", "parallel_tool_calls"}),
            "response_format": None if self.text is None else _nested(self.text.format, "json_schema"),
            "tools": None if self.tools is None else [_function_tool(tool, i) for i, tool in enumerate(self.tools)],
            "tool_choice": _nested(self.tool_choice, "function", "allowed_tools"),
            "reasoning_effort": None if self.reasoning is None else self.reasoning.effort,
        }
        if self.includes_logprobs or self.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": self.top_logprobs or 0}
        try:
            return as_chat(body, _RESPONSES_NAMES), messages
        except RequestError as error:
            before = len(head) + len(earlier)
            raise _moved(error, ["input"] * before + [f"input[{i}]" for i in range(len(messages))]) from None


def _messages_of_items(input_items: str | Sequence[Any]) -> list[ChatMessage]:
    """Input items as messages: calls belong to the assistant's message before them, results are messages of tools."""
    if isinstance(input_items, str):
        return [{"role": "user", "content": input_items}]
    messages: list[ChatMessage] = []
    reasoning = ""
    for index, input_item in enumerate(input_items):
        place = Place(f"input[{index}]", input_item)
        if not isinstance(input_item, dict):
            raise place.wrong("an item is an object such as a message")
        item_type = input_item.get("type", "message")
        if item_type == "message":
            place.need_object(_MESSAGE_FIELDS)
            role = input_item.get("role")
            if not isinstance(role, str) or role not in _ROLES:
                raise place.wrong(f"the roles are {', '.join(_ROLES)}", "role")
            messages.append({"role": _ROLES[role], "content": _content_of(place.get("content"))})
        elif item_type == "reasoning":
            content = Place(f"{place.path}.content", input_item.get("content") or [])
            if not isinstance(content.value, list) or not all(isinstance(part, dict) for part in content.value):
                raise content.wrong("it must be a list of parts with texts")
            parts = [Place(f"{content.path}[{i}]", part) for i, part in enumerate(content.value)]
            reasoning += "".join(part.text("text") for part in parts)
            continue
        elif item_type == "function_call":
            function = {"name": place.text("name"), "arguments": place.text("arguments")}
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": ""})
            call = {"id": place.text("call_id"), "type": "function", "function": function}
            messages[-1].setdefault("tool_calls", []).append(call)
        elif item_type == "function_call_output":
            content = _content_of(place.get("output"))
            messages.append({"role": "tool", "tool_call_id": place.text("call_id"), "content": content})
        else:
            supported = "messages, reasoning, function calls and their outputs"
            message = f"items of type {str(item_type)[:60]!r} are not supported; only {supported} are"
            raise place.wrong(message, "type")
        if reasoning and messages[-1]["role"] == "assistant":
            # it belongs to what the assistant says or calls after it
            messages[-1]["reasoning_content"] = messages[-1].get("reasoning_content", "") + reasoning
        reasoning = ""
    return messages


def _content_of(content: Place) -> str:
    if content.value == []:
        raise content.wrong("it must be a text or a list of parts of type input_text")
    return content.joined(_TEXTS)


def _function_tool(tool: Any, index: int) -> dict[str, Any]:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        tool_type = tool.get("type") if isinstance(tool, dict) else tool
        message = f"only tools of type function are supported here, not {str(tool_type)[:60]!r}"
        raise RequestError(message, param=f"tools[{index}].type", code="invalid_value")
    return _nested(tool, "function")


def _nested(value: Any, *types: str) -> Any:
    """As chats have an object of one of these types: what belongs to the type is nested under its name."""
    if not isinstance(value, dict) or value.get("type") not in types:
        return value
    options = {name: option for name, option in value.items() if name != "type"}
    if value["type"] == "allowed_tools" and isinstance(options.get("tools"), list):
        options["tools"] = [_nested(tool, *types) for tool in options["tools"]]
    return {"type": value["type"], value["type"]: options}
