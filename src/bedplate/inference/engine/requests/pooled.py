"""Jobs that pool the hidden states of a whole prompt into one vector. Shapes: T tokens, D features, E of all poolings
side by side."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from bedplate.inference.engine.checks import check_depth, not_finite
from bedplate.inference.engine.requests.base import Result
from bedplate.inference.engine.requests.job import EngineResources, PassRequest, PassResult, R, RequestJob
from bedplate.inference.forward.adapters import LoadedAdapter
from bedplate.models.specs.sentence import Pooling


class PooledJob(RequestJob[R]):
    """States are taken in as they come, so that a prompt may be computed in parts."""

    def __init__(
        self,
        request: R,
        adapter: LoadedAdapter,
        resources: EngineResources,
        poolings: Sequence[Pooling],
        depth: int | None,
        types: Sequence[int] = (),
        skip: int = 0,
    ) -> None:
        """skip: so many of the prompt's first tokens are not pooled."""
        super().__init__(request, adapter, resources)
        check_depth(resources.base, depth)
        self.poolings, self.depth, self.types = tuple(poolings), depth, types
        self._skip = skip
        self._pooled: list[Tensor | None] = [None] * len(self.poolings)

    @property
    def reusable(self) -> int | None:
        return super().reusable if self.poolings == ("last",) else None

    def pass_request(self, begin: int, end: int) -> PassRequest:
        return PassRequest(states=True)

    def consume(self, pass_result: PassResult) -> None:
        first = pass_result.begin - self.adapter.virtual
        skipped = max(self._skip - first, 0)
        states_TD = pass_result.states_TD[skipped:]
        if len(states_TD):
            for number, pooling in enumerate(self.poolings):
                before = self._pooled[number]
                self._pooled[number] = _accumulate(pooling, before, states_TD.float(), first + skipped)
        if pass_result.end == len(self.tokens):
            self.ended = "stop"

    def restart(self) -> None:
        super().restart()
        self._pooled = [None] * len(self.poolings)

    def result(self) -> Result:
        vectors: list[Tensor] = []
        for pooling, pooled in zip(self.poolings, self._pooled, strict=True):
            assert pooled is not None
            divide = _DIVIDE.get(pooling)
            vectors.append(pooled if divide is None else pooled / divide(self._skip, len(self.request.tokens)))
        pooled_E = vectors[0] if len(vectors) == 1 else torch.cat(vectors)
        if not bool(pooled_E.isfinite().all()):
            raise not_finite(self.resources.base, self.adapter.key)
        return self.read(pooled_E)

    @abstractmethod
    def read(self, pooled_E: Tensor) -> Result:
        """The result that the pooled states of the whole prompt give, float32 [E]."""


def _accumulate(pooling: Pooling, before_D: Tensor | None, states_TD: Tensor, first: int) -> Tensor:
    """A pooled vector with the states of the next tokens in it; first: the position of the first of them."""
    if pooling == "last":
        return states_TD[-1]
    if pooling == "first":
        return states_TD[0] if before_D is None else before_D
    if pooling == "max":
        largest = states_TD.amax(0)
        return largest if before_D is None else torch.maximum(before_D, largest)
    if pooling == "weighted_mean":
        weights_T = torch.arange(first + 1, first + 1 + len(states_TD), device=states_TD.device)
        states_TD = states_TD * weights_T[:, None]
    total = states_TD.sum(0)
    return total if before_D is None else before_D + total


_DIVIDE: Mapping[Pooling, Callable[[int, int], float]] = {
    "mean": lambda skipped, count: count - skipped,
    "root_mean": lambda skipped, count: math.sqrt(count - skipped),
    "weighted_mean": lambda skipped, count: (count * (count + 1) - skipped * (skipped + 1)) / 2,
}
"""The divisor of a sum, from the number of skipped tokens and of all tokens."""
