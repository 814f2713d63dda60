"""What a request may ask: the fields of the OpenAI API that are served, their ranges, and those that are refused.

Reference: the API's published schema, "create chat completion" and "create completion". Further sampling fields (top_k,
min_p, repetition_penalty) are named as other servers name them.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, FailFast, Field, ValidationError, model_validator

from bedplate.core.errors import RequestError
from bedplate.inference.engine.requests import Grammar, Sampling
from bedplate.serving.wire.formats import SCHEMA, ResponseFormat, StructuredOutputs, guided
from bedplate.serving.wire.sampling_fields import (
    TOKEN_LIMIT,
    Biases,
    MinP,
    Penalty,
    RepetitionPenalty,
    Seed,
    Stops,
    Temperature,
    TokenIds,
    TopK,
    TopP,
    is_id,
)
from bedplate.serving.wire.strict_fields import RequestFields, either, first_mistake
from bedplate.serving.wire.tools import (
    PLAIN_REPLY,
    NamedChoice,
    ToolCall,
    ToolField,
    calls_grammar,
    check_results,
    choice_of,
    usable,
)
from bedplate.text.reply_form import ReplyForm
from bedplate.text.tool_calls import MAX_TOOLS, Tool

MAX_CHOICES = 8
MAX_PROMPTS = 1024

# Fields that change nothing about the answer.
_HOUSEKEEPING = frozenset(("user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"))
# Fields of the API that are not served, and the values of them that ask for nothing.
_NOT_SERVED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "function_call": ("none",),
    "functions": ([],),
    "modalities": (["text"],),
    "prediction": (),
    "reasoning_effort": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "verbosity": (),
    "web_search_options": (),
}
_INSTEAD = {"functions": "use tools", "function_call": "use tool_choice"}
_ROLES = ("system", "developer", "user", "assistant", "tool")

M = TypeVar("M", bound=BaseModel)


def _text_of(content: Any) -> Any:
    """A message's content as one text: a string, or the joined parts of type text."""
    if not isinstance(content, list):
        return content
    texts: list[str] = []
    for part in content:
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise ValueError('a content part must be an object such as {"type": "text", "text": "…"}')
        if part["type"] != "text":
            raise ValueError(f"content parts of type {part['type']!r} are not supported; only text is")
        if part.keys() != {"type", "text"} or not isinstance(part["text"], str):
            raise ValueError("a text part has exactly the fields type and text, and text is a string")
        texts.append(part["text"])
    if not texts:
        raise ValueError("the content has no parts; give a string or parts of type text")
    return "".join(texts)


def _role_of(role: Any) -> Any:
    if isinstance(role, str) and role not in _ROLES:
        raise ValueError(f"there is no role {role!r} here; the roles are {', '.join(_ROLES)}")
    return role


def prompts_of(prompt: Any) -> Any:
    """A tuple of prompts, each a text or token ids, from one or a list of them (validator)."""
    prompts: list[Any] = [prompt]
    if isinstance(prompt, list) and (not prompt or not is_id(prompt[0])):
        prompts = prompt
    if not prompts:
        raise ValueError("the prompt is an empty list; give at least one prompt")
    if len(prompts) > MAX_PROMPTS:
        raise ValueError(f"at most {MAX_PROMPTS} prompts are supported in one request")
    if not all(isinstance(one, str) or (isinstance(one, list) and one and all(map(is_id, one))) for one in prompts):
        raise ValueError("the prompt must be a string, a list of token ids, or a list of either")
    if len({isinstance(one, str) for one in prompts}) > 1:
        raise ValueError("the prompts must all be strings, or all be lists of token ids")
    return tuple(one if isinstance(one, str) else tuple(one) for one in prompts)


def _cut_of(limit: Any) -> Any:
    """What `truncate_prompt_tokens` asks for, as vLLM has it: −1 stands for what the model's publisher says."""
    if limit is None or limit is False:
        return False
    if type(limit) is not int or not (limit == -1 or 1 <= limit < TOKEN_LIMIT):
        raise ValueError("it must be a number of tokens, at least 1, or -1 for what the model was made for")
    return True if limit == -1 else limit


CUT = Annotated[bool | int, BeforeValidator(_cut_of, json_schema_input_type=int | None)]

# What may be sent where validators make one shape of several.
PROMPTS = BeforeValidator(prompts_of, json_schema_input_type=str | list[str] | list[int] | list[list[int]])
CONTENT = BeforeValidator(_text_of, json_schema_input_type=str | list[dict[str, Any]])


_CHOICE = either(str, dict, said="it must be a word or an object")


class Message(RequestFields):
    """One turn of a conversation."""

    role: Annotated[Literal["system", "developer", "user", "assistant", "tool"], BeforeValidator(_role_of)]
    content: Annotated[str, CONTENT]
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(min_length=1)] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    # Clients send replies back as they got them: with the fields that said nothing.
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _calls_need_no_content(cls, message: Any) -> Any:
        if isinstance(message, dict) and message.get("tool_calls") and message.get("content") is None:
            return {**message, "content": ""}
        return message

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
        more: dict[str, Any] = {name: getattr(self, name) for name in ("name", "tool_call_id", "reasoning_content")}
        if self.tool_calls is not None:
            more["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        role = "system" if self.role == "developer" else self.role
        return {
            "role": role,
            "content": self.content,
            **{key: value for key, value in more.items() if value is not None},
        }


class StreamOptions(RequestFields):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class _Asked(RequestFields, ABC):
    """What both endpoints take."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=0, le=TOKEN_LIMIT)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    repetition_penalty: RepetitionPenalty | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Seed | None = None
    stop: Stops | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    logit_bias: Biases | None = None
    min_tokens: Annotated[int, Field(ge=0, le=TOKEN_LIMIT)] | None = None
    stop_token_ids: TokenIds | None = None
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
        asked = {
            "response_format": None if self.response_format is None else self.response_format.grammar,
            "guided_json": guided(self.guided_json, None, None, None),
            "guided_regex": guided(None, self.guided_regex, None, None),
            "guided_choice": guided(None, None, self.guided_choice, None),
            "guided_grammar": guided(None, None, None, self.guided_grammar),
            "structured_outputs": None if self.structured_outputs is None else self.structured_outputs.asked,
        }
        return {field: grammar for field, grammar in asked.items() if grammar is not None}

    @property
    def grammar(self) -> tuple[str, Grammar] | None:
        """What the answer is held to, and the field that says so."""
        return next(iter(self._forms().items()), None)

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def reports_usage(self) -> bool:
        """Whether a stream ends with a chunk of token counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

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
        """How many alternatives to report for each token; None reports no log-probabilities."""

    def sampling(self) -> dict[str, Any]:
        """The settings that the request gives, by their names in `Sampling`."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(Sampling)}
        given |= {"max_tokens": self.token_limit, "logprobs": self.alternatives}
        return {name: value for name, value in given.items() if value is not None}


class ChatRequest(_Asked):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], FailFast(), Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1, le=TOKEN_LIMIT)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=TOKEN_LIMIT)] | None = None
    tools: Annotated[list[ToolField], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Annotated[
        str | NamedChoice | None,
        _CHOICE,
        BeforeValidator(choice_of, json_schema_input_type=str | dict[str, Any] | None),
    ] = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: only for requests with logprobs set to true")
        both = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(both) > 1:
            raise ValueError("max_tokens: differs from max_completion_tokens; give one of them")
        check_results(self.messages)
        if self.usable_tools and self._forms():
            field = next(iter(self._forms()))
            raise ValueError(f"{field}: not together with tools that may be called; set tool_choice to none")
        return self

    @property
    def usable_tools(self) -> tuple[Tool, ...]:
        """The tools that may be called in this turn."""
        return usable(self.tools or (), self.tool_choice)

    @property
    def grammar(self) -> tuple[str, Grammar] | None:
        return self.grammar_in(PLAIN_REPLY)

    def grammar_in(self, form: ReplyForm) -> tuple[str, Grammar] | None:
        """What the answer is held to, where replies have this form."""
        if not self.usable_tools:
            return super().grammar
        parallel = self.parallel_tool_calls is not False
        return "tools", calls_grammar(self.usable_tools, self.tool_choice, parallel, form)

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
    def given(self) -> Sequence[str]:
        users = [message.content for message in self.messages if message.role == "user"]
        return [content for content in users[-1:] if content]


class CompletionRequest(_Asked):
    """POST /v1/completions."""

    prompt: Annotated[tuple[str | tuple[int, ...], ...], PROMPTS]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.echo and self.stream and self.logprobs is not None:
            raise ValueError("logprobs: not together with both echo and stream")
        return self

    @property
    def alternatives(self) -> int | None:
        return self.logprobs

    @property
    def given(self) -> Sequence[str]:
        return [prompt for prompt in self.prompt if isinstance(prompt, str)]


def read_fields(model: type[M], body: Mapping[str, Any]) -> M:
    """The body as a request. RequestError names the first field that is wrong, unknown or not served."""
    kept: dict[str, Any] = {}
    for name, value in body.items():
        if name in _HOUSEKEEPING and name not in model.model_fields:
            continue
        if name in _NOT_SERVED and name not in model.model_fields:
            if value is not None and not any(_same(value, neutral) for neutral in _NOT_SERVED[name]):
                allowed = " or ".join(map(repr, _NOT_SERVED[name])) or "null"
                instead = _INSTEAD.get(name, "leave it out")
                raise RequestError(
                    f"{name} is not supported here (only {allowed}, which asks for nothing); {instead}",
                    param=name,
                    code="unsupported_parameter",
                )
            continue
        kept[name] = value
    try:
        return model.model_validate(kept)
    except ValidationError as error:
        raise first_mistake(error, model) from None


def as_chat(body: Mapping[str, Any], names: Mapping[str, str]) -> ChatRequest:
    """The chat that a request amounts to. names: what the request calls the chat's fields, for messages about them."""
    try:
        return read_fields(ChatRequest, {name: value for name, value in body.items() if value is not None})
    except RequestError as error:
        head = (error.param or "").split("[", 1)[0].split(".", 1)[0]
        if head in names:
            error.param = names[head]
        raise


def _same(value: Any, neutral: Any) -> bool:
    return type(value) is type(neutral) and value == neutral
