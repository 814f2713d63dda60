"""Class scores of texts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bedplate.adapters.head import Head
from bedplate.inference.engine.requests.base import NO_TIMING, LookedUp, Request, RequestTiming, Result, Usage
from bedplate.inference.engine.requests.job import EngineResources
from bedplate.inference.engine.requests.pooled import PooledJob
from bedplate.inference.forward.adapters import LoadedAdapter
from bedplate.models.specs.sentence import Pooling


@dataclass(frozen=True)
class Classify(Request):
    """Class scores W h + b of a linear head on the pooled state after `depth` blocks. Later blocks are not run."""

    head: Head
    depth: int
    pooling: Pooling = "last"


@dataclass(frozen=True)
class Classification(Result):
    """`scores` are the head's outputs before any softmax, in the head's label order."""

    scores: tuple[float, ...]
    usage: Usage
    timing: RequestTiming = NO_TIMING
    looked_up: LookedUp | None = None


class ClassifyJob(PooledJob[Classify]):
    """The head's reading of the pooled state."""

    def __init__(self, request: Classify, adapter: LoadedAdapter, resources: EngineResources) -> None:
        super().__init__(request, adapter, resources, (request.pooling,), request.depth)

    def read(self, pooled_E: Tensor) -> Classification:
        return Classification(tuple(self.request.head(pooled_E[None])[0].tolist()), *self.account())
