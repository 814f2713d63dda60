"""The execution plan of a base: as its user says, and where that leaves a choice, the one measured fastest here.

1. `choose` leaves out plans that are impossible here (`impossible`), and those that memory has no room for (`fitting`).
2. It has the rest timed (`plan_timings`) and takes the fastest (`pick`); `why` says so in words.
3. `choose_forward` turns the plan of a loaded base into the forward pass of its engine.

All passes of an engine run under one plan: a row's result would otherwise depend on the other rows of its batch.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from typing import NamedTuple, cast

import torch

from bedplate.adapters.bank import Bank
from bedplate.core.errors import UsageError
from bedplate.core.memory import free_bytes
from bedplate.inference.execution.calibration import PlanTimings, Use, known_timings, plan_timings, read_bytes
from bedplate.inference.execution.plan import QUANTISED, ExecutionPlan, Kernel, Weights, matching_plans
from bedplate.inference.execution.threads import engine_threads
from bedplate.inference.forward.kv_cache import KVCache, SlotCache
from bedplate.inference.forward.native import native_forward
from bedplate.inference.forward.quantised import quantised
from bedplate.inference.forward.torch import Forward, TorchForward
from bedplate.inference.native.description import Stack, matrices
from bedplate.inference.native.library import load, native_absent
from bedplate.inference.native.packed_weights import WeightFormat, unsupported
from bedplate.inference.native.quantize import accepts_blocks
from bedplate.models.build import build
from bedplate.models.checkpoints.base import Base, Leave
from bedplate.models.checkpoints.gguf import StoredBlocks
from bedplate.models.checkpoints.gguf_blocks import RawBlocks
from bedplate.models.model import Model
from bedplate.models.precision import DTYPES, dtype_name
from bedplate.models.specs import TextSpec

log = logging.getLogger("bedplate.inference")

TIE_RATIO, MAX_TIE_RATIO = 1.03, 1.5
"""Plans whose times differ by less are not told apart; with a disturbed measurement, up to the second."""


class Choice(NamedTuple):
    """A plan, and why it is this one. untimed: the plans that have yet to be timed for a choice by measurement."""

    plan: ExecutionPlan
    why: str
    untimed: tuple[ExecutionPlan, ...] = ()


def choose(
    spec: TextSpec,
    plans: Sequence[ExecutionPlan],
    device: torch.device,
    use: Use = "generate",
    *,
    loaded: bool = False,
    at_once: bool = False,
) -> Choice:
    """The fastest of these plans on this machine. loaded: the module is in memory already, so that only what lies
    beside it needs room. at_once: plans that were not timed here before are not timed now, and the one that the
    roofline expects to be fastest is taken. Raises UsageError where none is possible, with the reason."""
    reasons = {plan: impossible(spec, plan, device) for plan in plans}
    possible = [plan for plan in plans if reasons[plan] is None]
    if not possible:
        raise UsageError(f"{plans[0]} cannot run here: {reasons[plans[0]]}")
    library = load() if len(possible) < len(plans) and device.type == "cpu" else None
    if isinstance(library, str) and library in reasons.values():
        _warn()
    # Quantised weights run on torch only where the native kernel is missing: those plans need no measurement.
    native = {plan.weights for plan in possible if plan.kernel == "native"} & QUANTISED.keys()
    possible = [plan for plan in possible if plan.kernel == "native" or plan.weights not in native]
    if device.type != "cpu":
        return Choice(possible[0], f"the first that keeps what is stored; on {device.type} plans are not measured")
    if len(possible) == 1:
        return Choice(possible[0], "the only plan that is possible here, or as asked")
    possible, left_out = fitting(spec, possible, loaded=loaded)
    if len(possible) == 1:
        return Choice(possible[0], f"the only plan that memory has room for; {left_out}")
    timings = known_timings(spec, possible, use) if at_once else plan_timings(spec, possible, brief=use)
    if timings is None:
        best = min(possible, key=lambda plan: (plan.kernel != "native", read_bytes(spec.main, plan)))
        return Choice(best, "reads the fewest bytes of weights; not timed here yet", tuple(possible))
    best = pick(spec, timings, possible, use)
    reason = why(timings, best, use)
    return Choice(best, f"{reason}; {left_out}" if left_out else reason)


def needs(spec: TextSpec, plan: ExecutionPlan, *, loaded: bool = False) -> int:
    """Bytes of a base's weights under this plan: the module's (unless it is loaded), and the packed ones."""
    packed = read_bytes(spec.main, plan) if plan.kernel == "native" or plan.weights in QUANTISED else 0
    if loaded:
        return packed
    return _parameters(spec) * DTYPES[plan.dtype].itemsize + packed


@lru_cache(maxsize=8)
def _parameters(spec: TextSpec) -> int:
    return sum(p.numel() for p in build(spec, device="meta").parameters())


def fitting(spec: TextSpec, plans: Sequence[ExecutionPlan], *, loaded: bool = False) -> tuple[list[ExecutionPlan], str]:
    """The plans that free memory has room for, the smallest where none fits, and in words what was left out."""
    free = free_bytes()
    sizes = {plan: needs(spec, plan, loaded=loaded) for plan in plans}
    fit = [plan for plan in plans if free is None or sizes[plan] <= free] or [min(plans, key=sizes.__getitem__)]
    out = [f"{plan} would take {sizes[plan] / 1e9:.1f} GB" for plan in plans if plan not in fit]
    return fit, "" if not out or free is None else f"{', '.join(out)}, and {free / 1e9:.1f} GB are free"


def pick(spec: TextSpec, timings: PlanTimings, plans: Sequence[ExecutionPlan], use: Use = "generate") -> ExecutionPlan:
    """The fastest plan; of those as fast, as far as the measurement can tell, the one that the roofline expects to be
    faster, because a pass reads fewer bytes of weights (Williams et al. 2009), and of these the smallest."""
    best = timings.cost(timings.fastest(plans, use), use)
    ratios = {plan: timings.cost(plan, use) / best for plan in plans}
    tie = min(max(TIE_RATIO, timings.spread), MAX_TIE_RATIO)
    tied = [plan for plan in plans if ratios[plan] <= tie]
    return min(tied, key=lambda p: (read_bytes(spec.main, p), ratios[p] > TIE_RATIO, needs(spec, p), ratios[p]))


def why(timings: PlanTimings, best: ExecutionPlan, use: Use) -> str:
    """Compares the chosen plan with the next one and with torch's best, in words."""
    reads = use == "score" or "decode_1" not in timings.seconds[best]
    slower = sorted((plan for plan in timings.seconds if plan != best), key=lambda plan: timings.cost(plan, use))
    torch_best = next((plan for plan in slower if plan.kernel == "torch"), None)
    shown = slower[:1] if torch_best in (None, *slower[:1]) else [slower[0], torch_best]
    ratios = [(plan, timings.cost(plan, use) / timings.cost(best, use)) for plan in shown]
    mix = f"measured fastest for {'prompts' if reads else 'a prompt and an answer'}"
    return "; ".join([mix, *(f"{plan} takes {ratio:.2f} times as long" for plan, ratio in ratios)])


def impossible(spec: TextSpec, plan: ExecutionPlan, device: torch.device) -> str | None:
    """Why a base of this architecture cannot run under this plan here, or None if it can."""
    return None if plan.kernel == "torch" else unsupported(spec, DTYPES[plan.dtype], device)


@cache
def _warn() -> None:
    """Says once in a process what is lost without the native kernel."""
    log.warning("%s", native_absent())


def torch_base(base: Base, weights: Weights, kernel: Kernel) -> Base:
    """The base as torch runs it: with quantised linears where `weights` says so and the native kernel is not to, or
    cannot, run them. The base itself stays what it is."""
    if weights not in QUANTISED or kernel == "native":
        return base
    native = ExecutionPlan(dtype_name(base.dtype), "native", weights)
    if kernel == "auto" and impossible(base.spec, native, base.device) is None:
        return base
    return replace(base, raw_model=quantised(base.model, QUANTISED[weights]))


def choose_forward(
    base: Base, bank: Bank | None, cache: KVCache | None, torch_forward: TorchForward, weights: Weights, kernel: Kernel
) -> Forward:
    """The forward pass of a loaded base: on its own weights where nothing else is asked for, natively where that
    measured faster. Raises UsageError where `weights` or `kernel` ask for what this base or machine cannot give."""
    base_dtype, asked_quantised = dtype_name(base.dtype), weights in QUANTISED
    if asked_quantised and torch_forward.weights == weights and kernel != "native":
        return torch_forward
    if not asked_quantised and weights not in ("auto", base_dtype):
        raise UsageError(f"{base.name} was loaded as {base_dtype}; load it as {weights} to run with {weights} weights")
    in_blocks = cache is not None and not isinstance(cache, SlotCache)
    if in_blocks and kernel == "auto" and not asked_quantised:
        return torch_forward
    try:
        if in_blocks and kernel != "torch":
            raise UsageError("the native path keeps keys and values in slots, and this engine in blocks")
        plans = matching_plans((base_dtype,), dtype=base_dtype, weights=weights, kernel=kernel)
        plan = choose(base.spec, plans, base.device, loaded=True).plan
    except UsageError as error:
        raise UsageError(f"{base.name} cannot run with kernel {kernel!r} and weights {weights!r}: {error}") from error
    if plan.kernel == "torch":
        return torch_forward
    assert cache is None or isinstance(cache, SlotCache)
    blocks = stored_blocks(base) if asked_quantised else {}
    model, weights_as = base.raw_model if asked_quantised else base.model, cast("WeightFormat", plan.weights)
    return native_forward(model, weights_as, blocks, bank, cache, threads=engine_threads())


def left_in_file(plan: ExecutionPlan) -> Leave | None:
    """Names the matrices that need not be read for a base under this plan: the kernel takes their stored blocks. (Of
    the token table it reads rows.)"""
    if plan.kernel != "native" or plan.weights not in QUANTISED:
        return None

    def leave(model: Model, block_types: Mapping[str, str]) -> Collection[str]:
        names = {matrix.name for matrix in matrices(cast("Stack", model))} - {"embedding.weight"}
        return {name for name in names & block_types.keys() if accepts_blocks(block_types[name], plan.weights)}

    return leave


def stored_blocks(base: Base) -> Mapping[str, RawBlocks]:
    """The matrices that the checkpoint itself stores in blocks, which are not quantised a second time."""
    return {} if base.gguf is None else StoredBlocks(base.gguf, base.family.weights, base.spec.main)
