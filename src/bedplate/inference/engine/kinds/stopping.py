"""Turning a row's tokens into text as they come, and ending it at a stop string wherever token boundaries fall."""

from __future__ import annotations

from collections.abc import Sequence

from bedplate.text.tokenizer import Tokenizer


class TextStream:
    """Text of one row. Characters that may yet become part of a stop string are held back until that is decided."""

    def __init__(self, tokenizer: Tokenizer | None, stop: Sequence[str], marks: frozenset[int] = frozenset()) -> None:
        """marks: special tokens that the text shows; it shows no others."""
        self._decoder = None if tokenizer is None else tokenizer.stream(marks=marks)
        self._stop = tuple(stop)
        self._pending = ""
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that this token releases."""
        return "" if self._decoder is None else self._release(self._decoder.push(token))

    def finish(self) -> str:
        """The text still held back when the row ends for another reason than a stop string."""
        if self._decoder is None or self.stopped:
            return ""
        released = self._release(self._decoder.flush())
        if not self.stopped:
            tail, self._pending = self._pending, ""
            self.text += tail
            released += tail
        return released

    def _release(self, piece: str) -> str:
        self._pending += piece
        stop_places = [place for place in (self._pending.find(stop) for stop in self._stop) if place >= 0]
        if stop_places:
            released, self._pending = self._pending[: min(stop_places)], ""
            self.stopped = True
        else:
            overlap = max((_overlap(self._pending, stop) for stop in self._stop), default=0)
            cut = len(self._pending) - overlap
            released, self._pending = self._pending[:cut], self._pending[cut:]
        self.text += released
        return released


def _overlap(text: str, stop: str) -> int:
    """The longest end of `text` that is a beginning of `stop` (and not all of it)."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
