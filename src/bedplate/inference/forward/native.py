"""The forward pass as one call of the native CPU kernel, where the machine and the base allow it. Same signature and
the same cache as `TorchForward`: each pass may use either."""

from __future__ import annotations

from collections.abc import Mapping

from bedplate.adapters.bank import BASE_ROW, Bank
from bedplate.inference.forward.batch import FlatBatch, Greedy, PassOutput
from bedplate.inference.forward.kv_cache import SlotCache
from bedplate.inference.forward.torch import Forward
from bedplate.inference.native.packed_weights import NativeAdapter, NativeDecoder, NativeEncoder, WeightFormat
from bedplate.models.checkpoints.gguf_blocks import RawBlocks
from bedplate.models.model import Model


class NativeForward(Forward):
    """Runs passes on a base's packed weights with the bank's adapters: a decoder's over slots, or an encoder's, whose
    spans are whole texts."""

    name = "native"

    def __init__(self, packed: NativeDecoder | NativeEncoder, bank: Bank | None, cache: SlotCache | None) -> None:
        self._packed, self._bank, self._cache = packed, bank, cache
        self.weights: str = packed.weights
        self._adapters: dict[int, NativeAdapter] = {}

    def __call__(self, batch: FlatBatch) -> PassOutput:
        if isinstance(self._packed, NativeEncoder):
            adapters = [self._adapter(adapter.slot) for adapter in batch.adapters]
            lengths = [span.length for span in batch.spans]
            return PassOutput(None, self._packed.forward(batch.tokens, lengths, batch.types, adapters, batch.depth))
        assert self._cache is not None
        return self._decode(batch, self._packed, self._cache)

    def _decode(self, batch: FlatBatch, decoder: NativeDecoder, cache: SlotCache) -> PassOutput:
        rows: list[int] = []
        positions: list[int] = []
        adapters: list[NativeAdapter | None] | None = None
        if any(adapter.slot != BASE_ROW for adapter in batch.adapters):
            adapters = []
        for span, adapter in zip(batch.spans, batch.adapters, strict=True):
            rows += [span.row] * span.length
            positions += range(span.start, span.start + span.length)
            if adapters is not None:
                adapters += [self._adapter(adapter.slot)] * span.length
        cache.note(batch.spans)
        out = decoder.forward(
            batch.tokens,
            rows,
            positions,
            cache.keys,
            cache.values,
            batch.logit_indices,
            adapters=adapters,
            depth=batch.depth,
            states=batch.states,
            keep_logits=not batch.likeliest,
        )
        greedy = None
        if len(out.argmax_W):
            top, total = out.top_W.tolist(), out.logsumexp_W.tolist()
            greedy = Greedy(out.argmax_W.tolist(), [a - b for a, b in zip(top, total, strict=True)], total)
        return PassOutput(out.logits_WV, out.hidden_ND, greedy)

    def _adapter(self, slot: int) -> NativeAdapter | None:
        """The bank's adapter in the kernel's layout, converted once; None for the base's own row."""
        if slot == BASE_ROW:
            return None
        if slot not in self._adapters:
            assert self._bank is not None  # without one there are no slots
            # Shares the bank's tensors, which are stored the way the kernel reads them.
            self._adapters[slot] = self._packed.adapter_of(self._bank, slot)
        return self._adapters[slot]

    def add_adapter(self, slot: int) -> None:
        self._adapter(slot)

    def forget(self, slot: int) -> None:
        self._adapters.pop(slot, None)

    def close(self) -> None:
        self._packed.close()


def native_forward(
    model: Model,
    weights: WeightFormat,
    blocks: Mapping[str, RawBlocks],
    bank: Bank | None,
    cache: SlotCache | None,
    *,
    threads: int,
) -> NativeForward:
    """The native forward of a model that the kernel supports: a decoder over slots, or an encoder, which has no
    cache."""
    packed = (NativeEncoder if cache is None else NativeDecoder)(model, weights, blocks=blocks, threads=threads)
    return NativeForward(packed, bank, cache)
