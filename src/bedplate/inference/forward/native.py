"""One forward pass as one compiled call, where the machine and the base allow it.

Same signature as the torch way, and the same cache: a pass may take either.
"""

from __future__ import annotations

from bedplate.adapters.bank import BASE_ROW, Bank
from bedplate.inference.forward.batch import FlatBatch, Greedy, PassOutput
from bedplate.inference.forward.kv_cache import SlotCache
from bedplate.inference.forward.torch import Forward
from bedplate.inference.native.decoder import NativeAdapter, NativeDecoder


class NativeForward(Forward):
    """The native decoder over slots."""

    name = "native"

    def __init__(self, decoder: NativeDecoder, bank: Bank | None, cache: SlotCache) -> None:
        self._decoder, self._bank, self._cache = decoder, bank, cache
        self.weights: str = decoder.weights
        self._adapters: dict[int, NativeAdapter] = {}

    def __call__(self, batch: FlatBatch) -> PassOutput:
        rows: list[int] = []
        positions: list[int] = []
        adapters: list[NativeAdapter | None] | None = None
        if any(adapter.slot != BASE_ROW for adapter in batch.adapters):
            adapters = []
        for span, adapter in zip(batch.spans, batch.adapters, strict=True):
            rows += [span.row] * span.length
            positions += range(span.start, span.start + span.length)
            if adapters is not None:
                adapters += [None if adapter.slot == BASE_ROW else self._adapter(adapter.slot)] * span.length
        cache = self._cache
        cache.note(batch.spans)
        out = self._decoder.forward(
            batch.tokens,
            rows,
            positions,
            cache.keys,
            cache.values,
            batch.wanted,
            adapters=adapters,
            depth=batch.depth,
            states=batch.states,
        )
        greedy = None
        if out.logits_WV is not None:
            best = out.logits_WV.gather(1, out.argmax_W[:, None])[:, 0] - out.logsumexp_W
            greedy = Greedy(out.argmax_W.tolist(), best.tolist(), out.logsumexp_W.tolist())
        return PassOutput(out.logits_WV, out.hidden_ND, greedy)

    def _adapter(self, slot: int) -> NativeAdapter:
        """The bank's adapter as the kernel reads it, made once."""
        if slot not in self._adapters:
            assert self._bank is not None  # without one there are no slots
            # Shares the bank's tensors, which are stored the way the kernel reads them.
            self._adapters[slot] = self._decoder.adapter_of(self._bank, slot)
        return self._adapters[slot]

    def take(self, slot: int) -> None:
        self._adapter(slot)

    def forget(self, slot: int) -> None:
        self._adapters.pop(slot, None)

    def close(self) -> None:
        self._decoder.close()
