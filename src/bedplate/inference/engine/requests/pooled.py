"""Requests that pool the hidden states of a whole prompt: embeddings, a trained head's class scores, and the logits of
a checkpoint's own labels (classifiers, cross-encoders that judge pairs).

Shapes: T tokens, D features, E of all poolings side by side.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bedplate.adapters.head import Head
from bedplate.core.errors import RequestError
from bedplate.inference.engine.checks import check_depth, not_finite
from bedplate.inference.engine.requests.base import Request, Result
from bedplate.inference.engine.requests.job import EngineResources, PassRequest, PassResult, R, RequestJob
from bedplate.inference.forward.batch import LoadedAdapter
from bedplate.models.specs.sentence import Pooling


@dataclass(frozen=True)
class Embed(Request):
    """Embeds `tokens` as one vector.

    pooling: None is the base's own, followed by a sentence encoder's own layers where `depth` is None. depth: None
    pools the model's output (after the last norm), a number the states after that many blocks. normalise: to unit
    length; None: as the base's own pooling does it, and always where it has none. skip: number of first tokens that are
    not pooled.
    """

    pooling: Pooling | None = None
    depth: int | None = None
    normalise: bool | None = None
    skip: int = 0


@dataclass(frozen=True)
class Embedding(Result):
    """The vector of one `Embed` request, E values."""

    vector: tuple[float, ...]


@dataclass(frozen=True)
class Classify(Request):
    """Class scores W h + b of a linear head on the pooled state after `depth` blocks. Later blocks are not run."""

    head: Head
    depth: int
    pooling: Pooling = "last"


@dataclass(frozen=True)
class Label(Request):
    """Computes the logits of the base's own labels, in their order. types: per token, which text of a pair it belongs
    to; () for models without token types."""

    types: tuple[int, ...] = ()


@dataclass(frozen=True)
class Classification(Result):
    """`scores` are the head's outputs before any softmax, in the head's label order."""

    scores: tuple[float, ...]


class PooledJob(RequestJob[R]):
    """Pools hidden states pass by pass, so that a prompt can be computed in chunks."""

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
        """skip: number of the prompt's first tokens that are not pooled."""
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
        """Makes the result from the pooled states of the whole prompt, float32 [E]."""


def _accumulate(pooling: Pooling, before_D: Tensor | None, states_TD: Tensor, first: int) -> Tensor:
    """Updates a pooled vector with the states of the next tokens. first: the position of the first of them."""
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


class EmbedJob(PooledJob[Embed]):
    """Returns the pooled state itself, or the output of a sentence encoder's own layers."""

    def __init__(self, request: Embed, adapter: LoadedAdapter, resources: EngineResources) -> None:
        base = resources.base
        self._sentence = base.sentence if request.pooling is None and request.depth is None else None
        if self._sentence is not None:
            poolings = self._sentence.spec.poolings
        else:
            poolings = (request.pooling or base.spec.pooling,)
        if not 0 <= request.skip < max(len(request.tokens), 1):
            message = f"{request.skip} of the text's {len(request.tokens)} tokens are not to be pooled"
            raise RequestError(f"{message}, which leaves none; give a longer text", param="input")
        super().__init__(request, adapter, resources, poolings, request.depth, skip=request.skip)

    def read(self, pooled_E: Tensor) -> Embedding:
        vector_E = pooled_E if self._sentence is None else self._sentence(pooled_E[None])[0]
        normalize = self.request.normalise
        if self._sentence is None if normalize is None else normalize:
            vector_E = F.normalize(vector_E, dim=0)
        return Embedding(tuple(vector_E.tolist()), **self.account())


class ClassifyJob(PooledJob[Classify]):
    """Applies the request's linear head to the pooled state."""

    def __init__(self, request: Classify, adapter: LoadedAdapter, resources: EngineResources) -> None:
        super().__init__(request, adapter, resources, (request.pooling,), request.depth)

    def read(self, pooled_E: Tensor) -> Classification:
        return Classification(tuple(self.request.head(pooled_E[None])[0].tolist()), **self.account())


class LabelJob(PooledJob[Label]):
    """Applies the base's own label head to the pooled state."""

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
