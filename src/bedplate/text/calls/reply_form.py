"""The form of a base's replies: what is reasoning in them, what content and what calls of tools. It is read off the
chat template, and so are the marks (special tokens among them) that a reply's text must keep for it."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from bedplate.text.calls.call_formats import CallFormat, format_of, partial_mark
from bedplate.text.calls.reading import CallReader, ChannelReader, PlainReader, ReplyPiece, ReplyReader, WaitingSpace
from bedplate.text.calls.tools import Tool
from bedplate.text.chat_template import Message
from bedplate.text.tokenizer import Tokenizer

THINKING = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<|channel>thought", "<channel|>"))
"""What stands around reasoning: Qwen 3, DeepSeek-R1, SmolLM3 and others; Mistral's; Gemma 4's."""
_TAIL_TOKENS = 16


@dataclass(frozen=True)
class ReplyForm:
    """calls: how tools are called, None where they are not. thinking: what stands around reasoning that may begin the
    reply; opened: the prompt has begun it already. marks: the special tokens of all these, by their texts."""

    calls: CallFormat | None = None
    tools: tuple[Tool, ...] = ()
    thinking: tuple[str, str] | None = None
    opened: bool = False
    channels: bool = False
    marks: dict[str, int] = field(default_factory=dict[str, int])

    def reader(self) -> ReplyReader:
        """For one reply."""
        if self.channels:
            return ChannelReader(calls=self.calls is not None)
        inner = PlainReader() if self.calls is None else CallReader(self.calls, self.tools)
        return inner if self.thinking is None else ThinkingReader(inner, self.thinking, self.opened)


@lru_cache(maxsize=64)
def thinking_of(template: str | None) -> tuple[str, str] | None:
    """What stands around reasoning in a template's conversations."""
    # some only begin it in the prompt, and leave its end to the reply
    source = "" if template is None else template
    return next((pair for pair in THINKING if pair[0] in source or pair[1] in source), None)


def reply_form(
    tokenizer: Tokenizer, prompt: Sequence[int], tools: Sequence[Tool], *, reasons: bool = True
) -> ReplyForm:
    """The form of the reply to a prompt. reasons: whether it may begin with reasoning."""
    template = None if tokenizer.chat is None else tokenizer.chat.source
    calls, thinking = format_of(template), thinking_of(template) if reasons else None
    channels = calls is not None and calls.channels
    texts = [*(thinking or ())]
    if calls is not None and (tools or channels):
        texts += calls.texts
    marks: dict[str, int] = {}
    if texts:
        for index in tokenizer.special_ids - set(tokenizer.eos_ids):
            token = tokenizer.id_to_token(index)
            if token and any(token in text for text in texts):
                marks[token] = index
    opened = False
    if thinking is not None:
        tail = tokenizer.decode(prompt[-_TAIL_TOKENS:], skip_special_tokens=False)
        opened = tail.rstrip().endswith(thinking[0])
    return ReplyForm(calls if tools else None, tuple(tools), None if channels else thinking, opened, channels, marks)


_EFFORTS = {"none": "low", "minimal": "low", "xhigh": "high", "max": "high"}


def effort_variables(effort: str, variables: Set[str]) -> dict[str, Any]:
    """What a template that looks up these variables is told of how much is to be reasoned: gpt-oss's knows three
    efforts; Qwen 3's, SmolLM3's and DeepSeek V3.1's, whether it is to be done at all. Nothing to all others."""
    thinks = effort not in {"none", "minimal"}
    settings = {"reasoning_effort": _EFFORTS.get(effort, effort), "enable_thinking": thinks, "thinking": thinks}
    return {name: value for name, value in settings.items() if name in variables}


def begun_tokens(tokenizer: Tokenizer, prompt: Sequence[int], form: ReplyForm, begun: str) -> list[int]:
    """A prompt whose reply already begins with a text that is neither reasoning nor a call, where the form has
    something before such a text: reasoning that the prompt opens is closed, the channel of answers is opened."""
    before = "<|channel|>final<|message|>" if form.channels else f"{form.thinking[1]}\n\n" if form.thinking else ""
    return [*prompt, *tokenizer.encode(before), *tokenizer.encode(begun, parse_special=False)]


def with_reasoning(messages: Sequence[Message], template: str | None) -> Sequence[Message]:
    """The conversation with reasoning under the name that the template knows."""
    if template is None or "reasoning_content" in template or ".thinking" not in template:
        return messages
    names = {"reasoning_content": "thinking"}
    return [{names.get(key, key): value for key, value in message.items()} for message in messages]


class ThinkingReader:
    """Reasoning at a reply's beginning, kept apart from what follows, which `inner` reads."""

    def __init__(self, inner: ReplyReader, marks: tuple[str, str], opened: bool) -> None:
        self._inner, (self._open, self._close) = inner, marks
        self._state: Literal["start", "reasoning", "after", "rest"] = "reasoning" if opened else "start"
        self._space = WaitingSpace(leading=False)
        self._buffer = ""
        self._before: list[str] = []
        """White space that may stand before reasoning."""

    @property
    def calls(self) -> int:
        return self._inner.calls

    @property
    def closed(self) -> bool:
        return self._inner.closed

    def push(self, text: str) -> list[ReplyPiece]:
        if self._state == "rest":
            return self._inner.push(text)
        pieces: list[ReplyPiece] = []
        self._buffer += text
        if self._state == "start":
            self._start()
        if self._state == "reasoning":
            self._reason(pieces)
        if self._state == "after":
            # the lines between reasoning and answer belong to neither
            self._buffer = self._buffer.lstrip()
            if self._buffer:
                self._state = "rest"
        if self._state == "rest":
            text, self._buffer = self._buffer, ""
            pieces += self._inner.push(text)
        return pieces

    def finish(self, *, cut: bool = False) -> list[ReplyPiece]:
        buffered, self._buffer = "" if cut else self._buffer, ""
        if self._state == "reasoning":
            text = self._space.push(buffered)
            return [ReplyPiece("reasoning", text)] if text else []
        if self._state == "start":
            text = "" if cut else "".join(self._before) + buffered
            return [*self._inner.push(text), *self._inner.finish(cut=cut)]
        return self._inner.finish(cut=cut)

    def _start(self) -> None:
        text = self._buffer.lstrip()
        if len(text) < len(self._buffer):
            # apart, so that none is looked at again with what follows
            self._before.append(self._buffer[: len(self._buffer) - len(text)])
        self._buffer = text
        if text.startswith(self._open):
            self._state, self._buffer = "reasoning", text[len(self._open) :]
        elif not self._open.startswith(text):
            self._state, self._buffer = "rest", "".join(self._before) + text

    def _reason(self, pieces: list[ReplyPiece]) -> None:
        before, mark, after = self._buffer.partition(self._close)
        cut = 0 if mark else partial_mark(before, self._close)
        text = self._space.push(before[: len(before) - cut])
        self._buffer = after if mark else before[len(before) - cut :]
        if text:
            pieces.append(ReplyPiece("reasoning", text))
        if mark:
            self._state = "after"
