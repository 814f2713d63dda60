"""Class scores of texts: of a trained head, or of the labels that a checkpoint's own head tells apart (classifiers, and
cross-encoders that judge pairs)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bedplate.adapters.head import Head
from bedplate.core.errors import RequestError
from bedplate.inference.engine.requests.base import Request, Result
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
class Label(Request):
    """The logits of the base's own labels, in their order. types: of each token, which of a pair's texts it is of; ()
    where that is not told apart."""

    types: tuple[int, ...] = ()


@dataclass(frozen=True)
class Classification(Result):
    """`scores` are the head's outputs before any softmax, in the head's label order."""

    scores: tuple[float, ...]


class ClassifyJob(PooledJob[Classify]):
    def __init__(self, request: Classify, adapter: LoadedAdapter, resources: EngineResources) -> None:
        super().__init__(request, adapter, resources, (request.pooling,), request.depth)

    def read(self, pooled_E: Tensor) -> Classification:
        return Classification(tuple(self.request.head(pooled_E[None])[0].tolist()), **self.account())


class LabelJob(PooledJob[Label]):
    def __init__(self, request: Label, adapter: LoadedAdapter, resources: EngineResources) -> None:
        base, types = resources.base, request.types
        if base.spec.classifier is None:
            raise RequestError(f"{base.name} has no labels of its own", param="model")
        if types and len(types) != len(request.tokens):
            raise RequestError(f"there are {len(types)} types for {len(request.tokens)} tokens", param="types")
        if types and not 0 <= min(types) <= max(types) < max(base.spec.main.token_types, 1):
            raise RequestError(f"{base.name} knows the types 0 to {base.spec.main.token_types - 1} only", param="types")
        super().__init__(request, adapter, resources, (base.spec.classifier.pooling,), None, types=types)

    def read(self, pooled_E: Tensor) -> Classification:
        base = self.resources.base
        logits_L = base.model.label_logits(pooled_E[None].to(base.dtype))[0].float()
        return Classification(tuple(logits_L.tolist()), **self.account())
