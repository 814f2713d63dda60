"""How much faster a base runs in quantised weights here: what the engine's own measurement says, for one kind of work.

The ladder asks nothing else of that measurement; what a skin gains in the end is timed on its own calls.
"""

from __future__ import annotations

from collections.abc import Mapping

from bedplate.adaptation.task.format_spec import FORMATS, Format, FormatsSpec
from bedplate.inference.execution.calibration import plan_timings
from bedplate.inference.execution.choice import impossible
from bedplate.inference.execution.plan import ExecutionPlan
from bedplate.inference.predict.local import LocalModel
from bedplate.models.precision import dtype_name

CLEARLY = 1.05
"""Times as fast; speeds that differ by less are not told apart."""


def measured(model: LocalModel, *, writes: bool) -> Mapping[Format, float] | str:
    """How many times as fast as now the base would be in each format: at decoding where answers are written,
    else at reading prompts. Or why it cannot run in any."""
    base, engine = model.base, model.engine
    dtype = dtype_name(base.dtype)
    baseline = ExecutionPlan(dtype, "torch" if engine.kernel == "torch" else "native", engine.weights)
    formats: dict[Format, ExecutionPlan] = {
        fmt: ExecutionPlan(dtype, "native", fmt) for fmt in FORMATS if fmt != engine.weights
    }
    reasons = [impossible(base.spec, candidate, base.device) for candidate in formats.values()]
    reason = next((obstacle for obstacle in reasons if obstacle is not None), None)
    if reason is not None:
        return reason
    measurement = plan_timings(base.spec, [baseline, *formats.values()])
    of = "decode_1" if writes else "prefill"
    return {
        fmt: measurement.seconds[baseline][of] / measurement.seconds[candidate][of]
        for fmt, candidate in formats.items()
    }


def worth_trying(model: LocalModel, spec: FormatsSpec, *, writes: bool) -> Mapping[Format, float] | str:
    """Format → times as fast, the fastest first: of "auto" those that were measured to be clearly faster, of a list all
    that it names. Or why there is none."""
    if not spec.allowed:
        return "adapt.formats is none"
    speeds = measured(model, writes=writes)
    if isinstance(speeds, str):
        return speeds
    allowed: dict[Format, float] = {fmt: times for fmt, times in speeds.items() if fmt in spec.allowed}
    worthwhile: list[Format] = [fmt for fmt, times in allowed.items() if spec.weights != "auto" or times >= CLEARLY]
    if not worthwhile:
        listing = ", ".join(f"{fmt} {times:.2f}" for fmt, times in allowed.items())
        workload = "decoding" if writes else "reading prompts"
        if not listing:
            return f"its own weights are {model.engine.weights} already"
        return f"measured here, no format is clearly faster at {workload} (times as fast as now: {listing})"
    return {fmt: allowed[fmt] for fmt in sorted(worthwhile, key=lambda fmt: -allowed[fmt])}
