"""Measures what this machine gives an engine: its processor and roofs, the speed of each execution plan, the choice.

The roofs are those of the roofline model (Williams, Waterman and Patterson 2009): a decoded token cannot come faster
than the weights can be read, a prompt not faster than its products can be computed.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import torch

from bedplate.core.processor import processor
from bedplate.economics.hardware.machine import MeasuredMachine
from bedplate.inference.execution import calibration
from bedplate.inference.execution.choice import fitting, impossible, pick, why
from bedplate.inference.execution.plan import QUANTISED, ExecutionPlan, float_plans, lossless_plans, read_stored
from bedplate.inference.execution.threads import engine_threads, threads_are_set
from bedplate.inference.measure.speeds import measure_machine
from bedplate.inference.native.compiler import find_compiler
from bedplate.inference.native.library import load, supported, tiles_refused
from bedplate.models.specs.presets import PRESETS
from bedplate.models.specs.transformer import TransformerSpec

STANDARD = "smollm2-135m"
"""The shape that is measured where no base is named."""
_CPU = torch.device("cpu")


def examine(base: str | None = None) -> dict[str, Any]:
    """Measures this machine and the plans of a base (default: a standard shape) anew, and keeps the new measurement for
    whoever opens such a base: one object for JSON, with rates in tokens a second and sizes in bytes. Raises HubError,
    CheckpointError, UnsupportedModelError."""
    if base is None:
        spec, types = PRESETS[STANDARD], frozenset(("bfloat16",))
        assert isinstance(spec, TransformerSpec)
    else:
        stored = read_stored(base)
        spec, types = stored.spec, stored.types
    shape, machine = calibration.timed_as(spec), measure_machine()
    stored_plans = lossless_plans(types)
    plans = [*stored_plans, *_lossy_plans(shape, stored_plans)]
    reasons = {plan: impossible(spec, plan, _CPU) for plan in plans}
    possible, _ = fitting(spec, [plan for plan in stored_plans if reasons[plan] is None])
    timings = calibration.plan_timings(spec, possible, remeasure=True)
    rest = [plan for plan in plans if reasons[plan] is None and plan not in possible]
    rest_timings = calibration.measure(shape, rest) if rest else calibration.PlanTimings({})
    best = pick(spec, timings, possible)
    speeds: list[dict[str, Any]] = []
    for plan in plans:
        measured = timings if plan in possible else rest_timings
        seconds = measured.seconds.get(plan, {})
        speeds.append(
            {
                **plan._asdict(),
                "keeps_what_is_stored": plan in stored_plans,
                "tokens_per_second": {
                    name: calibration.ROWS.get(name, calibration.PROMPT) / taken for name, taken in seconds.items()
                },
                "of_roof": {name: share(bound(shape, plan, name, machine), taken) for name, taken in seconds.items()},
                "mix_seconds": measured.cost(plan) if seconds else None,
                "stopped_early": plan in measured.dropped,
                "reason": reasons[plan],
            }
        )
    reason = why(timings, best, "generate") if len(possible) > 1 else "the only plan that is possible here"
    return {
        "processor": processor().to_json(),
        "threads": {
            "native": engine_threads(),
            "torch": torch.get_num_threads(),
            "from_environment": threads_are_set(),
        },
        "kernel": _kernel(),
        "roofs": {
            "bandwidth_bytes_per_second": machine.bandwidth_bytes_per_second,
            "flops_per_second": dict(machine.flops_per_second),
        },
        "base": {"name": base or f"the shape of {STANDARD}", "stored": sorted(types)},
        "ways": speeds,
        "chosen": {**best._asdict(), "why": reason},
    }


ROOF_ERROR = 1.1
"""How far above the roof a measured speed may lie by the error of both measurements."""


def _lossy_plans(spec: TransformerSpec, stored_plans: Sequence[ExecutionPlan]) -> list[ExecutionPlan]:
    """Plans that a user can choose although they do not keep what is stored."""
    quantised = [ExecutionPlan("bfloat16", "native", bits) for bits in QUANTISED] if spec.kind == "decoder" else []
    plans = [*float_plans("bfloat16"), *float_plans("float32"), *quantised]
    return [plan for plan in plans if plan not in stored_plans]


def bound(spec: TransformerSpec, plan: ExecutionPlan, name: calibration.Pass, machine: MeasuredMachine) -> float:
    """Seconds that a pass takes at least: its weights read once at the measured bandwidth, or its products computed at
    the measured rate of the format that they are computed in (attention's own are left out), whichever is more."""
    tokens = calibration.ROWS.get(name, calibration.PROMPT)
    rows = tokens if name in calibration.ROWS else 0
    flops = 2.0 * (calibration.product_weights(spec) * tokens + spec.vocab_size * spec.hidden_size * rows)
    rates = machine.flops_per_second
    peak = rates.get("int8" if plan.weights in QUANTISED else plan.weights, max(rates.values()))
    return max(calibration.read_bytes(spec, plan) / machine.bandwidth_bytes_per_second, flops / peak)


def share(bound_seconds: float, seconds: float) -> float | None:
    """How much of the roof a pass reached; None where it is above it: the roof was measured on a busier machine."""
    return min(bound_seconds / seconds, 1.0) if bound_seconds <= ROOF_ERROR * seconds else None


def _kernel() -> dict[str, Any]:
    """The native kernel here. level: the instructions it uses; levels: what it could use; tiles_refused: why not those
    with AMX, where the processor reports it; reason: why there is none."""
    library, command, supported_levels = load(), find_compiler(), supported()
    has = not isinstance(library, str)
    return {
        "level": library.level if has else None,
        "levels": [] if isinstance(supported_levels, str) else list(supported_levels),
        "tiles_refused": tiles_refused(),
        "compiler": None if command is None else shlex.join(command),
        "digest": library.digest if has else None,
        "reason": None if has else library,
    }
