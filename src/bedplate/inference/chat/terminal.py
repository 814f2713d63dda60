"""The conversation as it is seen: on a terminal, or line by line through a pipe."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

from bedplate.core.errors import BedplateError, ContextLengthExceeded, RequestError
from bedplate.inference.chat.commands import CommandOutcome, run_command
from bedplate.inference.chat.conversation import Conversation
from bedplate.inference.chat.history import line_editing
from bedplate.inference.chat.partners import Turn

_BLOCK = '"""'
# What a model writes must not steer the terminal: control characters but tab and line feed are shown as pictures.
_SAFE = {
    **{code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"},
    127: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),
}
_LEAVES = "(Ctrl-C again, or Ctrl-D, leaves)"


class Screen:
    """Where answers and remarks go. Colours only on a terminal and without NO_COLOR; answers through a pipe are as the
    model gave them, and remarks then go to stderr."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self.is_terminal = out.isatty()
        self._out, self._err = out, err if not self.is_terminal else out
        self.colours = self.is_terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"

    def answer(self, text: str) -> None:
        self._out.write(text.translate(_SAFE) if self.is_terminal else text)
        self._out.flush()

    def thought(self, text: str) -> None:
        """Reasoning, which is not the answer: dimmed on a terminal, and kept out of what a pipe gets."""
        if self.is_terminal:
            shown = text.translate(_SAFE)
            self._out.write(f"\x1b[2m{shown}\x1b[0m" if self.colours else shown)
            self._out.flush()

    def remark(self, text: str) -> None:
        shown = text.translate(_SAFE) if self.is_terminal else text
        self._err.write(f"\x1b[2m{shown}\x1b[0m\n" if self.colours else f"{shown}\n")
        self._err.flush()

    def error(self, text: str) -> None:
        line = f"error: {text.translate(_SAFE)}"
        self._err.write(f"\x1b[31m{line}\x1b[0m\n" if self.colours else f"{line}\n")
        self._err.flush()

    def prompt(self, mark: str) -> str:
        """A prompt for `input`; what is not printed is marked for the line editor."""
        return f"\x01\x1b[1m\x02{mark}\x01\x1b[0m\x02" if self.colours else mark


def talk(conversation: Conversation) -> None:
    """The chat on a terminal, until Ctrl-D, /quit, or Ctrl-C twice."""
    screen = Screen(sys.stdout, sys.stderr)
    screen.remark(f"{conversation.partner.name}. /help lists the commands, Ctrl-D leaves.")
    for warning in conversation.partner.warnings:
        screen.remark(f"warning: {warning}")
    interrupted = False
    with line_editing():
        while True:
            try:
                content = _read(conversation, screen)
            except EOFError:
                screen.answer("\n")
                return
            except KeyboardInterrupt:
                screen.answer("\n")
                if interrupted:
                    return
                interrupted = True
                screen.remark(_LEAVES)
                continue
            interrupted = False
            if not content.strip():
                continue
            try:
                outcome = _outcome(conversation, content)
                if outcome.message:
                    screen.remark(outcome.message)
                if outcome.leave:
                    return
                if outcome.question is not None:
                    interrupted = _spoken(conversation, outcome.question, screen).finish_reason == "cancelled"
            except BedplateError as error:
                screen.error(_advice(error))


def pipe(conversation: Conversation, lines: Iterable[str], *, as_json: bool) -> int:
    """Each line a turn or a command; answers to stdout, or one JSON object for each. Returns the exit code: 1 where a
    line failed."""
    screen = Screen(sys.stdout, sys.stderr)
    for warning in conversation.partner.warnings:
        screen.remark(f"warning: {warning}")
    failed = False
    for line in lines:
        content = line.rstrip("\r\n")
        if not content.strip():
            continue
        try:
            outcome = _outcome(conversation, content)
            if outcome.message and not as_json:
                screen.remark(outcome.message)
            if outcome.leave:
                break
            if outcome.question is None:
                continue
            if as_json:
                _print_json(_silent(conversation, outcome.question))
            else:
                _spoken(conversation, outcome.question, screen)
        except BedplateError as error:
            failed = True
            if as_json:
                _print_json({"error": {"message": _advice(error), "code": error.code}})
            else:
                screen.error(_advice(error))
    return 1 if failed else 0


def _outcome(conversation: Conversation, content: str) -> CommandOutcome:
    if content.startswith("//"):
        return CommandOutcome(question=content[1:])
    return run_command(conversation, content) if content.startswith("/") else CommandOutcome(question=content)


def _spoken(conversation: Conversation, content: str, screen: Screen) -> Turn:
    """The answer, shown as it comes, and what it took. Ctrl-C stops it."""
    shown = ""
    reply = None
    try:
        reply = conversation.begin(content)
        thinking = False
        for piece in reply.pieces():
            if piece.section == "reasoning":
                screen.thought(piece.text)
                thinking = True
                continue
            if thinking:
                screen.thought("\n\n")
                thinking = False
            screen.answer(piece.text)
            shown += piece.text
    except KeyboardInterrupt:
        if not screen.is_terminal or reply is None:
            raise
        reply.stop()
    except BedplateError:
        if shown and not shown.endswith("\n"):
            screen.answer("\n")
        raise
    turn = conversation.finish(reply)
    if not shown and turn.text:
        screen.answer(turn.text)
    screen.answer("" if (shown or turn.text).endswith("\n") else "\n")
    for line in _scores(turn.scores):
        screen.remark(line)
    if screen.is_terminal:
        screen.remark(_facts(turn))
    elif turn.finish_reason == "length":
        screen.remark(_ending(turn))
    return turn


def _silent(conversation: Conversation, content: str) -> dict[str, Any]:
    reply = conversation.begin(content)
    for _ in reply.pieces():
        pass
    turn = conversation.finish(reply)
    fields: dict[str, Any] = {
        "input": content,
        "text": turn.text,
        "finish_reason": turn.finish_reason,
        "prompt_tokens": turn.prompt_tokens,
        "cached_tokens": turn.cached_tokens,
        "completion_tokens": turn.completion_tokens,
        "first_seconds": None if turn.first_seconds is None else round(turn.first_seconds, 4),
        "seconds": round(turn.seconds, 4),
    }
    if turn.scores:
        fields |= {"label": turn.text, "scores": dict(turn.scores)}
    if turn.reasoning:
        fields["reasoning"] = turn.reasoning
    return fields if turn.cost_usd is None else fields | {"cost_usd": turn.cost_usd}


def _print_json(content: Mapping[str, Any]) -> None:
    print(json.dumps(content, ensure_ascii=False), flush=True)


def _read(conversation: Conversation, screen: Screen) -> str:
    """One message, of several lines where it says so; of a skin with several inputs each by its name."""
    inputs = conversation.partner.inputs
    if len(inputs) < 2:
        return _read_text(screen, "> ")
    first = _read_text(screen, f"{inputs[0]}> ")
    if first.startswith("/") and not first.startswith("//"):
        return first
    values = [first, *(_read_text(screen, f"{name}> ") for name in inputs[1:])]
    plain = [value[1:] if value.startswith("//") else value for value in values]
    return json.dumps(dict(zip(inputs, plain, strict=True)), ensure_ascii=False)


def _read_text(screen: Screen, mark: str) -> str:
    line = input(screen.prompt(mark))
    continuation = screen.prompt("." * (len(mark) - 1) + " ")
    lines: list[str] = []
    if line.strip() == _BLOCK:
        while (line := input(continuation)).strip() != _BLOCK:
            lines.append(line)
        text = "\n".join(lines)
        return f"/{text}" if text.startswith("/") else text  # a text, never a command
    while line.endswith("\\"):
        lines.append(line[:-1])
        line = input(continuation)
    return "\n".join([*lines, line])


def _advice(error: BedplateError) -> str:
    if isinstance(error, ContextLengthExceeded):
        return f"the context is full: {error.message}; /reset begins anew, /undo takes the last turn back"
    if isinstance(error, RequestError) and error.param == "max_tokens":
        return f"{error.message}; /set max_tokens=… changes it"
    return error.message


def _scores(scores: Mapping[str, float]) -> list[str]:
    width = max(map(len, scores), default=0)
    ordered = sorted(scores.items(), key=lambda label_score: -label_score[1])
    return [
        f"  {label:<{width}}  {math.exp(score):6.1%}  {'█' * round(20 * math.exp(score))}" for label, score in ordered
    ]


def _facts(turn: Turn) -> str:
    """What a turn took: tokens, and how fast."""
    parts = [
        None if turn.prompt_tokens is None else f"{turn.prompt_tokens} tokens in, {turn.cached_tokens or 0} cached",
        f"{turn.completion_tokens} out" if turn.completion_tokens else None,
        None if turn.tokens_per_second is None else f"{turn.tokens_per_second:.1f} tokens/s",
        None if turn.first_seconds is None else f"first after {turn.first_seconds:.2f} s",
        f"{turn.seconds:.2f} s",
        None if turn.cost_usd is None else f"${turn.cost_usd:.2g}",
        _ending(turn),
    ]
    return f"[{', '.join(part for part in parts if part)}]"


def _ending(turn: Turn) -> str:
    if turn.finish_reason == "cancelled":
        return f"stopped {_LEAVES}"
    if turn.context_full:
        return "cut off: the context is full; /reset begins anew"
    return "cut off at max_tokens; /set max_tokens=… changes it" if turn.finish_reason == "length" else ""
