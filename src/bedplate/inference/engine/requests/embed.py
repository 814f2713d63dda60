"""Vectors of texts."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from bedplate.core.errors import RequestError
from bedplate.inference.engine.requests.base import Request, Result
from bedplate.inference.engine.requests.job import EngineResources
from bedplate.inference.engine.requests.pooled import PooledJob
from bedplate.inference.forward.adapters import LoadedAdapter
from bedplate.models.specs.sentence import Pooling


@dataclass(frozen=True)
class Embed(Request):
    """One vector for `tokens`: the base's own, or hidden states pooled in one way. pooling: None is the base's own way,
    with the steps that its library takes after it where it is a sentence encoder and `depth` is None. depth: None pools
    the model's output (after the last norm), a number the state after that many blocks. normalise: to unit length; None
    where the base's own way leaves it so, and always where it has none. skip: so many first tokens are not pooled."""

    pooling: Pooling | None = None
    depth: int | None = None
    normalise: bool | None = None
    skip: int = 0


@dataclass(frozen=True)
class Embedding(Result):
    vector: tuple[float, ...]


class EmbedJob(PooledJob[Embed]):
    """The pooled state itself, or what a sentence encoder makes of it."""

    def __init__(self, request: Embed, adapter: LoadedAdapter, resources: EngineResources) -> None:
        base = resources.base
        self._sentence = base.sentence if request.pooling is None and request.depth is None else None
        if self._sentence is not None:
            poolings = self._sentence.spec.poolings
        else:
            poolings = (request.pooling or base.spec.pooling,)
        if not 0 <= request.skip < max(len(request.tokens), 1):
            raise RequestError(
                f"{request.skip} of the text's {len(request.tokens)} tokens are not to be pooled, which leaves none; "
                "give a longer text",
                param="input",
            )
        super().__init__(request, adapter, resources, poolings, request.depth, skip=request.skip)

    def read(self, pooled_E: Tensor) -> Embedding:
        found_E = pooled_E if self._sentence is None else self._sentence(pooled_E[None])[0]
        normalize = self.request.normalise
        if self._sentence is None if normalize is None else normalize:
            found_E = F.normalize(found_E, dim=0)
        return Embedding(tuple(found_E.tolist()), **self.account())
