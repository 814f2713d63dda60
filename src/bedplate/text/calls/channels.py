"""Replies in channels, as gpt-oss writes them (https://cookbook.openai.com/articles/openai-harmony):

    <|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…

`analysis` is reasoning, `final` and a `commentary` to nobody are content, a message `to=functions.NAME` is a call.
"""

from __future__ import annotations

import json
import re
from typing import Literal

from bedplate.text.calls.call_formats import FRAME_CHARACTERS, partial_mark
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
        self._buffer = ""
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
        pieces: list[ReplyPiece] = []
        for start in range(0, len(text), SLICE):
            self._buffer += text[start : start + SLICE]
            while self._header(pieces) if self._state == "header" else self._body(pieces):
                pass
        return pieces

    def finish(self, *, cut: bool = False) -> list[ReplyPiece]:
        pieces: list[ReplyPiece] = []
        buffered, self._buffer = "" if cut else self._buffer, ""
        if self._state == "header":
            if self._spoken or cut:  # nothing was said under it
                return []
            self._state = "content"
        self._emit(pieces, buffered)
        if self._state == "arguments":
            self._end(pieces)
            self._state = "arguments"
        elif self._state == "content" and not self.calls:
            trailing_space = self._space.flush()
            if trailing_space.strip():
                pieces.append(ReplyPiece("content", trailing_space))
        return pieces

    def _header(self, pieces: list[ReplyPiece]) -> bool:
        window = self._buffer[:FRAME_CHARACTERS]
        header, mark, _ = window.partition(_MESSAGE)
        begins = window.lstrip()
        plausible = any(begins.startswith(start) or start.startswith(begins) for start in _STARTS)
        if not mark or not plausible:
            if plausible and len(window) < FRAME_CHARACTERS:
                return False
            if any(end != self._buffer and end.startswith(self._buffer) for end in _ENDS):
                return False  # a mark that is not here in full
            self._open("content")  # no header: it is said as it is, its mark included
            mark = _END.match(self._buffer)
            at = 0 if mark is None else mark.end()
            self._emit(pieces, self._buffer[:at])
            self._buffer = self._buffer[at:]
            return True
        self._buffer = self._buffer[len(header) + len(mark) :]
        recipient, channel = _RECIPIENT.search(header), _CHANNEL.findall(header)
        if recipient is not None and self._reads_calls:
            self._open("arguments")
            pieces.append(ReplyPiece("name", recipient.group(1), self.calls))
            self.calls += 1
        else:
            self._open("reasoning" if channel[-1:] == ["analysis"] and recipient is None else "content")
        return True

    def _open(self, state: Literal["content", "reasoning", "arguments"]) -> None:
        # messages of one kind are told apart by a line
        self._state, self._space, self._written, self._spoken = state, WaitingSpace(leading=False), [], True

    def _body(self, pieces: list[ReplyPiece]) -> bool:
        end = _END.search(self._buffer)
        if end is None:
            cut = max(partial_mark(self._buffer, mark) for mark in _ENDS)
            text, self._buffer = self._buffer[: len(self._buffer) - cut], self._buffer[len(self._buffer) - cut :]
            self._emit(pieces, text)
            return False
        text = self._buffer[: end.start()]
        opens = end.group() in {"<|start|>", "<|channel|>"}
        self._buffer = self._buffer[end.start() if opens else end.end() :]
        self._emit(pieces, text)
        self._end(pieces)
        return True

    def _emit(self, pieces: list[ReplyPiece], text: str) -> None:
        text = self._space.push(text)
        if text and self._state == "arguments":
            self._written.append(text)
            pieces.append(ReplyPiece("arguments", text, self.calls - 1))
        elif text:
            pieces.append(ReplyPiece("reasoning" if self._state == "reasoning" else "content", text))

    def _end(self, pieces: list[ReplyPiece]) -> None:
        """A message has ended."""
        if self._state == "arguments":
            if not self._written:
                self._written.append("{}")
                pieces.append(ReplyPiece("arguments", "{}", self.calls - 1))
            self._whole = self._whole and self._is_json()
        self._state = "header"
