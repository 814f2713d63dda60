"""Which way a base is run: what was asked for, and where that leaves a choice, what this machine measured fastest.

One way for all passes of an engine, never one for some and another for the rest: a row's result would depend on its
company.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import cast

import torch

from bedplate.adapters.bank import Bank
from bedplate.core.errors import UsageError
from bedplate.core.memory import free_bytes
from bedplate.inference.execution.calibration import PlanTimings, Use, measured
from bedplate.inference.execution.plan import QUANTISED, ExecutionPlan, Kernel, Weights, asked_ways
from bedplate.inference.execution.threads import engine_threads
from bedplate.inference.execution.trial import read_bytes
from bedplate.inference.forward.kv_cache import KVCache, SlotCache
from bedplate.inference.forward.native import native_forward
from bedplate.inference.forward.quantised import quantised
from bedplate.inference.forward.torch import Forward, TorchForward
from bedplate.inference.native.description import Stack, matrices
from bedplate.inference.native.library import load, native_absent
from bedplate.inference.native.packed import WeightFormat, unsupported
from bedplate.inference.native.sources import accepts_blocks
from bedplate.models.build import build
from bedplate.models.checkpoints.base import Base, Leave
from bedplate.models.checkpoints.gguf import StoredBlocks
from bedplate.models.checkpoints.gguf_blocks import RawBlocks
from bedplate.models.model import Model
from bedplate.models.precision import DTYPES, dtype_name
from bedplate.models.specs import TextSpec

log = logging.getLogger("bedplate.inference")

TIE_RATIO = 1.03
"""Times as long; ways that differ by less are not told apart."""


@dataclass(frozen=True)
class Choice:
    """A way, why it is this one, and what was measured for it (None: there was no choice)."""

    backend: ExecutionPlan
    why: str
    measured: PlanTimings | None = None


def choose(
    spec: TextSpec,
    backends: Sequence[ExecutionPlan],
    device: torch.device,
    use: Use = "generate",
    *,
    loaded: bool = False,
) -> Choice:
    """The fastest of these ways on this machine. loaded: the module is in memory already, so that only what lies beside
    it needs room. UsageError where none can be had, with the reason."""
    reasons = {backend: impossible(spec, backend, device) for backend in backends}
    possible = [backend for backend in backends if reasons[backend] is None]
    if not possible:
        raise UsageError(f"{backends[0]} cannot run here: {reasons[backends[0]]}")
    library = load() if len(possible) < len(backends) and device.type == "cpu" else None
    if isinstance(library, str) and library in reasons.values():
        _warn()
    # On torch they are for where the native kernel cannot be had: what needs no measurement is not measured.
    native = {backend.weights for backend in possible if backend.kernel == "native"}
    possible = [
        backend
        for backend in possible
        if backend.kernel == "native" or backend.weights not in native & QUANTISED.keys()
    ]
    if device.type != "cpu":
        return Choice(possible[0], f"the first that keeps what is stored; on {device.type} ways are not measured")
    if len(possible) == 1:
        return Choice(possible[0], "the only way here, or as asked")
    possible, left_out = fitting(spec, possible, loaded=loaded)
    if len(possible) == 1:
        return Choice(possible[0], f"the only way that memory has room for; {left_out}")
    measurement = measured(spec, possible, brief=use)
    best = pick(spec, measurement, possible, use)
    reason = why(measurement, best, possible, use)
    return Choice(best, f"{reason}; {left_out}" if left_out else reason, measurement)


def needs(spec: TextSpec, backend: ExecutionPlan, *, loaded: bool = False) -> int:
    """Bytes of a base's weights in this backend: the module's (unless it is loaded), and beside them what was packed."""
    packed = read_bytes(spec.main, backend) if backend.kernel == "native" or backend.weights in QUANTISED else 0
    if loaded:
        return packed
    return _parameters(spec) * DTYPES[backend.dtype].itemsize + packed


@lru_cache(maxsize=8)
def _parameters(spec: TextSpec) -> int:
    return sum(p.numel() for p in build(spec, device="meta").parameters())


def fitting(
    spec: TextSpec, backends: Sequence[ExecutionPlan], *, loaded: bool = False
) -> tuple[list[ExecutionPlan], str]:
    """The ways that this machine's free memory has room for, the smallest where none fits, and what was left out."""
    free = free_bytes()
    sizes = {backend: needs(spec, backend, loaded=loaded) for backend in backends}
    fit = [backend for backend in backends if free is None or sizes[backend] <= free] or [
        min(backends, key=lambda candidate: sizes[candidate])
    ]
    out = [f"{backend} would take {sizes[backend] / 1e9:.1f} GB" for backend in backends if backend not in fit]
    return fit, "" if not out or free is None else f"{', '.join(out)}, and {free / 1e9:.1f} GB are free"


def pick(
    spec: TextSpec, measurement: PlanTimings, backends: Sequence[ExecutionPlan], use: Use = "generate"
) -> ExecutionPlan:
    """The fastest way; of those that are as fast, as far as a short measurement can tell, the one that takes least
    memory."""
    best = measurement.cost(measurement.fastest(backends, use), use)
    level = [
        backend
        for backend in backends
        if backend in measurement.seconds and measurement.cost(backend, use) <= TIE_RATIO * best
    ]
    return min(level, key=lambda backend: (needs(spec, backend), measurement.cost(backend, use)))


def why(measurement: PlanTimings, best: ExecutionPlan, backends: Sequence[ExecutionPlan], use: Use) -> str:
    """The chosen way against the next one and against torch's best, in words."""
    reads = use == "score" or "decode_1" not in measurement.seconds[best]
    mix = "prompts" if reads else "a prompt and an answer"
    sentences = [f"measured fastest for {mix}"]
    runners_up = sorted(
        (backend for backend in backends if backend != best and backend in measurement.seconds),
        key=lambda candidate: measurement.cost(candidate, use),
    )
    torch_best = next((backend for backend in runners_up if backend.kernel == "torch"), None)
    shown = runners_up[:1] if torch_best in (None, *runners_up[:1]) else [runners_up[0], torch_best]
    if len(measurement.seconds) < len(backends):
        slower = [str(backend) for backend in backends if backend not in measurement.seconds]
        sentences.append(f"ruled out as slower before every pass was timed: {', '.join(slower)}")
    sentences += [
        f"{backend} takes {measurement.cost(backend, use) / measurement.cost(best, use):.2f} times as long"
        for backend in shown
    ]
    return "; ".join(sentences)


def impossible(spec: TextSpec, backend: ExecutionPlan, device: torch.device) -> str | None:
    """Why a base of this architecture cannot be run in this way here, or None if it can."""
    if backend.kernel == "torch":
        return None
    return unsupported(spec, DTYPES[backend.dtype], device)


@cache
def _warn() -> None:
    """Once in a process: what is lost where the kernel itself cannot be had."""
    log.warning("%s", native_absent())


def held_for(base: Base, weights: Weights, kernel: Kernel) -> Base:
    """The base as torch runs it: with quantised linears where those are asked for and the native kernel is not to, or
    cannot, run them. The base itself stays what it is."""
    if weights not in QUANTISED or kernel == "native":
        return base
    native = ExecutionPlan(dtype_name(base.dtype), "native", weights)
    if kernel == "auto" and impossible(base.spec, native, base.device) is None:
        return base
    return replace(base, raw_model=quantised(base.model, QUANTISED[weights]))


def choose_forward(
    base: Base,
    bank: Bank | None,
    cache: KVCache | None,
    torch_forward: TorchForward,
    weights: Weights,
    kernel: Kernel,
) -> Forward:
    """How a loaded base's passes are run: on its own weights where nothing else is asked for, natively where that
    measured faster.

    Raises UsageError where `weights` or `kernel` ask for what this base or machine cannot give.
    """
    base_dtype = dtype_name(base.dtype)
    if torch_forward.weights in QUANTISED and torch_forward.weights == weights and kernel != "native":
        return torch_forward
    asked_quantised = weights in QUANTISED
    if weights != "auto" and not asked_quantised and weights != base_dtype:
        raise UsageError(f"{base.name} was loaded as {base_dtype}; load it as {weights} to run with {weights} weights")
    if kernel != "torch" and cache is not None and not isinstance(cache, SlotCache):
        if kernel == "native" or asked_quantised:
            raise UsageError(
                f"{base.name} cannot run with kernel {kernel!r} and weights {weights!r}: the native path keeps keys "
                "and values in slots, and this engine in blocks"
            )
        return torch_forward
    try:
        backends = asked_ways((base_dtype,), dtype=base_dtype, weights=weights, kernel=kernel)
        backend = choose(base.spec, backends, base.device, loaded=True).backend
    except UsageError as error:
        raise UsageError(f"{base.name} cannot run with kernel {kernel!r} and weights {weights!r}: {error}") from error
    if backend.kernel == "torch":
        return torch_forward
    assert cache is None or isinstance(cache, SlotCache)
    blocks = stored_blocks(base) if asked_quantised else {}
    model, weights_as = base.outline if asked_quantised else base.model, cast("WeightFormat", backend.weights)
    return native_forward(model, weights_as, blocks, bank, cache, threads=engine_threads())


def left_in_file(backend: ExecutionPlan) -> Leave | None:
    """What need not be read for a base that is run in this backend: the matrices that the kernel takes in their own blocks.
    (Of the token table it reads rows.)"""
    if backend.kernel != "native" or backend.weights not in QUANTISED:
        return None

    def leave(model: Model, block_types: Mapping[str, str]) -> Collection[str]:
        names = {matrix.name for matrix in matrices(cast("Stack", model))} - {"embedding.weight"}
        return {name for name in names & block_types.keys() if accepts_blocks(block_types[name], backend.weights)}

    return leave


def stored_blocks(base: Base) -> Mapping[str, RawBlocks]:
    """What the checkpoint itself holds in blocks: taken as it is, not quantised a second time."""
    if base.family.key[0] != "gguf":
        return {}
    return StoredBlocks(base.path, base.family.weights, base.spec.main)
