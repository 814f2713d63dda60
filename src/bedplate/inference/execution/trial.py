"""A base's passes in one way, measured on a few blocks of its own sizes with made-up weights.

What a weight is does not change what it costs, so the passes can be timed before a checkpoint is read. Blocks and head
are timed apart and weighed up to the whole base. Between two passes as much memory is read as the blocks that are left
out would have taken, up to what the last cache holds: a whole base does not stay in it from one token to the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from bedplate.core.processor import processor
from bedplate.inference.execution.plan import QUANTISED, ExecutionPlan
from bedplate.inference.forward.adapters import Loaded
from bedplate.inference.forward.kv_cache import SlotCache
from bedplate.inference.forward.native import NativeForward, native_forward
from bedplate.inference.forward.spans import Span
from bedplate.inference.forward.torch import FlatBatch, Forward, TorchForward
from bedplate.inference.native.packed import WeightFormat
from bedplate.models.build import build
from bedplate.models.checkpoints.gguf_blocks import BLOCK, RawBlocks
from bedplate.models.model import Model
from bedplate.models.precision import DTYPES
from bedplate.models.specs import TextSpec, TransformerSpec

Pass = Literal["decode_1", "decode_16", "prefill"]
ROWS: dict[Pass, int] = {"decode_1": 1, "decode_16": 16}
CONTEXT, PROMPT = 256, 256
"""Tokens before a decoded one, and of a prompt, where the context has room for them."""

Run = Callable[[], object]
_BLOCK_WEIGHTS, _HEAD_WEIGHTS = 1 << 25, 1 << 22
"""A block of more weights is made smaller in its own proportions; of the head no more is computed than this."""
_FEW_BLOCKS = 1 << 23
_DOCUMENTS = (8, 12, 20, 28, 36, 44, 52, 56)
"""Tokens of an encoder's texts, PROMPT in all: mostly no two of a batch are of one length."""
_BITS = {"int8": 8.5, "int4": 5.0}  # with a block's scale, and of 4 bits its minimum, of 16 bits each


@dataclass(frozen=True)
class TimedPart:
    """A timed run. name: "fixed", "blocks" or "head" of a pass, each with what comes before it. sweep: bytes that are
    read before each run."""

    of: Pass
    name: Literal["fixed", "blocks", "head"]
    run: Run
    sweep: int

    @property
    def whole(self) -> bool:
        """Whether it does all that the pass's other parts do."""
        return self.name == "head" or self.of == "prefill"


@dataclass(frozen=True, eq=False)
class _SyntheticBase:
    """A base of made-up weights, as far as a forward pass needs one."""

    model: Model
    dtype: torch.dtype
    device: torch.device


class PlanTrial:
    """One way of one base, ready to be timed. model: `made_up` of its `shortened` spec in the way's dtype, which ways
    may share. Close it."""

    def __init__(self, spec: TransformerSpec, backend: ExecutionPlan, threads: int, model: Model | None = None) -> None:
        self.backend, self.whole = backend, spec
        self.short = shortened(spec)
        dtype = DTYPES[backend.dtype]
        model = model or made_up(self.short, dtype)
        base = _SyntheticBase(model, dtype, torch.device("cpu"))
        self._native: NativeForward | None = None
        cache = self._cache = None
        generates = "generate" in model.can
        self._context = min(CONTEXT, self.short.context_length - 1)
        if generates:
            cache = self._cache = SlotCache(self.short, dtype, base.device)
            cache.reserve({max(ROWS.values()) - 1: self._context + 1})
        self._forward: Forward = TorchForward(base, None, cache)
        if backend.kernel == "native":
            self._forward = self._native = native_forward(
                model,
                cast("WeightFormat", backend.weights),
                _made_up_blocks(model, backend.weights),
                None,
                cache,
                threads=threads,
            )
        self._left_out = read_bytes(spec, backend) - read_bytes(self.short, backend)
        self.parts = tuple(self._decoder_parts() if generates else self._encoder_parts())

    def _decoder_parts(self) -> list[TimedPart]:
        base = Loaded(None)
        parts: list[TimedPart] = []
        layers = self.short.layers
        for of, rows in ROWS.items():
            spans = [Span(row, self._context, 1) for row in range(rows)]
            adapters = [base] * rows
            parts.append(self._part(of, "head", FlatBatch([0] * rows, spans, adapters, range(rows))))
            parts.append(self._part(of, "blocks", FlatBatch([0] * rows, spans, adapters, [], layers)))
            parts.append(self._part(of, "fixed", FlatBatch([0] * rows, spans, adapters, [], 0)))
        prompt = min(PROMPT, self.short.context_length)
        tokens = [i % self.short.vocab_size for i in range(prompt)]
        # Long enough with one block; short passes are less often disturbed by other work.
        parts.append(self._part("prefill", "blocks", FlatBatch(tokens, [Span(0, 0, prompt)], [base], [], 1)))
        return parts

    def _encoder_parts(self) -> list[TimedPart]:
        base = Loaded(None)
        spans = [Span(0, 0, min(length, self.short.context_length)) for length in _DOCUMENTS]
        tokens = [i % self.short.vocab_size for span in spans for i in range(span.length)]
        return [self._part("prefill", "blocks", FlatBatch(tokens, spans, [base] * len(spans), [], 1))]

    def _part(self, of: Pass, name: Literal["fixed", "blocks", "head"], batch: FlatBatch) -> TimedPart:
        forward = self._forward

        cache = self._cache

        def run() -> None:
            if cache is not None:
                for span in batch.spans:
                    cache.states.assume(span.row, span.start)
            with torch.inference_mode():
                forward(batch)

        return TimedPart(of, name, run, min(max(self._left_out, 0), sweep_bytes()) if of != "prefill" else 0)

    def seconds(self, best: Mapping[tuple[Pass, str], float]) -> dict[Pass, float]:
        """Seconds of each pass of the whole base whose parts were all timed: a step of so many rows, a prompt of PROMPT
        tokens (an encoder's documents of as many tokens together)."""
        blocks = product_weights(self.whole) / product_weights(self.short)
        head = _head_weights(self.whole) / max(_head_weights(self.short), 1)
        pass_seconds: dict[Pass, float] = {}
        for of in ROWS:
            fixed, upto, whole = (best.get((of, name)) for name in ("fixed", "blocks", "head"))
            if fixed is None or upto is None or whole is None:
                continue
            pass_seconds[of] = fixed + max(upto - fixed, 0.0) * blocks + max(whole - max(upto, fixed), 0.0) * head
        if ("prefill", "blocks") in best:
            pass_seconds["prefill"] = best["prefill", "blocks"] * blocks * self.short.layers
        return pass_seconds

    def close(self) -> None:
        """Frees what the kernel holds."""
        if self._native is not None:
            self._native.close()


def sweep_bytes() -> int:
    """What pushes a base out of the last cache: a little more than that holds, by default of 32 MB."""
    caches = processor().caches
    return int(1.25 * caches.get("L3", caches.get("L2", 32 << 20)))


def block_weights(spec: TransformerSpec) -> int:
    """Weights of one block's products."""
    attention = spec.hidden_size * spec.attention.head_dim * (2 * spec.attention.heads + 2 * spec.attention.kv_heads)
    return attention + (3 if spec.feedforward.gated else 2) * spec.hidden_size * spec.feedforward.size


def product_weights(spec: TransformerSpec) -> int:
    """Weights of all blocks' products."""
    return block_weights(spec) * spec.layers


def read_bytes(spec: TransformerSpec, backend: ExecutionPlan) -> int:
    """Bytes of weights that one pass reads: the blocks', and a decoder's head's (which is of 8 bits at least)."""
    whole = 8.0 * DTYPES[backend.dtype].itemsize
    bits, head = _BITS.get(backend.weights, whole), _BITS["int8"] if backend.weights in QUANTISED else whole
    return int((product_weights(spec) * bits + _head_weights(spec) * head) / 8)


def _head_weights(spec: TransformerSpec) -> int:
    return spec.vocab_size * spec.hidden_size if spec.kind == "decoder" else 0


def timed_as(spec: TextSpec) -> TransformerSpec:
    """What is timed for a base: of an encoder–decoder its decoder's blocks, as if they had no encoder."""
    if spec.main is spec:
        return spec.main
    alone: dict[str, Any] = {"cross_size": None, "relative_bias": None, "position_offset": 0, "position_rows": 0}
    return spec.main.with_(**alone, sinusoids=False, head_bias=False)


def shortened(spec: TransformerSpec) -> TransformerSpec:
    """A few blocks and part of the head; of huge blocks smaller ones in the same proportions."""
    size = block_weights(spec)
    changes: dict[str, Any] = {}
    if size > _BLOCK_WEIGHTS:
        part, shared = math.sqrt(_BLOCK_WEIGHTS / size), max(spec.attention.heads // spec.attention.kv_heads, 1)
        groups = max(round(part * spec.attention.kv_heads), 1)
        changes = {
            "hidden_size": max(round(part * spec.hidden_size / 128), 1) * 128,
            "feedforward_size": max(round(part * spec.feedforward.size / 128), 1) * 128,
            "kv_heads": groups,
            "heads": groups * shared,
        }
    # Few layers do not hold those that others refer to, nor all their shapes.
    small = spec.with_(**changes, shared_keys=None, full=None)
    vocabulary = min(spec.vocab_size, max(_HEAD_WEIGHTS // small.hidden_size, 64))
    blocks = 2 if block_weights(small) <= _FEW_BLOCKS else 1
    return small.with_(layers=min(blocks, spec.layers), vocab_size=vocabulary)


def made_up(spec: TransformerSpec, dtype: torch.dtype) -> Model:
    """A model of ordinary numbers, made faster than random ones."""
    model = build(spec, dtype, "meta")
    # ones_like of what is on the meta device would load torch's decompositions, and with them computer algebra.
    tile = (torch.linspace(-1.0, 1.0, 4093) * 0.05).to(dtype)
    state = {
        name: torch.ones(p.shape, dtype=p.dtype) if p.dim() == 1 else _tiled(tile, p.numel()).view(p.shape)
        for name, p in model.state_dict().items()
    }
    model.load_state_dict(state, assign=True)
    model.requires_grad_(False)
    return model.eval()


def _tiled(tile: Tensor, count: int) -> Tensor:
    return tile.repeat(-(-count // len(tile)))[:count]


def _made_up_blocks(model: nn.Module, weights: str) -> dict[str, RawBlocks]:
    """Quantised matrices that need no quantising; the head's are of 8 bits, as they are everywhere."""
    if weights not in QUANTISED:
        return {}
    blocks: dict[str, RawBlocks] = {}
    scale, minimum = torch.tensor([0.001, -0.008], dtype=torch.float16).view(torch.uint8).split(2)
    tile = torch.arange(-127, 128, dtype=torch.int8).view(torch.uint8)
    for name, p in model.named_parameters():
        if p.dim() < 2 or p.shape[-1] % BLOCK:
            continue
        *rows, size = p.shape  # of experts one matrix each
        eight = weights == "int8" or name in ("embedding.weight", "lm_head.weight")
        width = BLOCK if eight else BLOCK // 2
        count = p.numel() // BLOCK
        quants = _tiled(tile, count * width).view(count, width)
        before = scale if eight else torch.cat((scale, minimum))
        raw = torch.cat((before.expand(count, -1), quants), dim=1).view(*rows, size // BLOCK, -1)
        blocks[name] = RawBlocks("Q8_0" if eight else "Q4_1", raw)
    return blocks
