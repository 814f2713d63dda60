"""Scores of the labels that a checkpoint's own head tells apart: classifiers, and cross-encoders that judge pairs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bedplate.core.errors import RequestError
from bedplate.inference.engine.requests.base import Request
from bedplate.inference.engine.requests.classify import Classification
from bedplate.inference.engine.requests.job import EngineResources
from bedplate.inference.engine.requests.pooled import PooledJob
from bedplate.inference.forward.adapters import LoadedAdapter


@dataclass(frozen=True)
class Label(Request):
    """The logits of the base's own labels, in their order. types: of each token, which of a pair's texts it is of; ()
    where that is not told apart."""

    types: tuple[int, ...] = ()


class LabelJob(PooledJob[Label]):
    """The head's reading of the state that it pools."""

    def __init__(self, request: Label, adapter: LoadedAdapter, resources: EngineResources) -> None:
        base = resources.base
        if base.spec.classifier is None:
            raise RequestError(f"{base.name} has no labels of its own", param="model")
        if request.types and len(request.types) != len(request.tokens):
            raise RequestError(
                f"there are {len(request.types)} types for {len(request.tokens)} tokens; give one each", param="types"
            )
        if request.types and not 0 <= min(request.types) <= max(request.types) < max(base.spec.main.token_types, 1):
            raise RequestError(f"{base.name} knows the types 0 to {base.spec.main.token_types - 1} only", param="types")
        super().__init__(request, adapter, resources, (base.spec.classifier.pooling,), None, types=request.types)

    def read(self, pooled_E: Tensor) -> Classification:
        base = self.resources.base
        logits_L = base.model.label_logits(pooled_E[None].to(base.dtype))[0].float()
        return Classification(tuple(logits_L.tolist()), *self.account())
