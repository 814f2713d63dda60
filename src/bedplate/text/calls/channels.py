"""Replies in channels, as gpt-oss writes them (https://cookbook.openai.com/articles/openai-harmony):

    <|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…

`analysis` is reasoning, `final` and a `commentary` to nobody are content, a message `to=functions.NAME` is a call.
"""

from __future__ import annotations

import json
import re
from typing import Literal

from bedplate.text.calls.formats import FRAME_CHARACTERS, partial_mark
from bedplate.text.calls.reading import SLICE, ReplyPiece, WaitingSpace

_MESSAGE = "<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>", "<|channel|>")
_END = re.compile("|".join(re.escape(mark) for mark in _ENDS))
_STARTS = ("<|start|>", "<|channel|>", "to=")
_RECIPIENT = re.compile(r"to=functions\.([a-zA-Z0-9_.-]{1,64})")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")


class ChannelReader:
    """Tells the channels apart. calls=False: a call is content, for none may be made."""

    def __init__(self, *, calls: bool = True) -> None:
        self._reads_calls = calls
        self._held = ""
        self._state: Literal["header", "content", "reasoning", "arguments"] = "header"
        self._space = WaitingSpace(leading=False)
        self._written: list[str] = []
        self._spoken = False
        self._whole = True
        self.calls = 0

    @property
    def closed(self) -> bool:
        """The token that ends a call ends the reply, and is not in its text: its arguments say whether it is whole."""
        return self._whole and (self._state != "arguments" or self._is_json())

    def _is_json(self) -> bool:
        try:
            return isinstance(json.loads("".join(self._written) or "{}"), dict)
        except (ValueError, RecursionError):
            return False

    def push(self, text: str) -> list[ReplyPiece]:
        found: list[ReplyPiece] = []
        for start in range(0, len(text), SLICE):
            self._held += text[start : start + SLICE]
            while self._header(found) if self._state == "header" else self._body(found):
                pass
        return found

    def finish(self, *, cut: bool = False) -> list[ReplyPiece]:
        found: list[ReplyPiece] = []
        held, self._held = "" if cut else self._held, ""
        if self._state == "header":
            if self._spoken or cut:  # nothing was said under it
                return []
            self._state = "content"
        self._say(found, held)
        if self._state == "arguments":
            self._end(found)
            self._state = "arguments"
        elif self._state == "content" and not self.calls:
            rest = self._space.take()
            if rest.strip():
                found.append(ReplyPiece("content", rest))
        return found

    def _header(self, found: list[ReplyPiece]) -> bool:
        window = self._held[:FRAME_CHARACTERS]
        header, mark, _ = window.partition(_MESSAGE)
        begins = window.lstrip()
        plausible = any(begins.startswith(one) or one.startswith(begins) for one in _STARTS)
        if not mark or not plausible:
            if plausible and len(window) < FRAME_CHARACTERS:
                return False
            if any(end != self._held and end.startswith(self._held) for end in _ENDS):
                return False  # a mark that is not here in full
            self._open("content")  # no header: it is said as it is, its mark included
            mark = _END.match(self._held)
            at = 0 if mark is None else mark.end()
            self._say(found, self._held[:at])
            self._held = self._held[at:]
            return True
        self._held = self._held[len(header) + len(mark) :]
        recipient, channel = _RECIPIENT.search(header), _CHANNEL.findall(header)
        if recipient is not None and self._reads_calls:
            self._open("arguments")
            found.append(ReplyPiece("name", recipient.group(1), self.calls))
            self.calls += 1
        else:
            self._open("reasoning" if channel[-1:] == ["analysis"] and recipient is None else "content")
        return True

    def _open(self, state: Literal["content", "reasoning", "arguments"]) -> None:
        # messages of one kind are told apart by a line
        self._state, self._space, self._written, self._spoken = state, WaitingSpace(leading=False), [], True

    def _body(self, found: list[ReplyPiece]) -> bool:
        end = _END.search(self._held)
        if end is None:
            cut = max(partial_mark(self._held, mark) for mark in _ENDS)
            text, self._held = self._held[: len(self._held) - cut], self._held[len(self._held) - cut :]
            self._say(found, text)
            return False
        text = self._held[: end.start()]
        opens = end.group() in {"<|start|>", "<|channel|>"}
        self._held = self._held[end.start() if opens else end.end() :]
        self._say(found, text)
        self._end(found)
        return True

    def _say(self, found: list[ReplyPiece], text: str) -> None:
        text = self._space.push(text)
        if text and self._state == "arguments":
            self._written.append(text)
            found.append(ReplyPiece("arguments", text, self.calls - 1))
        elif text:
            found.append(ReplyPiece("reasoning" if self._state == "reasoning" else "content", text))

    def _end(self, found: list[ReplyPiece]) -> None:
        """A message has ended."""
        if self._state == "arguments":
            if not self._written:
                self._written.append("{}")
                found.append(ReplyPiece("arguments", "{}", self.calls - 1))
            self._whole = self._whole and self._is_json()
        self._state = "header"
