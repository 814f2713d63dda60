"""Measures what this machine gives an engine: its processor and roofs, the speed of each execution plan, the choice.

The roofs are those of the roofline model (Williams, Waterman and Patterson 2009): a decoded token cannot come faster
than the weights can be read, a prompt not faster than its products can be computed.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from bedplate.core.processor import Processor, processor
from bedplate.economics.hardware.machine import MeasuredMachine
from bedplate.inference.execution.calibration import PlanTimings, Use, measure, plan_timings
from bedplate.inference.execution.choice import fitting, impossible, pick, why
from bedplate.inference.execution.plan import QUANTISED, ExecutionPlan, float_plans, lossless_plans, read_stored
from bedplate.inference.execution.threads import engine_threads, threads_are_set
from bedplate.inference.execution.trial import PROMPT, ROWS, Pass, product_weights, read_bytes, timed_as
from bedplate.inference.measure.speeds import measure_machine
from bedplate.inference.native.compiler import find_compiler
from bedplate.inference.native.detection import supported
from bedplate.inference.native.library import load
from bedplate.models.specs.presets import PRESETS
from bedplate.models.specs.transformer import TransformerSpec

STANDARD = "smollm2-135m"
"""The shape that is measured where no base is named."""
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Kernel:
    """The native kernel here. level: the instructions it uses, levels: what it could use; reason: why there is none."""

    level: str | None
    levels: tuple[str, ...]
    compiler: str | None
    digest: str | None
    reason: str | None


@dataclass(frozen=True)
class PlanSpeeds:
    """The speed of one plan. lossless: it keeps what the checkpoint stores, so it may be chosen. rates: tokens a second
    by pass; of_roof: those over the best that memory and products allow; cost: seconds of the reference mix. stopped:
    far behind, measured once only. reason: why it is impossible (then nothing was measured)."""

    plan: ExecutionPlan
    lossless: bool
    rates: Mapping[Pass, float]
    of_roof: Mapping[Pass, float]
    cost: float | None = None
    stopped: bool = False
    reason: str | None = None


@dataclass(frozen=True)
class Findings:
    """What `examine` measured. threads: of the native kernel and of torch; stored: types of the base's matrices."""

    processor: Processor
    threads: tuple[int, int]
    threads_said: bool
    kernel: Kernel
    machine: MeasuredMachine
    base: str
    stored: tuple[str, ...]
    speeds: tuple[PlanSpeeds, ...]
    chosen: ExecutionPlan
    why: str

    def to_json(self) -> dict[str, Any]:
        """One object; rates in tokens a second, sizes in bytes."""
        roofs = {
            "bandwidth_bytes_per_second": self.machine.bandwidth_bytes_per_second,
            "flops_per_second": dict(self.machine.flops_per_second),
        }
        return {
            "processor": self.processor.to_json(),
            "threads": {"native": self.threads[0], "torch": self.threads[1], "from_environment": self.threads_said},
            "kernel": asdict(self.kernel),
            "roofs": roofs,
            "base": {"name": self.base, "stored": list(self.stored)},
            "ways": [
                {
                    **speed.plan._asdict(),
                    "keeps_what_is_stored": speed.lossless,
                    "tokens_per_second": dict(speed.rates),
                    "of_roof": dict(speed.of_roof),
                    "mix_seconds": speed.cost,
                    "stopped_early": speed.stopped,
                    "reason": speed.reason,
                }
                for speed in self.speeds
            ],
            "chosen": {**self.chosen._asdict(), "why": self.why},
        }


def examine(base: str | None = None, use: Use = "generate") -> Findings:
    """Measures this machine and the plans of a base (default: a standard shape) anew, and keeps the new measurement for
    whoever opens such a base. Raises HubError, CheckpointError, UnsupportedModelError."""
    if base is None:
        spec, types = PRESETS[STANDARD].spec, frozenset(("bfloat16",))
        assert isinstance(spec, TransformerSpec)
    else:
        stored = read_stored(base)
        spec, types = stored.spec, stored.types
    shape = timed_as(spec)
    machine = measure_machine()
    stored_plans = lossless_plans(types)
    plans = [*stored_plans, *_lossy_plans(shape, stored_plans)]
    reasons = {plan: impossible(spec, plan, _CPU) for plan in plans}
    possible, _ = fitting(spec, [plan for plan in stored_plans if reasons[plan] is None])
    timings = plan_timings(spec, possible, remeasure=True)
    rest = [plan for plan in plans if reasons[plan] is None and plan not in possible]
    rest_timings = measure(shape, rest) if rest else PlanTimings({})
    best = pick(spec, timings, possible, use)
    speeds: list[PlanSpeeds] = []
    for plan in plans:
        if reasons[plan] is not None:
            speeds.append(PlanSpeeds(plan, plan in stored_plans, {}, {}, reason=reasons[plan]))
            continue
        measured = timings if plan in possible else rest_timings
        seconds = measured.seconds[plan]
        rates: dict[Pass, float] = {name: ROWS.get(name, PROMPT) / taken for name, taken in seconds.items()}
        of_roof: dict[Pass, float] = {
            name: bound(shape, plan, name, machine) / taken for name, taken in seconds.items()
        }
        cost, stopped = measured.cost(plan), plan in measured.dropped
        speeds.append(PlanSpeeds(plan, plan in stored_plans, rates, of_roof, cost, stopped))
    return Findings(
        processor(),
        (engine_threads(), torch.get_num_threads()),
        threads_are_set(),
        _kernel(),
        machine,
        base or f"the shape of {STANDARD}",
        tuple(sorted(types)),
        tuple(speeds),
        best,
        why(timings, best, use) if len(possible) > 1 else "the only plan that is possible here",
    )


def _lossy_plans(spec: TransformerSpec, stored_plans: Sequence[ExecutionPlan]) -> list[ExecutionPlan]:
    """Plans that a user can choose although they do not keep what is stored."""
    quantised = [ExecutionPlan("bfloat16", "native", bits) for bits in QUANTISED] if spec.kind == "decoder" else []
    plans = [*float_plans("bfloat16"), *float_plans("float32"), *quantised]
    return [plan for plan in plans if plan not in stored_plans]


def bound(spec: TransformerSpec, plan: ExecutionPlan, name: Pass, machine: MeasuredMachine) -> float:
    """Seconds that a pass takes at least: its weights read once at the measured bandwidth, or its products computed at
    the measured rate of the format that they are computed in (attention's own are left out), whichever is more."""
    tokens = ROWS.get(name, PROMPT)
    rows = tokens if name in ROWS else 0
    flops = 2.0 * (product_weights(spec) * tokens + spec.vocab_size * spec.hidden_size * rows)
    rates = machine.flops_per_second
    peak = rates.get("int8" if plan.weights in QUANTISED else plan.weights, max(rates.values()))
    return max(read_bytes(spec, plan) / machine.bandwidth_bytes_per_second, flops / peak)


def _kernel() -> Kernel:
    library, command, supported_levels = load(), find_compiler(), supported()
    compiler = None if command is None else shlex.join(command)
    levels = () if isinstance(supported_levels, str) else supported_levels
    if isinstance(library, str):
        return Kernel(None, levels, compiler, None, library)
    return Kernel(library.level, levels, compiler, library.digest, None)
