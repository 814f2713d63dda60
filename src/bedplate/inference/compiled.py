"""One forward pass as one compiled call, where the machine and the base allow it; and the choice of which way to run.

Same signature as the torch way, and the same cache: a pass may take either.
"""

from __future__ import annotations

from typing import Literal

from bedplate.adapters.bank import BASE_ROW, Bank
from bedplate.core.errors import UsageError
from bedplate.inference.calibrate import calibrated
from bedplate.inference.forward import Batch, Forward, Forwarded, Greedy, TorchForward
from bedplate.inference.kv_cache import KVCache, SlotCache
from bedplate.inference.native.decoder import NativeAdapter, NativeDecoder, WeightFormat, unsupported
from bedplate.models.checkpoints.base import Base
from bedplate.models.checkpoints.gguf import RawBlocks, read_blocks
from bedplate.models.decoder import Decoder

Weights = Literal["auto", "bfloat16", "int8", "int4"]
Kernel = Literal["auto", "torch", "native"]


class NativeForward:
    """The native decoder over slots."""

    name = "native"

    def __init__(self, decoder: NativeDecoder, bank: Bank, cache: SlotCache) -> None:
        self._decoder, self._bank, self._cache = decoder, bank, cache
        self.weights: str = decoder.weights
        self._adapters: dict[int, NativeAdapter] = {}

    def __call__(self, batch: Batch) -> Forwarded:
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
        return Forwarded(out.logits_WV, out.hidden_ND, greedy)

    def _adapter(self, slot: int) -> NativeAdapter:
        """The bank's adapter as the kernel reads it, made when it first runs."""
        if slot not in self._adapters:
            # Shares the bank's tensors, which are stored the way the kernel reads them.
            self._adapters[slot] = self._decoder.adapter_of(self._bank, slot)
        return self._adapters[slot]

    def forget(self, slot: int) -> None:
        """The slot's adapter is leaving the bank."""
        self._adapters.pop(slot, None)

    def close(self) -> None:
        self._decoder.close()


def _stored_blocks(base: Base) -> dict[str, RawBlocks]:
    """What the checkpoint itself holds in blocks: taken as it is, not quantised a second time."""
    if base.family.key[0] != "gguf":
        return {}
    return read_blocks(base.path, base.family.weights, base.spec.heads, base.spec.kv_heads)


def choose_forward(
    base: Base,
    bank: Bank | None,
    cache: KVCache | None,
    torch_forward: TorchForward,
    weights: Weights,
    kernel: Kernel,
) -> Forward:
    """The way to run passes: native for a bfloat16 decoder on a CPU where it can be had and, unless it is asked for,
    was measured to be no slower than torch for passes of any size; else torch. Never one for some passes and the other
    for the rest: a row's result would depend on its company.

    Raises UsageError where `weights` or `kernel` ask for what this base or machine cannot give.
    """
    own = str(base.dtype).removeprefix("torch.")
    quantised = weights in ("int8", "int4")
    if weights == "bfloat16" and own != "bfloat16":
        raise UsageError(f"{base.name} was loaded as {own}; load it as bfloat16 to run with bfloat16 weights")
    reason = "the torch kernel was asked for"
    if kernel != "torch":
        reason = unsupported(base.model, base.dtype, base.device)
        if reason is None and not isinstance(cache, SlotCache):
            reason = "the native path keeps keys and values in slots, and this engine in blocks"
        if reason is None and kernel == weights == "auto" and own != "bfloat16":
            reason = "only bfloat16 bases are calibrated"
        if reason is None and kernel == weights == "auto" and not calibrated(base).never_slower("bfloat16"):
            reason = "torch was measured to be faster here"
        if reason is None and bank is not None and isinstance(cache, SlotCache) and isinstance(base.model, Decoder):
            chosen: WeightFormat = weights if weights != "auto" else "float32" if own == "float32" else "bfloat16"
            blocks = _stored_blocks(base) if quantised else {}
            return NativeForward(NativeDecoder(base.model, chosen, blocks=blocks), bank, cache)
    if kernel == "native" or quantised:
        raise UsageError(f"{base.name} cannot run with kernel {kernel!r} and weights {weights!r}: {reason}")
    return torch_forward
