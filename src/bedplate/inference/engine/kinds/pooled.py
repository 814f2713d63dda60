"""What is read off the hidden states of a whole prompt, pooled into one vector. Shapes: T tokens, D features."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

from torch import Tensor

from bedplate.inference.engine.checks import check_depth
from bedplate.inference.engine.job import Equipment, Job, R, Seen, Wants
from bedplate.inference.engine.kinds.request import Result
from bedplate.inference.forward.adapters import Loaded

Pooling = Literal["mean", "first", "last"]


class PooledJob(Job[R]):
    """States are added up, or one of them kept, as they come."""

    def __init__(
        self, request: R, adapter: Loaded, equipment: Equipment, pooling: Pooling | None, depth: int | None
    ) -> None:
        """pooling: None is the base's own."""
        super().__init__(request, adapter, equipment)
        check_depth(equipment.base, depth)
        self.pooling = pooling or equipment.base.spec.pooling
        self.depth = depth
        self._pooled: Tensor | None = None

    @property
    def reusable(self) -> int | None:
        return super().reusable if self.pooling == "last" else None

    def wanted(self, begin: int, end: int) -> Wants:
        return Wants(states=True)

    def take(self, seen: Seen) -> None:
        states_TD = seen.states_TD
        if self.pooling == "mean":
            total = states_TD.float().sum(0)
            self._pooled = total if self._pooled is None else self._pooled + total
        elif self.pooling == "last":
            self._pooled = states_TD[-1].float()
        elif seen.begin == self.adapter.virtual:
            self._pooled = states_TD[0].float()
        if seen.end == len(self.tokens):
            self.ended = "stop"

    def restart(self) -> None:
        super().restart()
        self._pooled = None

    def result(self) -> Result:
        assert self._pooled is not None
        mean = self.pooling == "mean"
        return self.read(self._pooled / len(self.request.tokens) if mean else self._pooled)

    @abstractmethod
    def read(self, pooled_D: Tensor) -> Result:
        """What the pooled state of the whole prompt says, float32 [D]."""
