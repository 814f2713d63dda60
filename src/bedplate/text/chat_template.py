"""Chat templates: a conversation to the text that the model was trained on.

Renders as transformers' `apply_chat_template(tokenize=False)` does, inside `bedplate.text.sandbox`, with caps on the
template's size, the output's size and the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import copy_context
from functools import cached_property, lru_cache
from typing import Any

import jinja2
import jinja2.meta

from bedplate.core.errors import TemplateError
from bedplate.core.files import sha256_bytes
from bedplate.text import sandbox

TEMPLATE_BYTES = 256 * 1024
RENDER_SECONDS = 5.0

Message = Mapping[str, Any]


@lru_cache(maxsize=1)
def _environment() -> sandbox.TemplateEnvironment:
    return sandbox.TemplateEnvironment()


def plain(value: Any) -> Any:
    """The value rebuilt from JSON types, so that a template sees no method of a caller's object.

    Raises TemplateError on anything that JSON has no word for."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {plain(key): plain(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(child) for child in value]
    for base_type in (str, int, float):
        if isinstance(value, base_type):
            return base_type(value)
    raise TemplateError(
        f"a conversation holds a {type(value).__name__}; messages and tools are made of strings, numbers, lists and "
        "dictionaries"
    )


def plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as plain data. Keys whose value is None are left out, as transformers does: clients send
    `content: null` beside tool calls, and templates would print the word None."""
    turns: Any = messages
    if isinstance(turns, (str, bytes, Mapping)):
        raise TemplateError("a conversation is a list of messages such as {'role': 'user', 'content': '…'}")
    if not messages:
        raise TemplateError("the conversation is empty; give at least one message")
    result: list[dict[str, Any]] = []
    for position, message in enumerate(turns):
        if not isinstance(message, Mapping):
            problem = f"is a {type(message).__name__}, not a dictionary with role and content"
            raise TemplateError(f"message {position} {problem}")
        result.append({key: value for key, value in plain(message).items() if value is not None})
    return result


class ChatTemplate:
    """One jinja chat template. `bos` and `eos` are what it sees as `bos_token` and `eos_token`; `tokens` are further
    names (`pad_token` …). Immutable and safe to share between threads."""

    def __init__(self, source: str, *, bos: str = "", eos: str = "", tokens: Mapping[str, str] | None = None) -> None:
        """Raises TemplateError for a template that is too long or does not parse."""
        size = len(source.encode("utf-8", "surrogatepass"))
        if size > TEMPLATE_BYTES:
            raise TemplateError(f"the chat template has {size:,} bytes; at most {TEMPLATE_BYTES:,} are accepted")
        self.source = source
        named = {"bos_token": bos, "eos_token": eos, **(tokens or {})}
        self.tokens = {name: token for name, token in named.items() if token}
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"the chat template does not parse: line {error.lineno}: {error.message}") from error
        except (jinja2.TemplateError, SyntaxError, RecursionError, MemoryError, ValueError) as error:
            raise TemplateError(f"the chat template does not compile: {error}") from error

    @property
    def identity(self) -> str:
        """sha256 of the template's source."""
        return sha256_bytes(self.source.encode("utf-8", "surrogatepass"))

    @cached_property
    def variables(self) -> frozenset[str]:
        """The names that it looks up and does not set in every case itself: `messages`, `enable_thinking` …"""
        return frozenset(jinja2.meta.find_undeclared_variables(_environment().parse(self.source)))

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **extra: Any,
    ) -> str:
        """The conversation as text. `extra` are further variables (`enable_thinking=False` …).

        Raises TemplateError when the template refuses the conversation, fails, or goes over a cap."""
        variables: dict[str, Any] = {"documents": None, **self.tokens}
        variables |= {key: plain(value) for key, value in extra.items()}
        variables |= {"messages": plain_messages(messages), "tools": None if tools is None else plain(tools)}
        variables["add_generation_prompt"] = add_generation_prompt
        return copy_context().run(self._render, variables)

    def _render(self, variables: dict[str, Any]) -> str:
        # the fresh context above keeps the budget of one rendering away from every other one
        sandbox.BUDGET.set(sandbox.Budget(RENDER_SECONDS))
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(variables):
                size += len(piece)
                if size > sandbox.OUTPUT_CHARACTERS:
                    raise sandbox.Overrun(f"it wrote more than {sandbox.OUTPUT_CHARACTERS:,} characters")
                pieces.append(piece)
        except sandbox.Overrun as error:
            raise TemplateError(f"the chat template was stopped: {error}") from error
        except jinja2.TemplateError as error:
            raise TemplateError(f"the chat template refused the conversation: {error.message or error}") from error
        except RecursionError as error:
            raise TemplateError("the chat template was stopped: it recurses too deeply") from error
        except Exception as error:  # a template is a program: whatever it does wrong is the template's error
            raise TemplateError(f"the chat template failed: {type(error).__name__}: {error}") from error
        return "".join(pieces)
