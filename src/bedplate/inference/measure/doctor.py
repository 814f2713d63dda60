"""What this machine is to an engine: its processor and roofs, what each way of running a base gives, and the choice.

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
from bedplate.inference.execution.calibration import PlanTimings, Use, measure, measured
from bedplate.inference.execution.choice import fitting, impossible, pick, why
from bedplate.inference.execution.plan import QUANTISED, ExecutionPlan, float_ways, own_ways, read_stored
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
    """What one way gives. rates: tokens a second by pass; of_roof: those over the best that memory and products allow;
    cost: seconds of the reference mix. preserves_stored: it keeps what the checkpoint stores, so it may be chosen. stopped: far
    behind, measured once only. reason: why it cannot be had (then nothing was measured)."""

    backend: ExecutionPlan
    preserves_stored: bool
    rates: Mapping[Pass, float]
    of_roof: Mapping[Pass, float]
    cost: float | None = None
    stopped: bool = False
    reason: str | None = None


@dataclass(frozen=True)
class Findings:
    """The whole answer. threads: of the native kernel and of torch; stored: types of the base's matrices."""

    processor: Processor
    threads: tuple[int, int]
    threads_said: bool
    kernel: Kernel
    machine: MeasuredMachine
    base: str
    stored: tuple[str, ...]
    readings: tuple[PlanSpeeds, ...]
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
                    **reading.backend._asdict(),
                    "keeps_what_is_stored": reading.preserves_stored,
                    "tokens_per_second": dict(reading.rates),
                    "of_roof": dict(reading.of_roof),
                    "mix_seconds": reading.cost,
                    "stopped_early": reading.stopped,
                    "reason": reading.reason,
                }
                for reading in self.readings
            ],
            "chosen": {**self.chosen._asdict(), "why": self.why},
        }


def examine(base: str | None = None, use: Use = "generate") -> Findings:
    """Measures this machine and the ways of a base (default: a standard shape) anew, and keeps the new measurement for
    whoever opens such a base. Raises HubError, CheckpointError, UnsupportedModelError."""
    if base is None:
        spec, types = PRESETS[STANDARD].spec, frozenset(("bfloat16",))
        assert isinstance(spec, TransformerSpec)
    else:
        stored = read_stored(base)
        spec, types = stored.spec, stored.types
    shape = timed_as(spec)
    machine = measure_machine()
    stored_backends = own_ways(types)
    extra_backends = _extra_backends(shape, stored_backends)
    reasons = {backend: impossible(spec, backend, _CPU) for backend in (*stored_backends, *extra_backends)}
    possible, _ = fitting(spec, [backend for backend in stored_backends if reasons[backend] is None])
    measurement = measured(spec, possible, remeasure=True)
    unmeasured = [
        backend
        for backend in (*stored_backends, *extra_backends)
        if reasons[backend] is None and backend not in possible
    ]
    extra_measurement = measure(shape, unmeasured) if unmeasured else PlanTimings({})
    best = pick(spec, measurement, possible, use)
    readings: list[PlanSpeeds] = []
    for backend in (*stored_backends, *extra_backends):
        reason = reasons[backend]
        if reason is not None:
            readings.append(PlanSpeeds(backend, backend in stored_backends, {}, {}, reason=reason))
        else:
            readings.append(
                _reading(
                    shape,
                    backend,
                    measurement if backend in possible else extra_measurement,
                    machine,
                    backend in stored_backends,
                )
            )
    return Findings(
        processor(),
        (engine_threads(), torch.get_num_threads()),
        threads_are_set(),
        _kernel(),
        machine,
        base or f"the shape of {STANDARD}",
        tuple(sorted(types)),
        tuple(readings),
        best,
        why(measurement, best, possible, use) if len(possible) > 1 else "the only way here",
    )


def _extra_backends(spec: TransformerSpec, stored_backends: Sequence[ExecutionPlan]) -> list[ExecutionPlan]:
    """What can be asked for although it does not keep what is stored."""
    quantised = [ExecutionPlan("bfloat16", "native", bits) for bits in QUANTISED] if spec.kind == "decoder" else []
    backends = [*float_ways("bfloat16"), *float_ways("float32"), *quantised]
    return [backend for backend in backends if backend not in stored_backends]


def _reading(
    spec: TransformerSpec,
    backend: ExecutionPlan,
    measurement: PlanTimings,
    machine: MeasuredMachine,
    preserves_stored: bool,
) -> PlanSpeeds:
    rates: dict[Pass, float] = {}
    of_roof: dict[Pass, float] = {}
    for of, seconds in measurement.seconds[backend].items():
        tokens = ROWS.get(of, PROMPT)
        rates[of] = tokens / seconds
        of_roof[of] = bound(spec, backend, of, machine) / seconds
    return PlanSpeeds(
        backend, preserves_stored, rates, of_roof, measurement.cost(backend), backend in measurement.dropped
    )


def bound(spec: TransformerSpec, backend: ExecutionPlan, of: Pass, machine: MeasuredMachine) -> float:
    """Seconds that a pass takes at least: its weights read once at the measured bandwidth, or its products computed at
    the measured rate of the format that they are computed in (attention's own are left out), whichever is more."""
    tokens = ROWS.get(of, PROMPT)
    rows = tokens if of in ROWS else 0
    flops = 2.0 * (product_weights(spec) * tokens + spec.vocab_size * spec.hidden_size * rows)
    rates = machine.flops_per_second
    peak = rates.get("int8" if backend.weights in QUANTISED else backend.weights, max(rates.values()))
    return max(read_bytes(spec, backend) / machine.bandwidth_bytes_per_second, flops / peak)


def _kernel() -> Kernel:
    library, command, supported_levels = load(), find_compiler(), supported()
    compiler = None if command is None else shlex.join(command)
    levels = () if isinstance(supported_levels, str) else supported_levels
    if isinstance(library, str):
        return Kernel(None, levels, compiler, None, library)
    return Kernel(library.level, levels, compiler, library.digest, None)
