"""CUDA graphs of decode steps: recorded once for a number of rows and replayed, so that a step costs the host one
launch.

A recording has fixed numbers of rows, blocks per row and adapter places (`adapters.fixed`), each a power of two, and
reads everything that changes between steps from one tensor, which is overwritten before each replay. Padding rows write
to a scratch block, and their outputs are dropped.

Shapes: N rows of a step, M of a recording, W blocks of a row, V vocabulary, D features.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from bedplate.adapters.bank import BASE_ROW, Bank
from bedplate.adapters.fixed import power_of_two
from bedplate.inference.forward.batch import FlatBatch, PassOutput
from bedplate.inference.forward.host_to_device import HostToDevice
from bedplate.inference.forward.paged import PagedCache
from bedplate.models.inputs import Inputs
from bedplate.models.layers.experts import ExpertLinear
from bedplate.models.layers.grouped import grouped_mm_supports
from bedplate.models.model import Model
from bedplate.models.specs.transformer import TransformerSpec

log = logging.getLogger("bedplate.inference")

Run = Callable[[], tuple[Tensor, Tensor]]
"""Launches a step: returns logits [M, V] and hidden states [M, D]."""
Recorder = Callable[[Run], Run]
"""Records what a run launches, and returns its replay over the same memory; it may call the run."""
_Shape = tuple[int, int, int]
"""Rows, blocks of a row, adapter places."""
MAX_RECORDINGS = 48
"""Size of the LRU cache of recordings."""
MAX_ROWS = 64
RETRY_STEPS = 1024
"""Steps of one shape that run unrecorded after recording one failed: memory may be free again by then."""


class CudaRecorder:
    """Records CUDA graphs, which share one memory pool for intermediate tensors: it ends with the last of them."""

    def __init__(self) -> None:
        self._graphs: WeakSet[Any] = WeakSet()

    def __call__(self, run: Run) -> Run:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run()  # a run before recording creates kernels, handles and workspaces
        torch.cuda.current_stream().wait_stream(side)
        graph, other = torch.cuda.CUDAGraph(), next(iter(self._graphs), None)
        with torch.cuda.graph(graph, pool=None if other is None else other.pool()):
            outputs = run()
        self._graphs.add(graph)

        def replay() -> tuple[Tensor, Tensor]:
            graph.replay()
            return outputs

        return replay


def recorder(device: torch.device) -> Recorder | None:
    return CudaRecorder() if device.type == "cuda" else None


@dataclass(frozen=True, eq=False)
class Recording:
    """One recorded step. flat: the input tensor that is overwritten before each replay."""

    flat: Tensor
    replay: Run


class RecordedDecode:
    """Records and replays the decode steps of one base over one cache. bank: the adapters that rows may use."""

    def __init__(self, model: Model, cache: PagedCache, record: Recorder, bank: Bank | None = None) -> None:
        self._model, self._cache, self._record, self._bank = model, cache, record, bank
        self._recordings: dict[_Shape, Recording] = {}
        self._unrecorded_steps: dict[_Shape, int] = {}
        """Steps that are still to run unrecorded, of shapes whose recording failed."""
        self._version = 0
        """The version of the tensors that recordings with adapters read."""
        self.reason = unrecordable(model, cache)
        """The reason no steps are recorded; None where they are."""

    def __call__(self, batch: FlatBatch) -> PassOutput | None:
        """The step's outputs; None for a step that cannot be recorded: recordable are single tokens that all need
        logits, of the base or of adapters that have places."""
        N = len(batch.spans)
        plain = batch.depth is None and not (batch.sources or batch.reads or batch.types or batch.vectors)
        if self.reason is not None or not plain or N > MAX_ROWS or len(batch.tokens) != N:
            return None
        if list(batch.logit_indices) != list(range(N)):
            return None
        # Learned positions are checked by the host: here, and while a step is recorded.
        learned, last = self._model.spec.main.positions, max(span.start for span in batch.spans)
        if learned and last >= learned:
            return None
        slots = [adapter.slot for adapter in batch.adapters]
        places = self._places({*slots} - {BASE_ROW})
        if places is None:
            return None
        block = self._cache.block
        rows, blocks = power_of_two(N), power_of_two(max(-(-span.end // block) for span in batch.spans))
        key = rows, blocks, places
        if self._unrecorded_steps.get(key):
            self._unrecorded_steps[key] -= 1
            return None
        transfer, padding = HostToDevice(self._cache.device), [0] * (rows - N)
        tokens = transfer.add([[*batch.tokens, *padding]])
        positions = transfer.add([[*(span.start for span in batch.spans), *padding]])
        fixed = self._bank.fixed if places and self._bank is not None else None
        at = None if fixed is None else transfer.add([*(fixed.place_of(slot) for slot in slots), *padding])
        attend = self._cache.attend_padded(batch.spans, rows, blocks, transfer)
        recording = self._recordings.pop(key, None)
        if recording is None:
            transfer.send()

            def run() -> tuple[Tensor, Tensor]:
                inputs = Inputs(tokens.tensor, positions.tensor, last=last if learned else None)
                with nullcontext() if fixed is None or at is None else fixed.selected(at.tensor, places):
                    hidden_MD = self._model(inputs, cache=attend).hidden[0]
                return self._model.head(hidden_MD).float(), hidden_MD

            recording = self._recorded(key, transfer, run)
            if recording is None:
                return None
        else:
            transfer.send(into=recording.flat)
        self._recordings[key] = recording
        if len(self._recordings) > MAX_RECORDINGS:
            self._recordings.pop(next(iter(self._recordings)))
        logits_MV, hidden_MD = recording.replay()
        self._cache.commit()
        return PassOutput(logits_MV[:N], hidden_MD[:N])

    def _places(self, slots: Collection[int]) -> int | None:
        """The number of adapter places that a step with these adapters reads; None where it cannot be recorded. Drops
        recordings of tensors that were replaced."""
        if not slots:
            return 0
        if self._bank is None:
            return None
        fixed = self._bank.fixed
        try:
            places = fixed.assign(slots, len(self._bank.slots))
        except torch.OutOfMemoryError:
            log.warning("decode steps with adapters are not recorded: the device has no memory for a copy of these")
            fixed.forget()
            places = self._bank = None
        if fixed.version != self._version:
            self._version = fixed.version
            self._recordings = {key: recording for key, recording in self._recordings.items() if not key[2]}
        return places

    def _recorded(self, key: _Shape, transfer: HostToDevice, run: Run) -> Recording | None:
        try:
            return Recording(transfer.sent, self._record(run))
        except RuntimeError as error:
            if key not in self._unrecorded_steps:
                reason = (str(error) or type(error).__name__).splitlines()[0]
                shape = "{} rows, {} blocks a row, {} adapter places".format(*key)
                log.warning("decode steps of %s are not recorded for a while: recording one failed (%s)", shape, reason)
            self._unrecorded_steps[key] = RETRY_STEPS
            return None

    def forget(self) -> None:
        self._recordings.clear()
        self._unrecorded_steps.clear()


def unrecordable(model: Model, cache: PagedCache) -> str | None:
    """Why a model's decode steps cannot be recorded (they read values on the host midway); None where they can."""
    spec = model.spec
    if not isinstance(spec, TransformerSpec) or spec.kind != "decoder":
        return "it is not a decoder alone"
    if not cache.scratch:
        return "its cache has no block that is nobody's"
    if cache.states:
        return "its layers keep states"
    if cache.latents:
        return "its attention is over latents"
    experts = (module.weight for module in model.modules() if isinstance(module, ExpertLinear))
    if not all(grouped_mm_supports(weight_EOI, weight_EOI) for weight_EOI in experts):
        return "its experts' tokens are counted by the host"
    return None
