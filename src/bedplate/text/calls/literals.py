"""Arguments that are written as a language's literals, read as they come and given as JSON.

What a backslash means in Python's texts: https://docs.python.org/3/reference/lexical_analysis.html, 2.5.1. Some
templates set texts between quotes as they are, so a quote ends its text only where what follows goes on with arguments.
"""

from __future__ import annotations

import json
import math
import re
from typing import Literal

from bedplate.text.calls.call_formats import FRAME_CHARACTERS, Literals, partial_mark

Status = Literal["on", "more", "broken"]

_WORDS = {"True": "true", "true": "true", "False": "false", "false": "false", "None": "null", "null": "null"}
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?", re.ASCII)
_NAME = re.compile(r"[^\W\d][\w.-]*")
_KEYS = {False: re.compile(r"""[^\s=:,()\[\]{}"'<>]+"""), True: re.compile(r"""[^:,\[\]{}"<>\n]+""")}
_UNQUOTED = {False: re.compile(r"""[^\s,()\[\]{}:="']+"""), True: re.compile(r"[^,\]}]+")}
_SPACE = re.compile(r"\s*")
_CLOSING = {"[": "]", "(": ")", "{": "}"}
_ESCAPES = {**dict(zip("ntrabfv", "\n\t\r\a\b\f\v", strict=True)), "\n": "", "\\": "\\", "'": "'", '"': '"'}
_DIGITS = {"x": 2, "u": 4, "U": 8}
_HEX = re.compile(r"[0-9a-fA-F]*")


def begins_literals(text: str, written: Literals) -> bool | None:
    """Whether arguments stand at the text's start; None where that cannot be told yet."""
    stripped = text.lstrip()
    return stripped.startswith(written.end) or _named(stripped, written)


def is_plain_key(key: str, written: Literals) -> bool:
    """Whether a name can stand without quotes."""
    return _KEYS[written.bare].fullmatch(key) is not None and key == key.strip() and len(key) < FRAME_CHARACTERS


def _named(text: str, written: Literals) -> bool | None:
    """Whether a name and its `equals` stand at the start."""
    if written.bare and text.startswith(written.quotes):
        return True
    key = _KEYS[written.bare].match(text)
    if key is None:
        return None if not text or (written.bare and written.quotes[0].startswith(text)) else False
    after = text[key.end() :].lstrip()
    return after.startswith(written.equals) if after else None


class LiteralReader:
    """One call's arguments, from behind its head on."""

    def __init__(self, written: Literals) -> None:
        self._written = written
        self._text, self._at = "", 0
        self._output: list[str] = ["{"]
        self._inside = ["call"]
        """The brackets that are open."""
        self._due: Literal["key", "equals", "value", "more"] = "key"
        self._first = True
        """Nothing stands in the innermost bracket yet."""
        self._quote, self._is_key = "", False

    def read(self, text: str) -> tuple[str, str, Literal["done", "more", "broken"]]:
        """What is newly known, as JSON; the rest of the text; and whether the arguments have ended, more text is
        needed, or what the rest begins with is no part of arguments."""
        self._text, self._at = text, 0
        status: Status = "on"
        while self._inside and status == "on":
            status = self._step()
        json_text, self._output = "".join(self._output), []
        return json_text, text[self._at :], "done" if status == "on" else status

    def _step(self) -> Status:
        if self._quote:
            return self._read_quoted()
        space = _SPACE.match(self._text, self._at)
        self._at = len(self._text) if space is None else space.end()
        if self._at == len(self._text):
            return "more"
        listed = self._inside[-1] in ("[", "(")
        if (self._due in ("key", "more") or listed) and self._text.startswith(self._end, self._at):
            self._at += len(self._end)
            self._output.append("]" if listed else "}")
            self._inside.pop()
            self._first, self._due = False, "more"
            return "on"
        if self._due == "more":
            return self._sign(",", "value" if listed else "key")
        if self._due == "equals":
            return self._sign(self._written.equals if self._inside[-1] == "call" else ":", "value", ": ")
        return self._begin()

    @property
    def _end(self) -> str:
        """What closes the innermost bracket."""
        return _CLOSING.get(self._inside[-1], self._written.end)

    def _sign(self, sign: str, due: Literal["key", "value"], json_text: str = "") -> Status:
        if self._text[self._at] != sign:
            return "broken"
        self._at += 1
        self._due = due
        self._output += [json_text] if json_text else []
        return "on"

    def _begin(self) -> Status:
        """A key or a value."""
        text, at = self._text, self._at
        self._is_key = is_key = self._due == "key"
        if not is_key or self._inside[-1] != "call" or self._written.bare:
            for quote in self._written.quotes:
                if text.startswith(quote, at):
                    self._emit('"', len(quote))
                    self._quote = quote
                    return "on"
                if quote.startswith(text[at : at + len(quote)]):
                    return "more"
        if not is_key and text[at] in ("[{" if self._written.bare else "[{("):
            self._emit("{" if text[at] == "{" else "[", 1)
            self._inside.append(text[at])
            self._first, self._due = True, "key" if text[at] == "{" else "value"
            return "on"
        pattern = (_KEYS if is_key else _UNQUOTED)[self._written.bare]
        match = pattern.match(text, at, at + FRAME_CHARACTERS)
        if match is None or match.end() == at + FRAME_CHARACTERS:
            return "broken"
        if match.end() == len(text):
            return "more"
        if text[match.end()] in "([{\"'":
            return "broken"
        word = match.group().strip()
        json_text = json.dumps(word, ensure_ascii=False) if is_key else self._unquoted(word)
        if json_text is None:
            return "broken"
        self._emit(json_text, len(match.group()))
        self._due = "equals" if is_key else "more"
        return "on"

    def _emit(self, json_text: str, length: int) -> None:
        """A key or value begins, written in so many characters; all but the first in a bracket behind a comma."""
        follows = not self._first and (self._is_key or self._inside[-1] in ("[", "("))
        self._output.append(f", {json_text}" if follows else json_text)
        self._first = False
        self._at += length

    def _unquoted(self, text: str) -> str | None:
        """A word or number as JSON; None for what is neither, and no text."""
        if text in _WORDS:
            return _WORDS[text]
        if _NUMBER.fullmatch(text):
            return text
        try:
            number = float(text)
            if math.isfinite(number):
                return json.dumps(int(text) if text.lstrip("+-").replace("_", "").isdecimal() else number)
        except ValueError:
            pass
        return json.dumps(text, ensure_ascii=False) if self._written.bare or _NAME.fullmatch(text) else None

    def _read_quoted(self) -> Status:
        """A text, up to its quote or its next backslash."""
        quote, begin = self._quote, self._at
        ends = self._text.find(quote, begin)
        slash = self._text.find("\\", begin) if quote[0] in "\"'" else -1
        stop = min((place for place in (ends, slash) if place >= 0), default=-1)
        if stop < 0:
            self._at = len(self._text) - partial_mark(self._text[begin:], quote)
            self._add(self._text[begin : self._at])
            return "more"
        self._add(self._text[begin:stop])
        self._at = stop
        if stop == slash:
            return self._escape()
        closes = self._closes(stop + len(quote))
        if closes is None:
            return "more"
        self._at += len(quote)
        if not closes:
            self._add(quote)
            return "on"
        self._output.append('"')
        self._quote = ""
        self._due = "equals" if self._is_key else "more"
        return "on"

    def _add(self, text: str) -> None:
        self._output.append(json.dumps(text, ensure_ascii=False)[1:-1])

    def _escape(self) -> Status:
        code = self._text[self._at + 1 : self._at + 2]
        if not code:
            return "more"
        count = _DIGITS.get(code, 0)
        digits = self._text[self._at + 2 : self._at + 2 + count]
        if count and _HEX.fullmatch(digits):
            if len(digits) < count:
                return "more"
            number = int(digits, 16)
            if code == "u":  # half of a pair may stand there, which JSON writes as well
                self._output.append(f"\\u{digits}")
            else:
                self._add(chr(number) if number < 0xD800 or 0xDFFF < number < 0x110000 else f"\\{code}{digits}")
        else:
            count = 0
            slash = code == "/" and self._written.words[0] == "true"  # JSON's
            self._add("/" if slash else _ESCAPES.get(code, f"\\{code}"))
        self._at += 2 + count
        return "on"

    def _closes(self, at: int) -> bool | None:
        """Whether a quote that ends here ends its text; None where that cannot be told yet."""
        window = self._text[at : at + FRAME_CHARACTERS]
        stripped, inside = window.lstrip(), self._inside[-1]
        closes: bool | None
        if not stripped:
            closes = None
        elif self._is_key:
            closes = stripped.startswith(self._written.equals if inside == "call" else ":")
        elif stripped.startswith(self._end):
            closes = True
        elif inside == "call" and stripped[0] == ",":
            closes = begins_literals(stripped[1:], self._written)
        else:
            closes = stripped[0] == ","
        return closes if closes is not None or len(window) < FRAME_CHARACTERS else False
