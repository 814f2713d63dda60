"""How much faster a base runs in quantised weights here: what the engine's own measurement says, for one kind of work.

The ladder asks nothing else of that measurement; what a skin gains in the end is timed on its own calls.
"""

from __future__ import annotations

from collections.abc import Mapping

from bedplate.adaptation.task.format_spec import FORMATS, Format, FormatsSpec
from bedplate.inference.predict.local import LocalModel
from bedplate.inference.ways.calibrate import measured as measured_ways
from bedplate.inference.ways.choice import impossible
from bedplate.inference.ways.way import Way
from bedplate.models.precision import dtype_name

CLEARLY = 1.05
"""Times as fast; speeds that differ by less are not told apart."""


def measured(model: LocalModel, *, writes: bool) -> Mapping[Format, float] | str:
    """How many times as fast as now the base would be in each format: at decoding where answers are written,
    else at reading prompts. Or why it cannot run in any."""
    base, engine = model.base, model.engine
    own = dtype_name(base.dtype)
    now = Way(own, "torch" if engine.kernel == "torch" else "native", engine.weights)
    formats: dict[Format, Way] = {one: Way(own, "native", one) for one in FORMATS if one != engine.weights}
    reasons = [impossible(base.spec, way, base.device) for way in formats.values()]
    reason = next((one for one in reasons if one is not None), None)
    if reason is not None:
        return reason
    found = measured_ways(base.spec, [now, *formats.values()])
    of = "decode_1" if writes else "prefill"
    return {one: found.seconds[now][of] / found.seconds[way][of] for one, way in formats.items()}


def worth_trying(model: LocalModel, spec: FormatsSpec, *, writes: bool) -> Mapping[Format, float] | str:
    """Format → times as fast, the fastest first: of "auto" those that were measured to be clearly faster, of a list all
    that it names. Or why there is none."""
    if not spec.allowed:
        return "adapt.formats is none"
    speeds = measured(model, writes=writes)
    if isinstance(speeds, str):
        return speeds
    allowed: dict[Format, float] = {one: times for one, times in speeds.items() if one in spec.allowed}
    wanted: list[Format] = [one for one, times in allowed.items() if spec.weights != "auto" or times >= CLEARLY]
    if not wanted:
        said = ", ".join(f"{one} {times:.2f}" for one, times in allowed.items())
        what = "decoding" if writes else "reading prompts"
        if not said:
            return f"its own weights are {model.engine.weights} already"
        return f"measured here, no format is clearly faster at {what} (times as fast as now: {said})"
    return {one: allowed[one] for one in sorted(wanted, key=lambda one: -allowed[one])}
