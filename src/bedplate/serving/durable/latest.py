"""What is remembered of the latest replies, and no more of it than fits."""

from __future__ import annotations

from collections import deque
from typing import TypeVar

V = TypeVar("V")


class Latest(dict[str, V]):
    """Values by id, at most so many, of so many characters in all; the oldest go first. Entries are made by `note`
    and `become`, and taken out by `forget`, only."""

    def __init__(self, most: int, characters: int | None = None) -> None:
        super().__init__()
        self._most, self._characters = most, characters
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
        while len(self) > self._most or (self._characters is not None and self._size > self._characters):
            self.forget(self._order.popleft())
        if len(self._order) > 2 * self._most:  # those that were forgotten by name have left their places
            self._order = deque(one for one in dict.fromkeys(self._order) if one in self)

    def forget(self, id_: str) -> None:
        """Takes an entry out, if it is there."""
        if id_ in self:
            self._size -= _size(self.pop(id_))

    def become(self, other: Latest[V]) -> None:
        """Holds what the other one does, and nothing else. The other one is not used any more. (A copy: to note each
        entry of many would keep an event loop for long.)"""
        self.clear()
        self.update(other)
        self._order, self._size = other._order, other._size


def _size(value: object) -> int:
    return len(value) if isinstance(value, str) else 0
