"""Times a base's passes under one execution plan, on a few blocks of its sizes with made-up weights.

Plans can so be timed before a checkpoint is read. Fixed costs, blocks and head are timed apart and scaled up to the
whole base. Between two passes as much memory is read as the blocks that are left out would have taken, up to the size
of the last cache: a whole base does not stay in it from one token to the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import nn

from bedplate.core.processor import processor
from bedplate.inference.execution.plan import QUANTISED, ExecutionPlan
from bedplate.inference.forward.batch import LoadedAdapter
from bedplate.inference.forward.kv_cache import SlotCache
from bedplate.inference.forward.native import native_forward
from bedplate.inference.forward.spans import Span
from bedplate.inference.forward.torch import FlatBatch, Forward, TorchForward
from bedplate.inference.native.packed_weights import WeightFormat
from bedplate.models.build import build
from bedplate.models.checkpoints.gguf_blocks import BLOCK, RawBlocks
from bedplate.models.model import Model
from bedplate.models.precision import DTYPES
from bedplate.models.specs import TextSpec, TransformerSpec

Pass = Literal["decode_1", "decode_16", "prefill"]
Step = tuple[Pass, Literal["fixed", "blocks", "head"]]
ROWS: dict[Pass, int] = {"decode_1": 1, "decode_16": 16}
CONTEXT, PROMPT = 256, 256
"""Tokens before a decoded one, and of a prompt, where the context has room for them."""
MAX_BLOCK_WEIGHTS = 1 << 25
"""A larger block is made smaller in its own proportions."""
MAX_HEAD_WEIGHTS = 1 << 22
SMALL_BLOCK_WEIGHTS = 1 << 23
"""Two blocks are timed where they are no larger than this, else one."""
TEXT_LENGTHS = (8, 12, 20, 28, 36, 44, 52, 56)
"""Tokens of an encoder's texts, PROMPT in all: mostly no two of a batch are of one length."""
BITS = {"int8": 8.5, "int4": 5.0}  # with a block's scale, and of 4 bits its minimum, of 16 bits each


class TimedPart(NamedTuple):
    """A timed run: a step of a pass, with what comes before it. sweep: bytes of memory to read before each run."""

    step: Step
    run: Callable[[], object]
    sweep: int


@dataclass(frozen=True, eq=False)
class MadeUpBase:
    """A base of made-up weights, as far as a forward pass needs one."""

    model: Model
    dtype: torch.dtype
    device: torch.device


class PlanTrial:
    """One plan for one base, ready to be timed. model: `made_up` of its `shortened` spec in the plan's dtype, which
    plans may share. Close it."""

    def __init__(self, spec: TransformerSpec, plan: ExecutionPlan, threads: int, model: Model | None = None) -> None:
        self.plan, self.whole, self.short = plan, spec, shortened(spec)
        dtype = DTYPES[plan.dtype]
        model = model or made_up(self.short, dtype)
        base = MadeUpBase(model, dtype, torch.device("cpu"))
        self._cache: SlotCache | None = None
        self._context = min(CONTEXT, self.short.context_length - 1)
        if model.writes:
            self._cache = SlotCache(self.short, dtype, base.device)
            self._cache.reserve({max(ROWS.values()) - 1: self._context + 1})
        self._forward: Forward = TorchForward(base, None, self._cache)
        if plan.kernel == "native":
            weights, blocks = cast("WeightFormat", plan.weights), _made_up_blocks(model, plan.weights)
            self._forward = native_forward(model, weights, blocks, None, self._cache, threads=threads)
        missing = max(read_bytes(spec, plan) - read_bytes(self.short, plan), 0)
        self._sweep = min(missing, sweep_bytes())
        self.parts = tuple(self._encoder_parts() if self._cache is None else self._decoder_parts())

    def _decoder_parts(self) -> list[TimedPart]:
        parts: list[TimedPart] = []
        for name, rows in ROWS.items():
            spans = [Span(row, self._context, 1) for row in range(rows)]
            parts.append(self._part((name, "head"), [0] * rows, spans, range(rows)))
            parts.append(self._part((name, "blocks"), [0] * rows, spans, depth=self.short.layers))
            parts.append(self._part((name, "fixed"), [0] * rows, spans, depth=0))
        # Long enough with one block; short passes are less often disturbed by other work.
        prompt = [Span(0, 0, min(PROMPT, self.short.context_length))]
        return [*parts, self._part(("prefill", "blocks"), self._tokens(prompt), prompt, depth=1)]

    def _encoder_parts(self) -> list[TimedPart]:
        texts = [Span(0, 0, min(length, self.short.context_length)) for length in TEXT_LENGTHS]
        return [self._part(("prefill", "blocks"), self._tokens(texts), texts, depth=1)]

    def _tokens(self, spans: Sequence[Span]) -> list[int]:
        return [i % self.short.vocab_size for span in spans for i in range(span.length)]

    def _part(
        self, step: Step, tokens: list[int], spans: list[Span], scored: Sequence[int] = (), depth: int | None = None
    ) -> TimedPart:
        batch = FlatBatch(tokens, spans, [LoadedAdapter(None)] * len(spans), scored, depth)
        forward, cache = self._forward, self._cache

        def run() -> None:
            if cache is not None:
                for span in spans:
                    cache.states.assume(span.row, span.start)
            with torch.inference_mode():
                forward(batch)

        return TimedPart(step, run, 0 if step[0] == "prefill" else self._sweep)

    def seconds(self, best: Mapping[Step, float]) -> dict[Pass, float]:
        """Seconds of each pass of the whole base: a step of so many rows, a prompt of PROMPT tokens (an encoder's texts
        of as many tokens together)."""
        blocks = product_weights(self.whole) / product_weights(self.short)
        head = _head_weights(self.whole) / max(_head_weights(self.short), 1)
        seconds: dict[Pass, float] = {}
        for name in ROWS if self._cache is not None else ():
            fixed, upto, all_of_it = best[name, "fixed"], best[name, "blocks"], best[name, "head"]
            seconds[name] = fixed + max(upto - fixed, 0.0) * blocks + max(all_of_it - max(upto, fixed), 0.0) * head
        seconds["prefill"] = best["prefill", "blocks"] * blocks * self.short.layers
        return seconds

    def close(self) -> None:
        """Frees what the kernel holds."""
        self._forward.close()


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


def read_bytes(spec: TransformerSpec, plan: ExecutionPlan) -> int:
    """Bytes of weights that one pass reads: the blocks', and a decoder's head's (which is of 8 bits at least)."""
    own_bits = 8.0 * DTYPES[plan.dtype].itemsize
    bits, head = BITS.get(plan.weights, own_bits), BITS["int8"] if plan.weights in QUANTISED else own_bits
    return int((product_weights(spec) * bits + _head_weights(spec) * head) / 8)


def _head_weights(spec: TransformerSpec) -> int:
    return spec.vocab_size * spec.hidden_size if spec.kind == "decoder" else 0


def timed_as(spec: TextSpec) -> TransformerSpec:
    """The spec that is timed for a base: for an encoder–decoder its decoder's blocks, as if they had no encoder."""
    if spec.main is spec:
        return spec.main
    alone: dict[str, Any] = {"cross_size": None, "relative_bias": None, "position_offset": 0, "position_rows": 0}
    return spec.main.with_(**alone, sinusoids=False, head_bias=False)


def shortened(spec: TransformerSpec) -> TransformerSpec:
    """A few blocks and part of the head; huge blocks are replaced by smaller ones in the same proportions."""
    size = block_weights(spec)
    changes: dict[str, Any] = {}
    if size > MAX_BLOCK_WEIGHTS:
        scale, shared = math.sqrt(MAX_BLOCK_WEIGHTS / size), max(spec.attention.heads // spec.attention.kv_heads, 1)
        groups = max(round(scale * spec.attention.kv_heads), 1)
        changes = {
            "hidden_size": max(round(scale * spec.hidden_size / 128), 1) * 128,
            "feedforward_size": max(round(scale * spec.feedforward.size / 128), 1) * 128,
            "kv_heads": groups,
            "heads": groups * shared,
        }
    # Few layers do not hold those that others refer to, nor all their shapes.
    small = spec.with_(**changes, shared_keys=None, full=None)
    vocabulary = min(spec.vocab_size, max(MAX_HEAD_WEIGHTS // small.hidden_size, 64))
    blocks = 2 if block_weights(small) <= SMALL_BLOCK_WEIGHTS else 1
    return small.with_(layers=min(blocks, spec.layers), vocab_size=vocabulary)


def made_up(spec: TransformerSpec, dtype: torch.dtype) -> Model:
    """A model of ordinary numbers: what they are does not change what a pass costs."""
    model = build(spec, dtype, "meta")
    state = {
        name: torch.full(p.shape, 1.0 if p.dim() == 1 else 0.01, dtype=p.dtype)
        for name, p in model.state_dict().items()
    }
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval()


def _made_up_blocks(model: nn.Module, weights: str) -> dict[str, RawBlocks]:
    """Quantised matrices that need no quantising; the head's are of 8 bits, as they are everywhere."""
    blocks: dict[str, RawBlocks] = {}
    for name, p in model.named_parameters() if weights in QUANTISED else ():
        if p.dim() >= 2 and p.shape[-1] % BLOCK == 0:
            eight_bits = weights == "int8" or name in ("embedding.weight", "lm_head.weight")
            # A scale, of 4 bits a minimum too, and the integers.
            width = 2 + BLOCK if eight_bits else 4 + BLOCK // 2
            raw = torch.ones(*p.shape[:-1], p.shape[-1] // BLOCK, width, dtype=torch.uint8)
            blocks[name] = RawBlocks("Q8_0" if eight_bits else "Q4_1", raw)
    return blocks
