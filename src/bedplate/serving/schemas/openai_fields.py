"""Fields of chat completions and completions: those that are served, their ranges, and those that are refused.

Reference: the API's published schema, "create chat completion" and "create completion". Further sampling fields (top_k,
min_p, repetition_penalty) are named as other servers name them.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, TypeVar, cast

from pydantic import BaseModel, BeforeValidator, FailFast, Field, ValidationError, model_validator

from bedplate.core.errors import RequestError
from bedplate.inference.engine.requests import Grammar, Sampling
from bedplate.serving.schemas import request_fields, tool_fields
from bedplate.serving.schemas.response_formats import SCHEMA, ResponseFormat, StructuredOutputs, guided
from bedplate.text.calls.reply_form import ReplyForm
from bedplate.text.calls.tools import MAX_TOOLS, Tool

MAX_MESSAGES = 10_000
"""Most messages of a conversation: more fit no model's context, and checking them takes others' time."""
_ROLES = ("system", "developer", "user", "assistant", "tool")
# A prompt's beginning is always cached.
_PART_HINTS = frozenset(("cache_control",))


def _text_of(content: Any) -> Any:
    """A message's content as one text: a string, or the joined parts of type text."""
    if not isinstance(content, list):
        return content
    texts: list[str] = []
    for part in content:
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise ValueError('a content part must be an object such as {"type": "text", "text": "…"}')
        if part["type"] != "text":
            raise ValueError(f"content parts of type {part['type'][:60]!r} are not supported; only text is")
        if set(part) - _PART_HINTS != {"type", "text"} or not isinstance(part["text"], str):
            raise ValueError("a text part has the fields type, text and perhaps cache_control, and text is a string")
        texts.append(part["text"])
    if not texts:
        raise ValueError("the content has no parts; give a string or parts of type text")
    return "".join(texts)


def _role_of(role: Any) -> Any:
    if isinstance(role, str) and role not in _ROLES:
        raise ValueError(f"there is no role {role[:60]!r} here; the roles are {', '.join(_ROLES)}")
    return role


CONTENT = BeforeValidator(_text_of, json_schema_input_type=str | list[dict[str, Any]])


class Message(request_fields.RequestFields):
    """One turn of a conversation."""

    role: Annotated[Literal["system", "developer", "user", "assistant", "tool"], BeforeValidator(_role_of)]
    content: Annotated[str, CONTENT]
    name: str | None = None
    tool_calls: list[tool_fields.ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _nothing_said(cls, message: Any) -> Any:
        if not isinstance(message, dict):
            return message
        fields = cast("dict[str, Any]", message)
        if fields.get("tool_calls") == []:
            fields = {**fields, "tool_calls": None}
        silent = fields.get("content") in (None, [])
        may_be_silent = "content" in fields and fields.get("role") in ("assistant", "tool")
        return {**fields, "content": ""} if silent and (fields.get("tool_calls") or may_be_silent) else fields

    @model_validator(mode="after")
    def _fields_of_the_role(self) -> Self:
        if self.tool_calls is not None and self.role != "assistant":
            raise ValueError("only an assistant's message has tool_calls")
        if self.reasoning_content is not None and self.role != "assistant":
            raise ValueError("only an assistant's message has reasoning_content")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("a message of role tool has a tool_call_id, and no other has")
        return self

    def plain(self) -> dict[str, Any]:
        """As chat templates see it."""
        fields = self.model_dump(include={"name", "tool_call_id", "reasoning_content"}, exclude_none=True)
        if self.tool_calls is not None:
            fields["tool_calls"] = [call.model_dump(exclude={"index"}) for call in self.tool_calls]
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content, **fields}


MAX_CHOICES = 128
MAX_PROMPTS = 1024
MAX_ANSWERS = 8192
"""Prompts times choices of one request; how many may be queued at once is the server's limit."""

# Fields that change nothing about the answer. (No tools run here whose calls could be too many.)
_CACHE_HINTS = ("prompt_cache_key", "prompt_cache_retention")
_HOUSEKEEPING = {"user", "metadata", "safety_identifier", *_CACHE_HINTS, "max_tool_calls"}
# Fields of the API that are not served, and the values of them that change nothing here: there is one tier, chats are
# not kept, and how long an answer is is the model's own matter.
_NOT_SERVED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "function_call": ("none",),
    "functions": ([],),
    "modalities": (["text"],),
    "prediction": (),
    "service_tier": ("auto", "default", "flex", "priority", "scale"),
    "store": (False, True),
    "suffix": ("",),
    "verbosity": ("low", "medium", "high"),
    "web_search_options": (),
}
_INSTEAD = {"functions": "use tools", "function_call": "use tool_choice"}

M = TypeVar("M", bound=BaseModel)


def prompts_of(prompt: Any) -> Any:
    """A tuple of prompts, each a text or token ids, from one or a list of them (validator)."""
    prompts: list[Any] = [prompt]
    if isinstance(prompt, list) and (not prompt or not request_fields.is_id(prompt[0])):
        prompts = prompt
    if not prompts:
        raise ValueError("the prompt is an empty list; give at least one prompt")
    if len(prompts) > MAX_PROMPTS:
        raise ValueError(f"at most {MAX_PROMPTS} prompts are supported in one request")
    if not all(
        isinstance(candidate, str)
        or (isinstance(candidate, list) and candidate and all(map(request_fields.is_id, candidate)))
        for candidate in prompts
    ):
        raise ValueError("the prompt must be a string, a list of token ids, or a list of either")
    if len({isinstance(candidate, str) for candidate in prompts}) > 1:
        raise ValueError("the prompts must all be strings, or all be lists of token ids")
    return tuple(candidate if isinstance(candidate, str) else tuple(candidate) for candidate in prompts)


def _cut_of(limit: Any) -> Any:
    """What `truncate_prompt_tokens` asks for, as vLLM has it: −1 stands for what the model's publisher says."""
    if limit is None or limit is False:
        return False
    if type(limit) is not int or not (limit == -1 or 1 <= limit < request_fields.TOKEN_LIMIT):
        raise ValueError("it must be a number of tokens, at least 1, or -1 for what the model was made for")
    return True if limit == -1 else limit


CUT = Annotated[bool | int, BeforeValidator(_cut_of, json_schema_input_type=int | None)]

# What may be sent where a validator makes one shape of several.
PROMPTS = BeforeValidator(prompts_of, json_schema_input_type=str | list[str] | list[int] | list[list[int]])

_CHOICE = request_fields.any_of_types(
    str, tool_fields.NamedChoice, tool_fields.AllowedChoice, message="it must be a word or an object"
)


class StreamOptions(request_fields.RequestFields):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class _GenerationFields(request_fields.RequestFields, ABC):
    """Fields of both endpoints."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=0, le=request_fields.TOKEN_LIMIT)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    temperature: request_fields.Temperature | None = None
    top_p: request_fields.TopP | None = None
    top_k: request_fields.TopK | None = None
    min_p: request_fields.MinP | None = None
    repetition_penalty: request_fields.RepetitionPenalty | None = None
    presence_penalty: request_fields.Penalty | None = None
    frequency_penalty: request_fields.Penalty | None = None
    seed: request_fields.Seed | None = None
    stop: request_fields.Stops | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    logit_bias: request_fields.Biases | None = None
    min_tokens: Annotated[int, Field(ge=0, le=request_fields.TOKEN_LIMIT)] | None = None
    stop_token_ids: request_fields.TokenIds | None = None
    ignore_eos: bool | None = None
    response_format: ResponseFormat | None = None
    guided_json: Annotated[dict[str, Any] | str | None, SCHEMA] = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    structured_outputs: StructuredOutputs | None = None

    @model_validator(mode="after")
    def _options_belong_to_streams(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only for requests with stream set to true")
        if self.prompt_logprobs is not None and self.stream:
            raise ValueError("prompt_logprobs: not for streams; ask for the whole reply")
        if len(self._forms()) > 1:
            first, second = list(self._forms())[:2]
            raise ValueError(f"{second}: the answer's form is given by {first} already; give one of them")
        return self

    def _forms(self) -> dict[str, Grammar]:
        structured = self.structured_outputs
        grammars = {
            "response_format": self.response_format and self.response_format.grammar,
            "guided_json": guided(schema=self.guided_json),
            "guided_regex": guided(regex=self.guided_regex),
            "guided_choice": guided(choice=self.guided_choice),
            "guided_grammar": guided(rules=self.guided_grammar),
            "structured_outputs": structured and structured.requested_grammar,
        }
        return {field: grammar for field, grammar in grammars.items() if grammar is not None}

    @property
    def grammar(self) -> tuple[str, Grammar] | None:
        """The field that constrains the answer, and its grammar."""
        return next(iter(self._forms().items()), None)

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def reports_usage(self) -> bool:
        """Whether a stream ends with a chunk of token counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def obfuscates(self) -> bool:
        """Whether a stream's events are to be padded, so that their sizes tell less of what is in them."""
        return self.stream_options is not None and bool(self.stream_options.include_obfuscation)

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens

    @property
    def limit_field(self) -> str:
        """The field that a message about too many tokens speaks of."""
        return "max_tokens"

    @property
    @abstractmethod
    def alternatives(self) -> int | None:
        """Number of alternatives to report per token; None: no log-probabilities."""

    def sampling(self) -> dict[str, Any]:
        """The settings that the request gives, by their names in `Sampling`."""
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(Sampling)}
        settings |= {"max_tokens": self.token_limit, "logprobs": self.alternatives}
        return {name: value for name, value in settings.items() if value is not None}


class ChatRequest(_GenerationFields):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], FailFast(), Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Annotated[int, Field(ge=1, le=request_fields.TOKEN_LIMIT)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=request_fields.TOKEN_LIMIT)] | None = None
    tools: Annotated[list[tool_fields.ToolField], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Annotated[
        str | tool_fields.NamedChoice | tool_fields.AllowedChoice | None,
        _CHOICE,
        BeforeValidator(tool_fields.choice_of, json_schema_input_type=str | dict[str, Any] | None),
    ] = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    reasoning_effort: request_fields.Effort | None = None
    continue_final_message: bool | None = None
    """vLLM's: the answer goes on with the last message, which is the assistant's."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: only for requests with logprobs set to true")
        token_limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(token_limits) > 1:
            raise ValueError("max_tokens: differs from max_completion_tokens; give one of them")
        tool_fields.check_results(self.messages)
        if self.continue_final_message:
            self._check_begun()
        for field, form in self._forms().items() if self.usable_tools else ():
            if form.syntax not in {"json_schema", "json_object"}:
                message = "with tools that may be called, an answer can be held to JSON only; set tool_choice to none"
                raise ValueError(f"{field}: {message}")
        return self

    def _check_begun(self) -> None:
        last = self.messages[-1]
        if last.role != "assistant" or last.tool_calls or not last.content or len(self.messages) < 2:
            message = "the last message must be the assistant's, with a text to continue, and not the only one"
            raise ValueError(f"continue_final_message: {message}")
        if last.content != last.content.rstrip():
            message = "the assistant's text to continue ends in white space, after which models seldom write well"
            raise ValueError(f"messages: {message}; remove it")
        if self._forms():
            message = "an answer that is held to a format cannot continue a text; leave one of them out"
            raise ValueError(f"continue_final_message: {message}")

    @property
    def usable_tools(self) -> tuple[Tool, ...]:
        return tool_fields.usable(self.tools or (), self.tool_choice)

    @property
    def grammar(self) -> tuple[str, Grammar] | None:
        return self.grammar_in(tool_fields.PLAIN_REPLY)

    @property
    def content_grammar(self) -> tuple[str, Grammar] | None:
        """What the text is held to, calls of tools aside."""
        return super().grammar

    def grammar_in(self, form: ReplyForm) -> tuple[str, Grammar] | None:
        """What the answer is held to, where replies have this form."""
        if not self.usable_tools:
            return self.content_grammar
        parallel, answer = self.parallel_tool_calls is not False, self.content_grammar
        answer_grammar = None if answer is None else answer[1]
        return "tools", tool_fields.calls_grammar(self.usable_tools, self.tool_choice, parallel, form, answer_grammar)

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def limit_field(self) -> str:
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    @property
    def alternatives(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def skin_inputs(self) -> Sequence[str]:
        users = [message.content for message in self.messages if message.role == "user"]
        return [content for content in users[-1:] if content]


class CompletionRequest(_GenerationFields):
    """POST /v1/completions."""

    prompt: Annotated[tuple[str | tuple[int, ...], ...], PROMPTS]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.echo and self.stream and self.logprobs is not None:
            raise ValueError("logprobs: not together with both echo and stream")
        if len(self.prompt) * self.choices > MAX_ANSWERS:
            size = f"{len(self.prompt):,} prompts with {self.n} answers each"
            raise ValueError(f"n: {size} are more than {MAX_ANSWERS:,} answers")
        return self

    @property
    def alternatives(self) -> int | None:
        return self.logprobs

    @property
    def skin_inputs(self) -> Sequence[str]:
        return [prompt for prompt in self.prompt if isinstance(prompt, str)]


def read_fields(model: type[M], body: Mapping[str, Any]) -> M:
    """The body as a request. RequestError names the first field that is wrong, unknown or not served."""
    fields: dict[str, Any] = {}
    for name, value in body.items():
        if name in _HOUSEKEEPING and name not in model.model_fields:
            continue
        if name in _NOT_SERVED and name not in model.model_fields:
            if value is not None and (type(value), value) not in ((type(v), v) for v in _NOT_SERVED[name]):
                allowed = " or ".join(map(repr, _NOT_SERVED[name])) or "null"
                message = f"{name} is not supported here (only {allowed}, which changes nothing)"
                instead = _INSTEAD.get(name, "leave it out")
                raise RequestError(f"{message}; {instead}", param=name, code="unsupported_parameter")
            continue
        fields[name] = value
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise request_fields.first_mistake(error, model) from None


def as_chat(body: Mapping[str, Any], names: Mapping[str, str]) -> ChatRequest:
    """The chat that a request amounts to. names: what the request calls the chat's fields, for messages about them."""
    try:
        return read_fields(ChatRequest, {name: value for name, value in body.items() if value is not None})
    except RequestError as error:
        head = (error.param or "").split("[", 1)[0].split(".", 1)[0]
        if head in names:
            error.param = names[head]
        raise
