"""Tools in requests and replies, in the OpenAI API's shapes: definitions, choices, calls and results."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from bedplate.core.errors import RequestError
from bedplate.inference.engine.requests import Grammar
from bedplate.serving.schemas.request_fields import RequestFields, first_mistake
from bedplate.serving.schemas.response_formats import as_held
from bedplate.text.calls.call_formats import HERMES, format_of, tools_key
from bedplate.text.calls.call_grammar import call_grammar_source
from bedplate.text.calls.reading import CUT_REASONS, ReplyPiece
from bedplate.text.calls.reply_form import ReplyForm, effort_variables, with_reasoning
from bedplate.text.calls.tools import MAX_TOOLS, Tool, as_shown, told_tools, tools_variable, with_tools
from bedplate.text.tokenizer import Tokenizer

Json = dict[str, Any]
PLAIN_REPLY = ReplyForm()
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class Function(RequestFields):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _check_parameters(self) -> Self:
        as_held(self.parameters)
        return self


class ToolField(RequestFields):
    """One of `tools`. Arguments are held to the parameters' schema whether `strict` is set or not, but for
    `uniqueItems` that cannot be held: without `strict` they are a wish."""

    type: Literal["function"]
    function: Function
    cache_control: dict[str, Any] | None = None  # a prompt's beginning is always cached

    @property
    def tool(self) -> Tool:
        function = self.function
        parameters = as_held(function.parameters, strict=bool(function.strict))
        return Tool(function.name, function.description or "", parameters)


class NamedFunction(RequestFields):
    name: Name


class NamedChoice(RequestFields):
    """A `tool_choice` that names the tool to call."""

    type: Literal["function"]
    function: NamedFunction


class AllowedTools(RequestFields):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedChoice], Field(min_length=1, max_length=MAX_TOOLS)]


class AllowedChoice(RequestFields):
    """A `tool_choice` that leaves some of the tools to choose from."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


Choice = str | NamedChoice | AllowedChoice | None


def _arguments_of(arguments: Any) -> Any:
    """A call without arguments: clients that put a stream together may have nothing there."""
    nothing = arguments is None or (isinstance(arguments, str) and not arguments.strip())
    return "{}" if nothing else arguments


class CalledFunction(RequestFields):
    name: Name
    arguments: Annotated[str, BeforeValidator(_arguments_of, json_schema_input_type=str | None)]


class ToolCall(RequestFields):
    """A call that an assistant's message made. index: its place in a stream, which clients leave in it."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


_CHOICES: dict[Any, type[NamedChoice | AllowedChoice]] = {"function": NamedChoice, "allowed_tools": AllowedChoice}


def choice_of(value: Any) -> Any:
    if isinstance(value, str) and value not in {"none", "auto", "required"}:
        raise ValueError('it must be "none", "auto", "required" or {"type": "function", "function": {"name": …}}')
    if not isinstance(value, dict):
        return value
    choice_type = value.get("type")
    if not isinstance(choice_type, str) or choice_type not in _CHOICES:
        types = ", ".join(_CHOICES)
        raise ValueError(f"a choice of type {str(choice_type)[:60]!r} is not supported; the types are {types}")
    try:
        return _CHOICES[choice_type].model_validate(value)
    except ValidationError as error:
        raise ValueError(first_mistake(error, _CHOICES[choice_type]).message) from None


def is_required(choice: Choice) -> bool:
    """Whether the answer has to be a call."""
    return (
        choice == "required"
        or isinstance(choice, NamedChoice)
        or (isinstance(choice, AllowedChoice) and choice.allowed_tools.mode == "required")
    )


def usable(tools: Sequence[ToolField], choice: Choice) -> tuple[Tool, ...]:
    """The tools that may be called. ValueError for names that are taken twice or that no tool has."""
    names = [tool_field.function.name for tool_field in tools]
    duplicate = next((name for name in names if names.count(name) > 1), None)
    if duplicate is not None:
        raise ValueError(f"tools: two tools are called {duplicate!r}")
    if choice == "none":
        return ()
    if not tools and (is_required(choice) or isinstance(choice, AllowedChoice)):
        raise ValueError("tool_choice: there are no tools to choose from")
    if isinstance(choice, str | None):
        return tuple(tool_field.tool for tool_field in tools)
    named = [choice] if isinstance(choice, NamedChoice) else choice.allowed_tools.tools
    chosen = {named_choice.function.name for named_choice in named}
    missing = next((name for name in chosen if name not in names), None)
    if missing is not None:
        raise ValueError(f"tool_choice: no tool is called {missing!r}")
    return tuple(tool_field.tool for tool_field in tools if tool_field.function.name in chosen)


def calls_grammar(
    tools: Sequence[Tool], choice: Choice, parallel: bool, form: ReplyForm = PLAIN_REPLY, answer: Grammar | None = None
) -> Grammar:
    """Free text or valid calls, in the form of the base's replies; calls only where one is required. answer: what the
    text is held to where there is no call, which is JSON."""
    schema = None if answer is None else {"type": "object"} if answer.syntax == "json_object" else answer.source
    source = call_grammar_source(
        tools,
        required=is_required(choice),
        answer=schema,
        parallel=parallel,
        written=form.calls or HERMES,
        thinking=form.thinking,
        opened=form.opened,
        marks=form.marks,
    )
    return Grammar("tool_calls", source)


def conversation_tokens(
    tokenizer: Tokenizer,
    messages: Sequence[Json],
    tools: Sequence[Tool],
    *,
    answer: bool = True,
    begun: str = "",
    effort: str | None = None,
) -> list[int]:
    """Token ids of a conversation with tools, as `text.calls.tools` shows them. answer: up to where it begins, or with
    what it begins (begun). effort: how much is to be reasoned, where the template asks. RequestError for tools where
    the template shows them, but calls in no format that is known."""
    template = None if tokenizer.chat is None else tokenizer.chat.source
    talk = with_reasoning(messages, template)
    settings: Json = {"add_generation_prompt": answer, "begun": begun}
    if effort is not None and tokenizer.chat is not None:
        settings |= effort_variables(effort, tokenizer.chat.variables)
    written = format_of(template)
    if written is None and tools:
        raise RequestError(
            "this model's chat template shows tools, but its calls are in no format that is known here, so they could "
            "not be read; leave tools out",
            param="tools",
            code="unsupported_parameter",
        )
    variable = None if tokenizer.chat is None else tools_variable(tokenizer.chat)
    listed = variable is not None or (template is not None and tools_key(template) is not None)
    written = written or HERMES
    if not listed and (written is HERMES or written.channels):
        return tokenizer.encode_chat(with_tools(talk, tools), **settings)
    trusted_text = tokenizer.own_text()
    messages_with_tools = talk if listed else told_tools(talk, tools, written, trusted_text)
    shown = as_shown(messages_with_tools, written, tokenizer.chat, tools if listed else (), trusted_text)
    if variable is not None and tools:
        settings[variable] = [tool.plain() for tool in tools]
    return tokenizer.encode_chat(shown, trusted_text=trusted_text, **settings)


class Spoken:
    """One choice's text as it comes, told apart into reasoning, content and calls."""

    def __init__(self, form: ReplyForm | None) -> None:
        """form: None where all is content."""
        self.form = PLAIN_REPLY if form is None else form
        self._reader = self.form.reader()
        self._ids: list[str] = []
        self._reasoned: list[str] = []

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoned)

    def push(self, text: str) -> list[ReplyPiece]:
        return self._noted(self._reader.push(text))

    def finish(self, reason: str) -> list[ReplyPiece]:
        """What was held back, when the text has ended for this reason."""
        return self._noted(self._reader.finish(cut=reason in CUT_REASONS))

    def _noted(self, pieces: list[ReplyPiece]) -> list[ReplyPiece]:
        self._reasoned += [piece.text for piece in pieces if piece.section == "reasoning"]
        return pieces

    def id(self, call: int) -> str:
        """The id of a call, the same each time."""
        letters = None if self.form.calls is None else self.form.calls.id_letters
        while len(self._ids) <= call:
            drawn = uuid.uuid4().hex
            self._ids.append(f"call_{drawn[:24]}" if letters is None else drawn[:letters])
        return self._ids[call]

    def finish_reason(self, reason: str) -> str:
        """ "tool_calls" where the text ended with whole calls."""
        reader = self._reader
        return "tool_calls" if reader.calls and reader.closed and reason == "stop" else reason

    def delta(self, pieces: Sequence[ReplyPiece]) -> Json:
        """What the pieces add to a message, in the shape of a stream's delta."""
        delta: Json = {}
        calls: dict[int, Json] = {}
        for name, section in (("reasoning_content", "reasoning"), ("content", "content")):
            if text := "".join(piece.text for piece in pieces if piece.section == section):
                delta[name] = text
        for piece in pieces:
            if piece.section == "name":
                head = {"index": piece.call, "id": self.id(piece.call), "type": "function"}
                calls[piece.call] = {**head, "function": {"name": piece.text, "arguments": ""}}
            elif piece.section == "arguments":
                call = calls.setdefault(piece.call, {"index": piece.call, "function": {"arguments": ""}})
                call["function"]["arguments"] += piece.text
        return {**delta, "tool_calls": list(calls.values())} if calls else delta

    def message(self, text: str, reason: str) -> Json:
        """The whole message: the deltas of its text, which has ended for this reason, put together."""
        delta = self.delta([*self.push(text), *self.finish(reason)])
        calls = [{key: value for key, value in call.items() if key != "index"} for call in delta.get("tool_calls", ())]
        message: Json = {"role": "assistant", "content": delta.get("content", None if calls else ""), "refusal": None}
        message |= {name: delta[name] for name in ("reasoning_content",) if name in delta}
        return {**message, "tool_calls": calls} if calls else message


def check_results(messages: Sequence[Any]) -> None:
    """ValueError for a result of a call that was not made, or a call whose result is missing."""
    open_calls: dict[str, int] = {}
    for number, message in enumerate(messages):
        if message.role == "tool":
            if message.tool_call_id not in open_calls:
                raise ValueError(f"messages[{number}].tool_call_id: no call before it has this id")
            del open_calls[message.tool_call_id]
            continue
        if open_calls:
            break
        calls = message.tool_calls or ()
        open_calls = {call.id: number for call in calls}
        if len(open_calls) < len(calls):
            raise ValueError(f"messages[{number}].tool_calls: two calls have the same id; give each its own")
    if open_calls:
        name, number = next(iter(open_calls.items()))
        raise ValueError(f"messages[{number}].tool_calls: the call {name[:60]!r} has no result after it")


def refuse_tools(name: str, tools: Sequence[Tool]) -> None:
    """RequestError where a model that takes none is given tools."""
    if tools:
        raise RequestError(f"{name!r} is a skin: it calls no tools", param="tools", code="unsupported_parameter")
