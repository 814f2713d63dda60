"""What a request may ask: the fields of the OpenAI API that are served, their ranges, and those that are refused.

Reference: the API's published schema, "create chat completion" and "create completion". Further sampling fields (top_k,
min_p, repetition_penalty) are named as other servers name them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, ValidationError, model_validator

from bedplate.core.errors import RequestError

MAX_CHOICES = 8
MAX_STOPS = 16
"""The API itself takes 4; evaluation harnesses send more."""
MAX_PROMPTS = 1024
TOKEN_LIMIT = 2**31
SEED_LOW, SEED_HIGH = -(2**63), 2**63 - 1

# Fields that change nothing about the answer.
_HOUSEKEEPING = frozenset(
    ("user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "parallel_tool_calls")
)
# Fields of the API that are not served, and the values of them that ask for nothing.
_NOT_SERVED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "prediction": (),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}
_ROLES = ("system", "user", "assistant")

M = TypeVar("M", bound=BaseModel)


class Fields(BaseModel):
    """What every request model is: exact types, no unknown fields, no NaN."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


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


def stops_of(stop: Any) -> Any:
    stops = [stop] if isinstance(stop, str) else stop
    if isinstance(stops, list):
        if len(stops) > MAX_STOPS:
            raise ValueError(f"at most {MAX_STOPS} stop strings are supported")
        if not all(isinstance(text, str) and text for text in stops):
            raise ValueError("stop must be a string that is not empty, or a list of such strings")
        return tuple(stops)
    return stops


def prompts_of(prompt: Any) -> Any:
    """A tuple of prompts, each a text or token ids, from one or a list of them (validator)."""
    prompts: list[Any] = [prompt]
    if isinstance(prompt, list) and (not prompt or not _is_id(prompt[0])):
        prompts = prompt
    if not prompts:
        raise ValueError("the prompt is an empty list; give at least one prompt")
    if len(prompts) > MAX_PROMPTS:
        raise ValueError(f"at most {MAX_PROMPTS} prompts are supported in one request")
    if not all(isinstance(one, str) or (isinstance(one, list) and one and all(map(_is_id, one))) for one in prompts):
        raise ValueError("the prompt must be a string, a list of token ids, or a list of either")
    if len({isinstance(one, str) for one in prompts}) > 1:
        raise ValueError("the prompts must all be strings, or all be lists of token ids")
    return tuple(one if isinstance(one, str) else tuple(one) for one in prompts)


# What may be sent where validators make one shape of several.
PROMPTS = BeforeValidator(prompts_of, json_schema_input_type=str | list[str] | list[int] | list[list[int]])
STOPS = BeforeValidator(stops_of, json_schema_input_type=str | list[str])
CONTENT = BeforeValidator(_text_of, json_schema_input_type=str | list[dict[str, Any]])


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < TOKEN_LIMIT


def either(*kinds: type, said: str) -> BeforeValidator:
    """For a field that may be of several kinds: one message, where a union's would speak of each of them."""

    def check(value: Any) -> Any:
        if value is not None and not isinstance(value, kinds):
            raise ValueError(said)
        return value

    return BeforeValidator(check)


class Message(Fields):
    """One turn of a conversation."""

    role: Annotated[Literal["system", "user", "assistant"], BeforeValidator(_role_of)]
    content: Annotated[str, CONTENT]
    name: str | None = None
    # Clients send replies back as they got them: with the fields that said nothing.
    refusal: None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None

    def plain(self) -> dict[str, str]:
        """As chat templates see it."""
        name = {} if self.name is None else {"name": self.name}
        return {"role": self.role, "content": self.content, **name}


class StreamOptions(Fields):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class _Asked(Fields, ABC):
    """What both endpoints take."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=0, le=TOKEN_LIMIT)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=TOKEN_LIMIT)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    seed: Annotated[int, Field(ge=SEED_LOW, le=SEED_HIGH)] | None = None
    stop: Annotated[tuple[str, ...], STOPS] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    _sampling: ClassVar[tuple[str, ...]] = (
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "seed",
        "stop",
    )

    @model_validator(mode="after")
    def _options_belong_to_streams(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only for requests with stream set to true")
        if self.prompt_logprobs is not None and self.stream:
            raise ValueError("prompt_logprobs: not for streams; ask for the whole reply")
        return self

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
        given = {name: getattr(self, name) for name in self._sampling}
        given |= {"max_tokens": self.token_limit, "logprobs": self.alternatives}
        given["prompt_logprobs"] = self.prompt_logprobs
        return {name: value for name, value in given.items() if value is not None}


class ChatRequest(_Asked):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], FailFast(), Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1, le=TOKEN_LIMIT)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=TOKEN_LIMIT)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: only for requests with logprobs set to true")
        both = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(both) > 1:
            raise ValueError("max_tokens: differs from max_completion_tokens; give one of them")
        return self

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def limit_field(self) -> str:
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    @property
    def alternatives(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


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


def read_fields(model: type[M], body: Mapping[str, Any]) -> M:
    """The body as a request. RequestError names the first field that is wrong, unknown or not served."""
    kept: dict[str, Any] = {}
    for name, value in body.items():
        if name in _HOUSEKEEPING:
            continue
        if name in _NOT_SERVED and name not in model.model_fields:
            if value is not None and not any(_same(value, neutral) for neutral in _NOT_SERVED[name]):
                allowed = " or ".join(map(repr, _NOT_SERVED[name])) or "null"
                raise RequestError(
                    f"{name} is not supported here (only {allowed}, which asks for nothing); leave it out",
                    param=name,
                    code="unsupported_parameter",
                )
            continue
        kept[name] = value
    try:
        return model.model_validate(kept)
    except ValidationError as error:
        raise _first(error, model) from None


def _same(value: Any, neutral: Any) -> bool:
    return type(value) is type(neutral) and value == neutral


def _first(error: ValidationError, model: type[BaseModel]) -> RequestError:
    """One message for the first thing that is wrong."""
    found = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ""
    for part in found["loc"]:
        where += f"[{part}]" if isinstance(part, int) else f".{part}" if where else str(part)
    message = found["msg"].removeprefix("Value error, ")
    if found["type"] == "extra_forbidden":
        what = f"unknown field {where!r}"
        known = ", ".join(sorted(model.model_fields))
        return RequestError(f"{what}; the fields are {known}", param=where, code="unknown_parameter")
    if found["type"] == "missing":
        return RequestError(f"{where} is missing", param=where, code="missing_required_parameter")
    if not where:  # checks over several fields begin with the one to change
        return RequestError(message, param=message.split(":", 1)[0], code="invalid_value")
    return RequestError(f"{where}: {message}", param=where, code="invalid_value")
