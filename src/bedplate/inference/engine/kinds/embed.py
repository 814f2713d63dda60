"""Vectors of texts."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from bedplate.inference.engine.job import Equipment
from bedplate.inference.engine.kinds.pooled import PooledJob, Pooling
from bedplate.inference.engine.kinds.request import NO_TIMING, LookedUp, Request, Result, Timing, Usage
from bedplate.inference.forward.adapters import Loaded


@dataclass(frozen=True)
class Embed(Request):
    """One vector for `tokens`: hidden states pooled ("mean" over tokens, "first" or "last" token).

    depth: None pools the model's output (after the last norm), a number the state after that many blocks.
    """

    pooling: Pooling | None = None
    depth: int | None = None
    normalise: bool = True


@dataclass(frozen=True)
class Embedding(Result):
    vector: tuple[float, ...]
    usage: Usage
    timing: Timing = NO_TIMING
    looked_up: LookedUp | None = None


class EmbedJob(PooledJob[Embed]):
    """The pooled state itself."""

    def __init__(self, request: Embed, adapter: Loaded, equipment: Equipment) -> None:
        super().__init__(request, adapter, equipment, request.pooling, request.depth)

    def read(self, pooled_D: Tensor) -> Embedding:
        found_D = F.normalize(pooled_D, dim=0) if self.request.normalise else pooled_D
        return Embedding(tuple(found_D.tolist()), *self.account())
