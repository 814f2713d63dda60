"""What is remembered of the latest replies, and no more of it than fits."""

from __future__ import annotations

from collections import deque
from typing import TypeVar

V = TypeVar("V")


class Latest(dict[str, V]):
    """Values by id, at most so many, of so many characters in all; the oldest go first. Entries are made by `note`
    and `become`, and taken out by `forget`, only."""

    def __init__(self, max_entries: int, characters: int | None = None) -> None:
        super().__init__()
        self._max_entries, self._characters = max_entries, characters
        self._order: deque[str] = deque()
        self._size = 0

    def note(self, id_: str, value: V) -> None:
        """Enters a value; one that is there already keeps its place."""
        if id_ in self:
            self._size -= _size(self[id_])
        else:
            self._order.append(id_)
        self[id_] = value
        self._size += _size(value)
        while len(self) > self._max_entries or (self._characters is not None and self._size > self._characters):
            self.forget(self._order.popleft())
        if len(self._order) > 2 * self._max_entries:  # those that were forgotten by name have left their places
            self._order = deque(key for key in dict.fromkeys(self._order) if key in self)

    def forget(self, id_: str) -> None:
        """Takes an entry out, if it is there."""
        if id_ in self:
            self._size -= _size(self.pop(id_))

    def become(self, source: Latest[V]) -> None:
        """Holds what the other one does, and nothing else. The other one is not used any more. (A copy: to note each
        entry of many would keep an event loop for long.)"""
        self.clear()
        self.update(source)
        self._order, self._size = source._order, source._size


def _size(value: object) -> int:
    return len(value) if isinstance(value, str) else 0
