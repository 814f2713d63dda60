"""Times a base's passes under each of some execution plans on this machine, in about a second, and keeps the result.

1. `plan_timings` reads the record for this machine and architecture, or has one made.
2. `measure` opens a `PlanTrial` for each plan: a few blocks of the base's sizes with made-up weights, so that plans can
   be timed before a checkpoint is read. Fixed costs, blocks and head are timed apart and scaled up to the whole base.
   Between two passes as much memory is read as the blocks that are left out would have taken, up to the size of the
   last cache: a whole base does not stay in it from one token to the next.
3. `by_turns` times them: the plans take turns, and the best time of each part counts, so that other work on the machine
   disturbs less. A plan that is far behind after its first turn is timed no further.
4. `PlanTimings.cost` weighs the passes up to what a base is used for.

A record is bound to the processor, the kernel's level and build, the threads, torch and the base's architecture: a home
directory may be shared by machines of different kinds.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import nn

from bedplate.core.measurements import kept_measurement, measured_once, patience
from bedplate.core.processor import processor, processor_kind
from bedplate.inference.execution.plan import QUANTISED, ExecutionPlan
from bedplate.inference.execution.threads import engine_threads
from bedplate.inference.forward.batch import LoadedAdapter
from bedplate.inference.forward.kv_cache import SlotCache
from bedplate.inference.forward.native import native_forward
from bedplate.inference.forward.spans import Span
from bedplate.inference.forward.torch import FlatBatch, Forward, TorchForward
from bedplate.inference.native.library import load
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


Use = Literal["generate", "score"]
"""What a base is opened for: it writes, or it reads (labels, embeddings, scores)."""

ANSWER = 64
"""Tokens that the reference mix writes after a prompt of PROMPT."""
SHORT = 0.25
"""Length of a short prompt, as a share of PROMPT: a sentence to be labelled behind some instructions."""
VERSION = 4
_MASKS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""Environment variables that keep torch's products from instructions that the processor has."""

MAX_TURNS, MAX_SECONDS = 40, 3.0
MIN_TURNS = 3  # before one plan counts as clearly ahead
AGREEMENT_RATIO = 1.15  # the two best times of a part, within 15%, are believed
HOPELESS_RATIO = 2.5  # this far behind the best after one turn a plan is given up
CLEAR_RATIO = 1.25  # this far ahead of all others one is taken without more turns


@dataclass(frozen=True)
class PlanTimings:
    """Seconds of passes of a whole base, by plan. dropped: plans that were given up after their first turn. brief: the
    use for which timing ended as soon as its fastest plan was clear; the times themselves need not have agreed.
    spread: how many times longer the second best time of a part was than its best, the most of all plans that were
    timed to the end: plans that differ by less are not told apart."""

    seconds: Mapping[ExecutionPlan, Mapping[Pass, float]]
    dropped: tuple[ExecutionPlan, ...] = ()
    brief: Use | None = None
    spread: float = 1.0

    def cost(self, plan: ExecutionPlan, use: Use = "generate") -> float:
        """Seconds of the reference mix: `PROMPT` tokens in and `ANSWER` out, once alone and once as one of sixteen
        sequences. For "score" such a prompt and one of a quarter of its tokens, whose time lies between one token's and
        the long one's. For encoders, of which prompts alone are timed, the long one."""
        times = self.seconds[plan]
        if "decode_1" not in times:
            return times["prefill"]
        if use == "score":
            return times["prefill"] + times["decode_1"] + SHORT * (times["prefill"] - times["decode_1"])
        return 2 * times["prefill"] + ANSWER * (times["decode_1"] + times["decode_16"] / ROWS["decode_16"])

    def fastest(self, plans: Sequence[ExecutionPlan], use: Use = "generate") -> ExecutionPlan:
        """The plan whose mix takes least time, the first of equal ones. Torch's plans are candidates like the others,
        so that what is chosen is never slower than the best of them in this measurement."""
        return min(plans, key=lambda plan: self.cost(plan, use))


def plan_timings(
    spec: TextSpec, plans: Sequence[ExecutionPlan], *, brief: Use | None = None, remeasure: bool = False
) -> PlanTimings:
    """The timings of these plans, which must be possible here, for a base of this architecture: read, or made now.
    brief: only the fastest plan for this use is asked for; somebody waits for it. Another use, or a caller who asks for
    the times, has them measured thoroughly, which serves every use. remeasure: whatever was kept."""
    spec, brief_uses = timed_as(spec), list[Use]()

    def read(record: Mapping[str, Any]) -> PlanTimings:
        timings = _from_json(record, plans)
        if timings.brief not in (None, brief):
            brief_uses.append(timings.brief)
            raise ValueError("a brief measurement for another use")
        return timings

    def make() -> PlanTimings:
        return measure(spec, plans, None if brief_uses else brief)

    return measured_once("ways", _key(spec, plans), make, _to_json, read, remeasure=remeasure)


def known_timings(spec: TextSpec, plans: Sequence[ExecutionPlan], use: Use) -> PlanTimings | None:
    """Those of `plan_timings` for this use where they need not be made."""
    timings = kept_measurement("ways", _key(timed_as(spec), plans), lambda record: _from_json(record, plans))
    return None if timings is None or timings.brief not in (None, use) else timings


def _key(spec: TransformerSpec, plans: Sequence[ExecutionPlan]) -> dict[str, Any]:
    library = load() if any(plan.kernel == "native" for plan in plans) else ""
    return {
        "version": VERSION,
        "cpu": processor_kind(),
        "level": None if isinstance(library, str) else library.level,
        "library": None if isinstance(library, str) else library.digest,
        "threads": [engine_threads(), torch.get_num_threads()],
        "torch": [str(torch.__version__), torch.backends.cpu.get_cpu_capability(), *map(os.environ.get, _MASKS)],
        "spec": spec.key(),
        "ways": [list(plan) for plan in plans],
    }


def _to_json(timings: PlanTimings) -> dict[str, Any]:
    seconds = [[list(plan), dict(times)] for plan, times in timings.seconds.items()]
    dropped = [list(plan) for plan in timings.dropped]
    return {"seconds": seconds, "dropped": dropped, "brief": timings.brief, "spread": timings.spread}


def _from_json(record: Mapping[str, Any], plans: Sequence[ExecutionPlan]) -> PlanTimings:
    """The inverse of `_to_json`. Raises ValueError and the like for what are no timings of these plans."""
    seconds = {ExecutionPlan(*plan): _times(times) for plan, times in record["seconds"]}
    dropped = tuple(ExecutionPlan(*plan) for plan in record["dropped"])
    if set(seconds) != set(plans) or len({frozenset(times) for times in seconds.values()}) != 1:
        raise ValueError("another measurement")
    return PlanTimings(seconds, dropped, record["brief"], max(1.0, float(record["spread"])))


def _times(times: Mapping[str, Any]) -> dict[Pass, float]:
    """Times of all passes, or, for a base that only reads, of prompts alone."""
    passes: tuple[Pass, ...] = (*ROWS, "prefill") if len(times) > 1 else ("prefill",)
    if not all(0 < float(times[name]) < math.inf for name in passes):
        raise ValueError("a time that cannot be")
    return {name: float(times[name]) for name in passes}


def measure(spec: TransformerSpec, plans: Sequence[ExecutionPlan], brief: Use | None = None) -> PlanTimings:
    """Times these plans now; brief: see `plan_timings`. Plans of one dtype share a model of made-up weights."""
    short, models = shortened(spec), dict[str, Model]()
    with ExitStack() as stack:
        trials: dict[ExecutionPlan, PlanTrial] = {}
        for plan in plans:
            if plan.dtype not in models:
                models[plan.dtype] = made_up(short, DTYPES[plan.dtype])
            trials[plan] = stack.enter_context(closing(PlanTrial(spec, plan, engine_threads(), models[plan.dtype])))
        return by_turns(trials, time.perf_counter, brief)


def by_turns(
    trials: Mapping[ExecutionPlan, PlanTrial], clock: Callable[[], float], brief: Use | None = None
) -> PlanTimings:
    """Times every part of every trial, by turns, until the two best times of each agree or patience ends; brief: or,
    for this use, one plan is clearly the fastest."""
    memory = torch.zeros(max(part.sweep for trial in trials.values() for part in trial.parts) // 4)
    best: dict[ExecutionPlan, dict[Step, list[float]]] = {plan: {} for plan in trials}
    running, deadline = list(trials), clock() + patience(MAX_SECONDS)

    def timings(brief: Use | None = None) -> PlanTimings:
        seconds = {plan: trials[plan].seconds({step: two[0] for step, two in best[plan].items()}) for plan in trials}
        spread = max((two[-1] / two[0] for plan in running for two in best[plan].values()), default=1.0)
        return PlanTimings(seconds, tuple(plan for plan in trials if plan not in running), brief, spread)

    for turn in range(MAX_TURNS):
        for plan in running:
            for part in trials[plan].parts:
                if not turn:
                    part.run()  # whatever is set up at the first call
                memory[: part.sweep // 4].sum()
                start = clock()
                part.run()
                seconds = max(clock() - start, 1e-9)
                best[plan][part.step] = sorted((*best[plan].get(part.step, ()), seconds))[:2]
        if not turn:
            running = _hopeful(timings(), running)
            continue
        pairs = [two for plan in running for two in best[plan].values()]
        if clock() >= deadline or all(second <= AGREEMENT_RATIO * first for first, second in pairs):
            break
        if brief is not None and turn + 1 >= MIN_TURNS and _is_clear(timings(), brief):
            return timings(brief)
    return timings()


def _is_clear(timings: PlanTimings, use: Use) -> bool:
    """Whether one plan is so far ahead that a few more turns would not put another before it."""
    best, *others = sorted(timings.cost(plan, use) for plan in timings.seconds)
    return not others or best * CLEAR_RATIO <= others[0]


def _hopeful(timings: PlanTimings, plans: Sequence[ExecutionPlan]) -> list[ExecutionPlan]:
    """The plans not far behind the best in both uses, and torch's best, against which the chosen one is reported."""
    hopeful: list[ExecutionPlan] = []
    torch_plans = [plan for plan in plans if plan.kernel == "torch"]
    for use in get_args(Use):
        limit = HOPELESS_RATIO * timings.cost(timings.fastest(plans, use), use)
        hopeful += [plan for plan in plans if timings.cost(plan, use) <= limit]
        hopeful += [timings.fastest(torch_plans, use)] if torch_plans else []
    return [plan for plan in plans if plan in hopeful]
