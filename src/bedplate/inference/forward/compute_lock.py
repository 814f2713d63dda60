"""A fair lock for computing: engines that share a machine take turns in the order in which they asked."""

from __future__ import annotations

import threading
from collections import deque


class ComputeLock:
    """A reentrant lock that is handed to the thread that has waited longest.

    (`threading.RLock` lets the thread that releases it take it again at once, so that an engine under load would starve
    others.)
    """

    def __init__(self) -> None:
        self._inner = threading.Lock()
        self._owner: int | None = None
        self._depth = 0
        self._waiting: deque[tuple[int, threading.Event]] = deque()

    def __enter__(self) -> ComputeLock:
        me = threading.get_ident()
        with self._inner:
            if self._owner == me:
                self._depth += 1
                return self
            if self._owner is None:
                self._owner, self._depth = me, 1
                return self
            turn = threading.Event()
            self._waiting.append((me, turn))
        try:
            turn.wait()
        except BaseException:
            self._give_up(turn)
            raise
        return self

    def _give_up(self, turn: threading.Event) -> None:
        """Handles an interrupt while waiting: leaves the queue, or passes on a turn that was granted meanwhile."""
        with self._inner:
            waiting = [waiter for waiter in self._waiting if waiter[1] is not turn]
            arrived = len(waiting) == len(self._waiting)
            self._waiting = deque(waiting)
            if arrived:
                self._hand_over()

    def __exit__(self, *error: object) -> None:
        with self._inner:
            self._depth -= 1
            if self._depth == 0:
                self._hand_over()

    def _hand_over(self) -> None:
        if self._waiting:
            self._owner, turn = self._waiting.popleft()
            self._depth = 1
            turn.set()
        else:
            self._owner, self._depth = None, 0
