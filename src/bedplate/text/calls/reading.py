"""A reply that comes in pieces, told apart into content and calls. Each character is looked at a bounded number of
times, and what may still become part of a call is never given as content.

Replies of gpt-oss come in channels (https://cookbook.openai.com/articles/openai-harmony):

    <|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…

`analysis` is reasoning, `final` and a `commentary` to nobody are content, a message `to=functions.NAME` is a call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from bedplate.core.json import load_json
from bedplate.text.calls.call_formats import FRAME_CHARACTERS, HERMES, CallFormat, Framed, find_frame, partial_mark
from bedplate.text.calls.literals import LiteralReader, begins_literals
from bedplate.text.calls.tools import Tool
from bedplate.text.json_schema import DEPTH

CUT_REASONS = ("length", "cancelled")
"""Why a text ends in the middle of what it says."""
SLICE = 256
"""Text is taken in slices of so many characters, so that what is held stays short."""


@dataclass(frozen=True)
class ReplyPiece:
    """What newly read text adds: to the reply's `content` or `reasoning`, or to a call: its `name`, then pieces of its
    `arguments`. `call` counts from 0."""

    section: Literal["content", "reasoning", "name", "arguments"]
    text: str
    call: int = -1


class ReplyReader(Protocol):
    """Tells a reply's text apart as it comes."""

    @property
    def calls(self) -> int:
        """How many have begun."""
        ...

    @property
    def closed(self) -> bool:
        """No call is unfinished or malformed."""
        ...

    def push(self, text: str) -> list[ReplyPiece]: ...
    def finish(self, *, cut: bool = False) -> list[ReplyPiece]:
        """What is still held when the text ends. cut: it was cut off, so that what may be the beginning of a mark is
        one, and no content."""
        ...


class PlainReader:
    """All is content."""

    calls = 0
    closed = True

    def push(self, text: str) -> list[ReplyPiece]:
        return [ReplyPiece("content", text)] if text else []

    def finish(self, *, cut: bool = False) -> list[ReplyPiece]:
        return []


class WaitingSpace:
    """White space waits for what follows it: it is dropped at the end, and (leading=False) at the beginning."""

    def __init__(self, *, leading: bool = True) -> None:
        self._pending: list[str] = []
        self._begun = leading

    def push(self, text: str) -> str:
        """What may be given now."""
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        stripped = text.rstrip()
        if stripped:
            before, self._pending = "".join(self._pending), []
            stripped, text = before + stripped, text[len(stripped) :]
        if text:
            self._pending.append(text)
        return stripped

    def flush(self) -> str:
        pending, self._pending = "".join(self._pending), []
        return pending


class CallReader:
    """Calls in one of the formats. tools: whose parameters say which tagged values are texts."""

    def __init__(self, written: CallFormat = HERMES, tools: Sequence[Tool] = ()) -> None:
        self._format = written
        self._properties = {tool.name: tool.schema.get("properties", {}) for tool in tools}
        self._buffer = ""
        self._state: Literal["content", "head", "arguments", "key", "value", "tail", "next"] = "content"
        self._opener = ""
        self._broken = False
        self._space = WaitingSpace()
        self._depth, self._quoted, self._escaped = 0, False, False
        self._literal: LiteralReader | None = None
        self._tool, self._key, self._value, self._keys = "", "", list[str](), 0
        self.calls = 0
        if written.bare:
            self._state = "head"

    @property
    def closed(self) -> bool:
        ended = not self._format.closes[0] or (self._format.open_end and self._buffer.strip() in ("", "]"))
        is_complete = self._state == "content" or (self._state == "next" and ended)
        return not self._broken and (is_complete or (self._state == "head" and not self._opener and not self._buffer))

    def push(self, text: str) -> list[ReplyPiece]:
        pieces: list[ReplyPiece] = []
        for start in range(0, len(text), SLICE):
            self._buffer += text[start : start + SLICE]
            while self._step(pieces):
                pass
        return pieces

    def finish(self, *, cut: bool = False) -> list[ReplyPiece]:
        """A call without a name yet is given as the text that it is, unless it was cut off before it had one."""
        space, buffered, self._buffer = self._space.flush(), self._buffer, ""
        if self._state == "value":  # as far as it was written
            pieces: list[ReplyPiece] = []
            self._emit_arguments(pieces, self._member("".join(self._value) + ("" if cut else buffered))[:-1])
            return pieces
        if self._state not in ("head", "content"):
            return []
        if self._state == "head":
            buffered = self._opener + buffered
        self._broken = self._broken or (bool(buffered) and (cut or self._state == "head"))
        text = "" if cut and buffered else space + buffered
        return [ReplyPiece("content", text)] if text and not (self.calls and not text.strip()) else []

    def _step(self, pieces: list[ReplyPiece]) -> bool:
        """One move; False where more text is needed."""
        move = {
            "content": self._content,
            "head": self._head,
            "arguments": self._take_arguments,
            "key": self._take_key,
            "value": self._take_value,
            "tail": self._tail,
            "next": self._next,
        }
        return move[self._state](pieces)

    def _content(self, pieces: list[ReplyPiece]) -> bool:
        before, tag, after = self._buffer.partition(self._format.begin)
        if tag:
            text, self._buffer, self._opener, self._state = self._space.push(before), after, tag, "head"
        else:
            cut = partial_mark(before, self._format.begin)
            text, self._buffer = self._space.push(before[: len(before) - cut]), before[len(before) - cut :]
        if text:
            pieces.append(ReplyPiece("content", text))
        return bool(tag)

    def _head(self, pieces: list[ReplyPiece]) -> bool:
        bare = self._format.bare and not self._opener
        begins = [self._format.begin, ""] if bare else [""]
        starts = [begin + opening for begin in begins for opening in self._format.openings]
        frames = [start + head for start in starts for head in self._format.heads]
        if self._call(pieces, frames):
            return True
        if len(self._buffer) < FRAME_CHARACTERS and any(self._begun(frame) for frame in frames):
            return False
        self._broken = self._broken or bool(self._opener)
        text, self._opener, self._state = self._space.push(self._opener), "", "content"
        if text:
            pieces.append(ReplyPiece("content", text))
        return True

    @property
    def _window(self) -> str:
        """What a frame may be found in: so it does not matter how much more there is already."""
        return self._buffer[:FRAME_CHARACTERS]

    def _begun(self, frame: str) -> bool:
        """Whether the held text may become a head."""
        frame_match = find_frame(frame, self._window)
        return frame_match == "begun" or (isinstance(frame_match, Framed) and self._follow(frame, frame_match) is None)

    def _follow(self, frame: str, frame_match: Framed) -> bool | None:
        """Whether arguments stand behind a head; None where that cannot be told yet."""
        following, literals = self._window[frame_match.end :].lstrip(), self._format.literals_behind(frame)
        if literals is not None:
            return begins_literals(following, literals)
        return True if self._format.tags is not None else following.startswith("{") if following else None

    def _call(self, pieces: list[ReplyPiece], frames: Sequence[str]) -> bool:
        """Whether one of the frames stands here, with arguments behind it: then a call begins."""
        tagged = self._format.tags is not None
        for frame in frames:
            frame_match = find_frame(frame, self._window)
            if isinstance(frame_match, Framed) and self._follow(frame, frame_match):
                remaining = self._buffer[frame_match.end :]
                # of an id and a name, in either order, the id is not kept
                named = 1 if '"id"' in frame else 0
                self._tool = frame_match.names[named]
                pieces.append(ReplyPiece("name", self._tool, self.calls))
                self.calls += 1
                self._space.flush()
                self._buffer, self._keys = remaining.lstrip(), 0
                literals = self._format.literals_behind(frame)
                self._literal = None if literals is None else LiteralReader(literals)
                self._state = "key" if tagged else "arguments"
                return True
        return False

    def _take_arguments(self, pieces: list[ReplyPiece]) -> bool:
        if self._literal is not None:
            json_text, self._buffer, status = self._literal.read(self._buffer)
            self._emit_arguments(pieces, json_text)
            self._state = "next" if status == "done" else "arguments"
            return self._break() if status == "broken" else status == "done"
        end = len(self._buffer)
        for place, character in enumerate(self._buffer):
            if self._quoted:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._quoted = False
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    end, self._state = place + 1, "tail"
                    break
        self._emit_arguments(pieces, self._buffer[:end])
        self._buffer = self._buffer[end:]
        return self._state == "tail"

    def _emit_arguments(self, pieces: list[ReplyPiece], text: str) -> None:
        if text:
            pieces.append(ReplyPiece("arguments", text, self.calls - 1))

    def _take_key(self, pieces: list[ReplyPiece]) -> bool:
        tags = self._format.tags
        assert tags is not None
        self._buffer = self._buffer.lstrip()
        opened, closing = tags.key[0], tags.key[1].rstrip()
        if self._buffer.startswith(opened):
            key, tag, remaining = self._window[len(opened) :].partition(closing)
            value = find_frame(tags.value[0], remaining) if tag else "begun"
            if isinstance(value, Framed):
                at = len(opened) + len(key) + len(closing) + value.end
                self._key, self._value, self._buffer = key, [], self._buffer[at:]
                self._state = "value"
                return True
            if value == "begun" and len(self._buffer) < FRAME_CHARACTERS:
                return False
            return self._break()
        end = find_frame(tags.end or self._format.closes[0], self._window)
        if isinstance(end, Framed):
            self._emit_arguments(pieces, "}" if self._keys else "{}")
            self._buffer, self._state = self._buffer[end.end if tags.end else 0 :], "next"
            return True
        return False if opened.startswith(self._buffer) or end == "begun" else self._break()

    def _take_value(self, pieces: list[ReplyPiece]) -> bool:
        tags = self._format.tags
        assert tags is not None
        mark = tags.value[1].rstrip()
        before, tag, after = self._buffer.partition(mark)
        cut = 0 if tag else partial_mark(before, mark)
        self._value.append(before[: len(before) - cut])
        self._buffer = after if tag else before[len(before) - cut :]
        if tag:
            self._emit_arguments(pieces, self._member("".join(self._value)))
            self._keys += 1
            self._state = "key"
        return bool(tag)

    def _member(self, text: str) -> str:
        tags = self._format.tags
        assert tags is not None
        schema = self._properties.get(self._tool, {}).get(self._key)
        value = _value(text.removeprefix(tags.pad).removesuffix(tags.pad), schema)
        return f"{', ' if self._keys else '{'}{json.dumps(self._key, ensure_ascii=False)}: {value}"

    def _tail(self, pieces: list[ReplyPiece]) -> bool:
        matches = [find_frame(tail, self._window) for tail in self._format.tails]
        tail_match = next((match for match in matches if isinstance(match, Framed)), None)
        if tail_match is not None:
            self._buffer, self._state = self._buffer[tail_match.end :], "next"
            return True
        return False if "begun" in matches and len(self._buffer) < FRAME_CHARACTERS else self._break()

    def _next(self, pieces: list[ReplyPiece]) -> bool:
        """Another call, or the end of them."""
        written = self._format
        frames = [separator + head for separator in written.betweens or () for head in written.heads]
        if self._call(pieces, frames):
            return True
        closes = [find_frame(close, self._window) for close in written.closes]
        close = next((candidate for candidate in closes if isinstance(candidate, Framed)), None)
        if close is not None and written.closes[0]:
            self._buffer, self._state = self._buffer[close.end :], "content"
            return True
        short = len(self._buffer) < FRAME_CHARACTERS
        if short and ("begun" in closes or not self._buffer.strip() or any(self._begun(frame) for frame in frames)):
            # a call that has no close is whole; the next begins as the first did
            if not written.closes[0] and not frames:
                self._state = "content"
                return True
            return False
        self._broken = self._broken or bool(written.closes[0])
        self._state = "content"
        return True

    def _break(self) -> bool:
        """What follows is no call's; it is given as the text that it is."""
        self._broken, self._state = True, "content"
        return True


def _value(text: str, schema: Any) -> str:
    """A tagged value as JSON: text where the parameter is one, and where it is no JSON."""
    if not is_text(schema):
        try:
            return json.dumps(load_json(text, depth=DEPTH, finite=True, repeated=None), ensure_ascii=False)
        except ValueError:
            pass
    return json.dumps(text, ensure_ascii=False)


def is_text(schema: Any) -> bool:
    """Whether a parameter's values are texts, so that they are written without quotes."""
    if not isinstance(schema, Mapping):
        return False
    listed: Any = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(listed, Sequence) and not isinstance(listed, str):
        return all(isinstance(option, str) for option in listed)
    return schema.get("type") == "string"


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
