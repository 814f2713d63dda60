"""Decode steps recorded once and replayed: what a GPU is to do for so many rows is started as one (CUDA graphs).

A recording is of fixed numbers of rows and of blocks, powers of two, and reads all that changes from step to step from
one tensor that is overwritten before. Rows that only make up the number keep what they compute in a block that is
nobody's, and what comes of them is left out.

Shapes: N rows of a step, M of a recording, W blocks of a row, V vocabulary, D features.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from bedplate.adapters.bank import BASE_ROW
from bedplate.inference.forward.batch import FlatBatch, PassOutput
from bedplate.inference.forward.paged import PagedCache
from bedplate.inference.forward.parcel import Parcel
from bedplate.models.inputs import Inputs
from bedplate.models.model import Model
from bedplate.models.specs.transformer import LongRopeScaling, TransformerSpec

log = logging.getLogger("bedplate.inference")

Run = Callable[[], tuple[Tensor, Tensor]]
"""Starts a step: logits [M, V] and hidden states [M, D]."""
MOST = 48
"""Recordings that are held; the one that was not used for longest goes."""
MOST_ROWS = 64


class Recorder(Protocol):
    def __call__(self, run: Run) -> Run:
        """What starts all that `run` starts, over the same memory; `run` may be called for it."""
        ...


class CudaRecorder:
    """Records CUDA graphs, which share the memory of what stands between."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, run: Run) -> Run:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run()  # what is made at first use is made here: kernels, handles, work spaces
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            found = run()
        self._pool = graph.pool()

        def replay() -> tuple[Tensor, Tensor]:
            graph.replay()
            return found

        return replay


def recorder(device: torch.device) -> Recorder | None:
    """What records on this device, if anything can."""
    return CudaRecorder() if device.type == "cuda" else None


@dataclass(frozen=True, eq=False)
class Recording:
    """flat: what is overwritten before each replay."""

    flat: Tensor
    replay: Run


class Recorded:
    """Decode steps of one base over one cache."""

    def __init__(self, model: Model, cache: PagedCache, record: Recorder) -> None:
        self._model, self._cache, self._record = model, cache, record
        self._held: dict[tuple[int, int], Recording] = {}
        self.reason = unrecordable(model, cache)
        """Why no steps are recorded; None where they are."""

    def __call__(self, batch: FlatBatch) -> PassOutput | None:
        """The step's outputs; None for one that is not a recordable decode step: single tokens of the base alone, all
        of whose logits are wanted."""
        N = len(batch.spans)
        plain = batch.depth is None and not batch.sources and not batch.reads and not batch.types
        if self.reason is not None or not plain or N > MOST_ROWS or len(batch.tokens) != N:
            return None
        if list(batch.wanted) != list(range(N)) or any(one.slot != BASE_ROW for one in batch.adapters):
            return None
        block = self._cache.block
        rows, blocks = _power(N), _power(max(-(-span.end // block) for span in batch.spans))
        parcel, made_up = Parcel(self._cache.device), [0] * (rows - N)
        tokens = parcel.add([[*batch.tokens, *made_up]])
        positions = parcel.add([[*(span.start for span in batch.spans), *made_up]])
        attend = self._cache.made_up(batch.spans, rows, blocks, parcel)
        held = self._held.pop((rows, blocks), None)
        if held is None:
            parcel.send()

            def run() -> tuple[Tensor, Tensor]:
                hidden_MD = self._model(Inputs(tokens.tensor, positions.tensor), cache=attend).hidden[0]
                return self._model.head(hidden_MD).float(), hidden_MD

            held = self._recorded(parcel, run)
            if held is None:
                return None
        else:
            parcel.send(into=held.flat)
        self._held[rows, blocks] = held
        if len(self._held) > MOST:
            self._held.pop(next(iter(self._held)))
        logits_MV, hidden_MD = held.replay()
        self._cache.commit()
        return PassOutput(logits_MV[:N], hidden_MD[:N])

    def _recorded(self, parcel: Parcel, run: Run) -> Recording | None:
        try:
            return Recording(parcel.sent, self._record(run))
        except RuntimeError as error:
            self.reason = f"recording one failed ({str(error).splitlines()[0]})"
            log.warning("decode steps are not recorded: %s", self.reason)
            return None

    def forget(self) -> None:
        """Frees what is held."""
        self._held.clear()


def unrecordable(model: Model, cache: PagedCache) -> str | None:
    """Why a model's decode steps cannot be recorded, if so: what the host looks at on the way is not in a recording."""
    spec = model.spec
    if not isinstance(spec, TransformerSpec) or spec.kind != "decoder":
        return "it is not a decoder alone"
    if not cache.scratch:
        return "its cache has no block that is nobody's"
    if cache.states:
        return "its layers keep states"
    if cache.latents:
        return "its attention is over latents"
    if any(spec.has_experts(layer) for layer in range(spec.layers)):
        return "its experts' tokens are counted by the host"
    if spec.positions:
        return "its learned positions are checked by the host"
    ropes = (spec.rope_of(layer) for layer in range(spec.layers))
    if any(rope is not None and isinstance(rope.scaling, LongRopeScaling) for rope in ropes):
        return "its rotation depends on the longest position"
    return None


def _power(count: int) -> int:
    """The next power of two."""
    return 1 << (count - 1).bit_length()
