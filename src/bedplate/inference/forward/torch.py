"""The forward pass of a flat batch over cached sequences in torch, which supports every base; and `Forward`, the
protocol that the native kernel shares.

Shapes: N tokens of a flat batch, W of them whose logits are needed, V vocabulary, D features.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Generator, Hashable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bedplate.adapters.bank import BASE_ROW, Bank
from bedplate.economics.model.footprint import forward_flops, pair_flops
from bedplate.inference.forward.batch import (
    EncoderSource,
    FlatBatch,
    LatentInput,
    LoadedAdapter,
    PassOutput,
    VectorInput,
)
from bedplate.inference.forward.cuda_graphs import RecordedDecode, Recorder
from bedplate.inference.forward.host_to_device import HostToDevice
from bedplate.inference.forward.kv_cache import KVCache
from bedplate.inference.forward.paged import PagedCache
from bedplate.inference.forward.spans import Span
from bedplate.models.inputs import Inputs
from bedplate.models.layers.fused.linears import fuse_linears
from bedplate.models.model import Model
from bedplate.models.packed.packed_attention import WholeTexts

CORE_FLOPS, CORE_BYTES, SMALL_SECONDS = 3e10, 1e10, 1.5e-3
"""Operations, and bytes of weights read, in a second of one core; and a pass of up to so many seconds on one core takes
longer on several, whose threads meet after each of its hundred products, and spin in between."""


@contextlib.contextmanager
def one_thread() -> Generator[None]:
    """Runs torch on one thread, for what is small: a second one, woken for a moment, goes on spinning on a core that
    others need (a step of the native kernel under a grammar then takes half as long again, and a server's event loop
    waits for a processor)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Forward(Protocol):
    """Runs the base on a batch, and writes its tokens' keys and values to the cache.

    weights: number format in which products read the weights: "float32", "bfloat16", "int8", "int4". add_adapter:
    prepares an adapter that was added to the bank's slot; UsageError where this forward cannot run it. forget: called
    when it leaves the bank. close: frees what this forward owns.
    """

    name: str
    weights: str

    def __call__(self, batch: FlatBatch) -> PassOutput: ...
    def add_adapter(self, slot: int) -> None:
        return None

    def forget(self, slot: int) -> None:
        return None

    def close(self) -> None: ...


class Resident(Protocol):
    """The part of a base that a forward pass needs (`models.checkpoints.base.Base` has it)."""

    @property
    def model(self) -> Model: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...


class TorchForward(Forward):
    """Runs the base's own module.

    joined: linears that read the same input are fused into one product, their weights moved together: by default on
    devices and over paged caches. (On a CPU that gains nothing, and mapped pages of the file would be copied.) record:
    records decode steps over paged caches and replays them.
    """

    name = "torch"

    def __init__(
        self,
        base: Resident,
        bank: Bank | None,
        cache: KVCache | None,
        joined: bool | None = None,
        record: Recorder | None = None,
        weights: str = "auto",
    ) -> None:
        self._base, self._bank, self._cache = base, bank, cache
        self._joined = base.device.type != "cpu" or isinstance(cache, PagedCache) if joined is None else joined
        if self._joined:
            fuse_linears(base.model)
        self._recorded: RecordedDecode | None = None
        if record is not None and isinstance(cache, PagedCache):
            self._recorded = RecordedDecode(base.model, cache, record, bank)
        self.weights = str(base.dtype).removeprefix("torch.") if weights == "auto" else weights

    def __call__(self, batch: FlatBatch) -> PassOutput:
        """Runs the batch; without a cache (encoders) spans are whole documents."""
        if not batch.latents:
            return self._run(batch)
        denoised = self._denoise(batch.latents)
        return replace(self._run(batch) if batch.spans or batch.sources else PassOutput(None), denoised=denoised)

    def _run(self, batch: FlatBatch) -> PassOutput:
        """Runs the batch's tokens and vectors, but not its latents."""
        model, device, spans = self._base.model, self._base.device, batch.spans
        if self._cache is None or batch.reads:
            lengths = [span.length for span in spans]
            return PassOutput(None, self._read(batch.tokens, lengths, batch.adapters, batch.depth, batch.types))
        if batch.sources:
            self._encode(batch.sources, self._cache)
        if not spans:
            return PassOutput(None)
        recorded_output = None if self._recorded is None else self._recorded(batch)
        if recorded_output is not None:
            return recorded_output
        transfer = HostToDevice(device)
        tokens = transfer.add([list(batch.tokens)])
        positions = transfer.add([[i - s.source for s in spans for i in range(s.start, s.end)]])
        all_logits = list(batch.logit_indices) == list(range(len(batch.tokens)))
        logit_indices = None if all_logits or not batch.logit_indices else transfer.add(batch.logit_indices)
        self._select([a.slot for a in batch.adapters], [s.length for s in spans])
        try:
            attend = self._cache.attend(spans, transfer)
            inputs = Inputs(tokens.tensor, positions.tensor, last=max(s.end - s.source for s in spans) - 1)
            if batch.vectors:
                inputs = with_vectors(inputs, batch.vectors, model.spec.hidden_size, self._base.dtype)
            hidden_ND = model(inputs, cache=attend, depth=batch.depth).hidden[0]
            self._cache.commit()
        finally:
            self._select([], [])
        if not batch.logit_indices:
            return PassOutput(None, hidden_ND)
        rows_WD = hidden_ND if logit_indices is None else hidden_ND.index_select(0, logit_indices.tensor)
        return PassOutput(model.head(rows_WD).float(), hidden_ND)

    def is_small(self, spans: Sequence[tuple[int, int]]) -> bool:
        """Whether one core computes a pass in less time than it takes to divide each of its products. spans: (tokens,
        end) of each."""
        if self._base.device.type != "cpu":
            return False
        token, pair, weights = self._costs
        seconds = sum(count * (token + pair * end) for count, end in spans) / CORE_FLOPS
        return weights / CORE_BYTES + seconds < SMALL_SECONDS

    @cached_property
    def _costs(self) -> tuple[float, float, int]:
        """Operations of a token and of a pair of tokens, in all layers, and bytes of weights."""
        model = self._base.model
        spec = model.spec.main
        weights = sum(parameter.nbytes for parameter in model.parameters())
        return forward_flops(spec, 1, 1), spec.layers * pair_flops(spec, 0), weights

    def complete(self) -> None:
        """Reads the weights that are still in the base's file."""
        _ = self._base.model

    def weights_changed(self) -> None:
        """Fuses linears again and drops recordings, after the base's parameters moved to other memory."""
        if self._joined:
            fuse_linears(self._base.model)
        self.close()

    def close(self) -> None:
        if self._recorded is not None:
            self._recorded.forget()

    def _read(
        self,
        tokens: Sequence[int],
        lengths: Sequence[int],
        adapters: Sequence[LoadedAdapter],
        depth: int | None = None,
        types: Sequence[int] = (),
    ) -> Tensor:
        """The states [N, D] of concatenated whole texts from an encoder; run in order of length, so that texts of one
        length are adjacent."""
        transfer, ends = HostToDevice(self._base.device), list(accumulate(lengths))
        order = sorted(range(len(lengths)), key=lambda number: lengths[number])
        at = [token for number in order for token in range(ends[number] - lengths[number], ends[number])]
        inside = [lengths[number] for number in order]
        read = transfer.add([[tokens[token] for token in at]])
        positions = transfer.add([[place for length in inside for place in range(length)]])
        token_types = transfer.add([[types[token] for token in at]]) if types else None
        back = None if order == list(range(len(order))) else transfer.add(np.argsort(at))
        types_BT = None if token_types is None else token_types.tensor
        inputs = Inputs(read.tensor, positions.tensor, types=types_BT, last=max(lengths, default=0) - 1)
        self._select([adapters[number].slot for number in order], inside)
        try:
            states_ND = self._base.model.encode(inputs, WholeTexts(inside), depth=depth).hidden[0]
        finally:
            self._select([], [])
        return states_ND if back is None else states_ND.index_select(0, back.tensor)

    def _encode(self, sources: Sequence[EncoderSource], cache: KVCache) -> None:
        """Writes keys and values of the encoder's output to the cache, for cross-attention."""
        lengths, adapters = [len(source.tokens) for source in sources], [source.adapter for source in sources]
        states_ND = self._read([token for source in sources for token in source.tokens], lengths, adapters)
        rows = cache.attend([Span(source.row, 0, length) for source, length in zip(sources, lengths, strict=True)])
        self._select([adapter.slot for adapter in adapters], lengths)
        try:
            for layer, (k_BNGD, v_BNGD) in enumerate(self._base.model.cross_keys(states_ND[None])):
                rows.write(layer, k_BNGD[0], v_BNGD[0])
            cache.commit()
        finally:
            self._select([], [])

    def _denoise(self, latents: Sequence[LatentInput]) -> list[Tensor]:
        """The prediction of each denoising call; calls of one shape form one batch."""
        model, device, dtype = self._base.model, self._base.device, self._base.dtype
        alike: dict[Hashable, list[int]] = defaultdict(list)
        for index, latent in enumerate(latents):
            condition = latent.condition_SD
            alike[latent.latents_TC.shape, None if condition is None else condition.shape].append(index)
        denoised: dict[int, Tensor] = {}
        for indices in alike.values():
            calls = [latents[index] for index in indices]
            conditions = [call.condition_SD for call in calls if call.condition_SD is not None]
            self._select([call.adapter.slot for call in calls], [1] * len(calls))
            try:
                predicted_BTC = model.denoise(
                    torch.stack([call.latents_TC for call in calls]).to(device, dtype),
                    torch.tensor([call.timestep for call in calls], device=device),
                    torch.stack(conditions).to(device, dtype) if conditions else None,
                )
            finally:
                self._select([], [])
            denoised |= dict(zip(indices, predicted_BTC, strict=True))
        return [denoised[index] for index in range(len(latents))]

    def _select(self, slots: list[int], lengths: list[int]) -> None:
        if self._bank is None:
            return
        distinct = set(slots)
        if distinct <= {BASE_ROW}:
            self._bank.select(None)
        elif len(distinct) == 1:
            self._bank.select(slots[0])
        else:
            self._bank.select([slot for slot, length in zip(slots, lengths, strict=True) for _ in range(length)])


def with_vectors(inputs: Inputs, vectors: Sequence[VectorInput], size: int, dtype: torch.dtype) -> Inputs:
    """The inputs [1, N] with features [P, D] in place of some tokens' embeddings."""
    tokens_1N = inputs.tokens
    vectors_1ND = torch.zeros(*tokens_1N.shape, size, dtype=dtype, device=tokens_1N.device)
    mask_1N = torch.zeros_like(tokens_1N, dtype=torch.bool)
    for part in vectors:
        span = slice(part.at, part.at + len(part.vectors_PD))
        vectors_1ND[0, span], mask_1N[0, span] = part.vectors_PD.to(vectors_1ND), True
    return replace(inputs, vectors=vectors_1ND, vector_mask=mask_1N)
