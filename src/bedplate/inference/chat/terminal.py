"""A conversation as a person sees it: on a terminal, or line by line through a pipe."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Generator, Iterable, Mapping
from typing import Any, TextIO

from bedplate.core.errors import BedplateError, ContextLengthExceeded
from bedplate.core.files import bedplate_home
from bedplate.inference.chat.conversation import Conversation, run_command
from bedplate.inference.remote.endpoint import ChatAnswer

HISTORY_LINES = 1000
# What a model writes must not steer the terminal: control characters but tab and line feed are shown as pictures.
_SAFE = {
    **{code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"},
    127: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),
}
_LEAVES = "(Ctrl-C again, or Ctrl-D, leaves)"
_DIM, _RED = "2", "31"


class Screen:
    """Where answers and remarks go. Through a pipe answers are as the model gave them, and remarks go to stderr."""

    def __init__(self) -> None:
        self.is_terminal = sys.stdout.isatty()
        self._colours = self.is_terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"

    def answer(self, text: str) -> None:
        self._write(sys.stdout, text)

    def thought(self, text: str) -> None:
        """Shows reasoning, which is not the answer: dimmed on a terminal, and kept out of what a pipe gets."""
        if self.is_terminal:
            self._write(sys.stdout, text, _DIM)

    def remark(self, text: str, style: str = _DIM) -> None:
        self._write(sys.stdout if self.is_terminal else sys.stderr, text, style, end="\n")

    def _write(self, file: TextIO, text: str, style: str = "", end: str = "") -> None:
        shown = text.translate(_SAFE) if self.is_terminal else text
        file.write((f"\x1b[{style}m{shown}\x1b[0m" if style and self._colours else shown) + end)
        file.flush()


def talk(conversation: Conversation) -> None:
    """Chats on a terminal until Ctrl-D, /quit, or Ctrl-C twice."""
    screen = Screen()
    screen.remark(f"{conversation.partner.name}. /help lists the commands, Ctrl-D leaves.")
    _warn(conversation, screen)
    interrupted = False
    with line_editing():
        while True:
            try:
                content = input("> ")
                interrupted = False
                interrupted = _take(conversation, content, screen) == "cancelled"
            except EOFError:
                screen.answer("\n")
                return
            except KeyboardInterrupt:
                screen.answer("\n")
                if interrupted:
                    return
                interrupted = True
                screen.remark(_LEAVES)
            except BedplateError as error:
                screen.remark(f"error: {_advice(error)}", _RED)


def pipe(conversation: Conversation, lines: Iterable[str], *, as_json: bool) -> int:
    """Takes each line as a turn or a command; writes answers to stdout, or one JSON object for each. Returns the exit
    code: 1 where a line failed."""
    screen, code = Screen(), 0
    _warn(conversation, screen)
    for line in lines:
        try:
            _take(conversation, line.rstrip("\r\n"), screen, as_json=as_json)
        except EOFError:
            break
        except BedplateError as error:
            code = 1
            if as_json:
                print(json.dumps({"error": {"message": _advice(error), "code": error.code}}), flush=True)
            else:
                screen.remark(f"error: {_advice(error)}", _RED)
    return code


def _warn(conversation: Conversation, screen: Screen) -> None:
    for warning in conversation.partner.warnings:
        screen.remark(f"warning: {warning}")


def _take(conversation: Conversation, content: str, screen: Screen, *, as_json: bool = False) -> str:
    """Runs a command or asks a message; returns why the answer ended, "" where there is none."""
    if not content.strip():
        return ""
    if content.startswith("/") and not content.startswith("//"):
        shown = run_command(conversation, content)
        if not as_json:
            screen.remark(shown)
        return ""
    content = content[1:] if content.startswith("//") else content
    if not as_json:
        return _show_answer(conversation, content, screen)
    reply = conversation.begin(content)
    for _ in reply.pieces():
        pass
    fields = _answer_fields(content, conversation.finish(reply))
    print(json.dumps(fields, ensure_ascii=False), flush=True)
    return ""


def _show_answer(conversation: Conversation, content: str, screen: Screen) -> str:
    """Shows the answer as it comes, and what it took. Ctrl-C stops it. Returns why it ended."""
    reply, shown, thinking = None, "", False
    try:
        reply = conversation.begin(content)
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
        reply.close()
    except BedplateError:
        if shown and not shown.endswith("\n"):
            screen.answer("\n")
        raise
    answer = conversation.finish(reply)
    screen.answer("" if shown.endswith("\n") else "\n")
    scores = _scores(answer)
    width = max(map(len, scores), default=0)
    for label, score in sorted(scores.items(), key=lambda pair: -pair[1]):
        screen.remark(f"  {label:<{width}}  {math.exp(score):6.1%}  {'█' * round(20 * math.exp(score))}")
    ending = {"cancelled": f"stopped {_LEAVES}", "length": "cut off at max_tokens, or the context is full (/reset)"}
    notes = [*(_costs(answer) if screen.is_terminal else ()), ending.get(answer.finish_reason)]
    remark = ", ".join(filter(None, notes))
    if remark:
        screen.remark(f"[{remark}]" if screen.is_terminal else remark)
    return answer.finish_reason


def _answer_fields(content: str, answer: ChatAnswer) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "input": content,
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "cached_tokens": answer.cached_tokens,
        "completion_tokens": answer.completion_tokens,
        "first_seconds": None if answer.first_seconds is None else round(answer.first_seconds, 4),
        "seconds": round(answer.seconds, 4),
    }
    scores = _scores(answer)
    fields |= {"label": answer.text, "scores": dict(scores)} if scores else {}
    fields |= {"reasoning": answer.reasoning} if answer.reasoning else {}
    return fields if answer.cost_usd is None else fields | {"cost_usd": answer.cost_usd}


def _scores(answer: ChatAnswer) -> Mapping[str, float]:
    scores = answer.extension.get("scores")
    return scores if isinstance(scores, dict) else {}


def _costs(answer: ChatAnswer) -> list[str]:
    """Tokens, seconds and dollars of an answer, where they are known."""
    costs = [f"{answer.completion_tokens or 0} out"]
    if answer.prompt_tokens is not None:
        costs.insert(0, f"{answer.prompt_tokens} tokens in, {answer.cached_tokens or 0} cached")
    if answer.first_seconds is not None:
        costs.append(f"first after {answer.first_seconds:.2f} s")
    costs.append(f"{answer.seconds:.2f} s")
    return costs if answer.cost_usd is None else [*costs, f"${answer.cost_usd:.2g}"]


def _advice(error: BedplateError) -> str:
    full = isinstance(error, ContextLengthExceeded)
    return f"the context is full: {error.message}; /reset begins anew" if full else error.message


@contextlib.contextmanager
def line_editing() -> Generator[None]:
    """Inside, `input` edits lines and recalls earlier ones, which are kept between chats for their owner alone."""
    try:
        import readline
    except ImportError:  # a Python without it: lines are plain
        yield
        return
    path = bedplate_home() / "chat_history"
    readline.clear_history()
    readline.set_history_length(HISTORY_LINES)
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    before = readline.get_current_history_length()
    try:
        yield
    finally:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.chmod(0o600)
        readline.append_history_file(readline.get_current_history_length() - before, path)
