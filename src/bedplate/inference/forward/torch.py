"""One forward pass of a flat batch over cached sequences: the torch way, which every base has.

Shapes: N tokens of a flat batch, W of them whose logits are wanted, V vocabulary, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from bedplate.adapters.bank import BASE_ROW, Bank
from bedplate.inference.forward.adapters import Loaded
from bedplate.inference.forward.kv_cache import KVCache
from bedplate.inference.forward.spans import Span
from bedplate.models.inputs import Inputs
from bedplate.models.layers.texts import WholeTexts
from bedplate.models.model import Model


@dataclass(frozen=True)
class FlatBatch:
    """New tokens of several sequences, one after the other.

    wanted: numbers of the tokens whose logits are asked for. depth: run so many blocks only. states: hidden states of
    all tokens are asked for. types: of the tokens; () where all are 0.
    """

    tokens: Sequence[int]
    spans: Sequence[Span]
    adapters: Sequence[Loaded]
    wanted: Sequence[int]
    depth: int | None = None
    states: bool = False
    types: Sequence[int] = ()


@dataclass(frozen=True)
class Greedy:
    """What rows need of their logits: each wanted token's likeliest successor, its log-probability, and the log of the
    sum that makes logits into log-probabilities."""

    tokens: list[int]
    logprobs: list[float]
    logsumexp: list[float]


@dataclass(frozen=True)
class PassOutput:
    """logits_WV: float32. hidden_ND: the last norm's output, or the state after `depth` blocks. greedy: where the
    forward found it on the way."""

    logits_WV: Tensor | None
    hidden_ND: Tensor | None = None
    greedy: Greedy | None = None


class Forward(Protocol):
    """A way to run the base. Keys and values of the batch's tokens end up in the cache."""

    name: str
    weights: str
    """The dtype that the products read the weights in: "float32", "bfloat16", "int8", "int4"."""

    def __call__(self, batch: FlatBatch) -> PassOutput: ...

    def take(self, slot: int) -> None:
        """The slot's adapter has come to the bank. Raises UsageError where it cannot be run this way."""

    def forget(self, slot: int) -> None:
        """The slot's adapter is leaving the bank: what is kept of it goes."""

    def close(self) -> None:
        """Frees what is its own; it cannot be used after it."""


class Resident(Protocol):
    """What a forward pass needs of a base (`models.checkpoints.base.Base` has it)."""

    @property
    def model(self) -> Model: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...


class TorchForward(Forward):
    """The base's own module."""

    name = "torch"

    def __init__(self, base: Resident, bank: Bank | None, cache: KVCache | None) -> None:
        self._base, self._bank, self._cache = base, bank, cache
        self.weights = str(base.dtype).removeprefix("torch.")

    def __call__(self, batch: FlatBatch) -> PassOutput:
        """Runs the batch; without a cache (encoders) spans are whole documents."""
        if self._cache is None:
            return self._read_whole(batch)
        model, device, spans = self._base.model, self._base.device, batch.spans
        tokens = torch.tensor([list(batch.tokens)], device=device)
        positions = torch.tensor([[i for s in spans for i in range(s.start, s.end)]], device=device)
        self._select([a.slot for a in batch.adapters], [s.length for s in spans])
        try:
            attend = self._cache.attend(spans)
            hidden_ND = model(Inputs(tokens, positions), cache=attend, depth=batch.depth).hidden[0]
            self._cache.commit()
        finally:
            self._select([], [])
        logits_WV = model.head(hidden_ND[list(batch.wanted)]).float() if batch.wanted else None
        return PassOutput(logits_WV, hidden_ND)

    def _read_whole(self, batch: FlatBatch) -> PassOutput:
        """Texts of which nothing is kept, the shortest first, so that those of one length are side by side."""
        spans, device = batch.spans, self._base.device
        ends = list(accumulate(span.length for span in spans))
        order = sorted(range(len(spans)), key=lambda number: spans[number].length)
        at = [token for number in order for token in range(ends[number] - spans[number].length, ends[number])]
        lengths = [spans[number].length for number in order]
        tokens, types = (
            torch.tensor([[given[token] for token in at]], device=device) if given else None
            for given in (batch.tokens, batch.types)
        )
        assert tokens is not None
        positions = torch.tensor([[place for length in lengths for place in range(length)]], device=device)
        self._select([batch.adapters[number].slot for number in order], lengths)
        try:
            out = self._base.model(Inputs(tokens, positions, types=types), WholeTexts(lengths), depth=batch.depth)
        finally:
            self._select([], [])
        hidden_ND = out.hidden[0]
        if order != list(range(len(spans))):
            back = torch.empty(len(at), dtype=torch.int64)
            back[torch.tensor(at)] = torch.arange(len(at))
            hidden_ND = hidden_ND.index_select(0, back.to(device))
        return PassOutput(None, hidden_ND)

    def embedded(self, vectors_PD: Tensor, adapter: Loaded, span: Span) -> None:
        """Keys and values of vectors in the place of the embeddings of a span's tokens."""
        model, cache = self._base.model, self._cache
        assert cache is not None
        at_BP = torch.arange(span.start, span.end, device=self._base.device)[None]
        inputs = Inputs(torch.zeros_like(at_BP), at_BP, vectors=vectors_PD[None], given=torch.ones_like(at_BP).bool())
        self._select([adapter.slot], [len(vectors_PD)])
        try:
            model(inputs, cache=cache.attend([span]))
            cache.commit()
        finally:
            self._select([], [])

    def _select(self, slots: list[int], lengths: list[int]) -> None:
        if self._bank is None:
            return
        distinct = set(slots)
        if distinct <= {BASE_ROW}:
            self._bank.select(None)
        elif len(distinct) == 1:
            self._bank.select(slots[0])
        else:
            self._bank.select(torch.tensor(slots).repeat_interleave(torch.tensor(lengths)))
