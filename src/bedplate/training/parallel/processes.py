"""What is done once in a run of several processes: by the first of them, while the others wait."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch.distributed as dist

from bedplate.core.errors import RankError

T = TypeVar("T")
PATIENCE = timedelta(days=2)
"""How long the others wait: a corpus may be built meanwhile. A process that ends is noticed at once."""


class Processes:
    """All processes of the run, as `launched` has joined them; made by all of them together. main: whether this one is
    the first."""

    def __init__(self) -> None:
        several = dist.is_initialized() and dist.get_world_size() > 1
        self.world = dist.get_world_size() if several else 1
        self.main = not several or dist.get_rank() == 0
        group = dist.new_group(backend="gloo", timeout=PATIENCE) if several else None
        self._group = group if isinstance(group, dist.ProcessGroup) else None

    def broadcast(self, call: Callable[[], T]) -> T:
        """What the first process's call gives, which can be pickled. Its error ends the others too, with RankError."""
        if self._group is None:
            return call()
        outcome: list[Any] = [None, None]
        failure: BaseException | None = None
        if self.main:
            try:
                outcome = [call(), None]
            except BaseException as error:
                failure = error
                outcome = [None, f"{type(error).__name__}: {error}"]
        try:
            dist.broadcast_object_list(outcome, src=0, group=self._group)
        except RuntimeError as lost:
            if failure is not None:  # the others have ended already, and this is why
                raise failure from lost
            raise
        if failure is not None:
            raise failure
        if outcome[1] is not None:
            raise RankError(f"the first process has ended: {outcome[1]}", reported=True)
        return cast(T, outcome[0])

    def in_turn(self, call: Callable[[], T]) -> T:
        """What each process's own call gives; the others begin theirs when the first has made it, and find what that
        one has written."""
        results: list[T] = []
        self.broadcast(lambda: results.append(call()))
        return results[0] if self.main else call()
