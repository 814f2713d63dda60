"""How much faster a base runs in quantised weights here: what the engine's own measurement says, for one kind of work.

The ladder asks nothing else of that measurement; what a skin gains in the end is timed on its own calls.
"""

from __future__ import annotations

from collections.abc import Mapping

from bedplate.adaptation.format_spec import FORMATS, Format, FormatsSpec
from bedplate.core.errors import UsageError
from bedplate.inference.calibrate import Way, calibrated
from bedplate.inference.local import LocalModel

DECODE, PREFILL = 1, 256
"""Tokens of a pass that writes an answer, and of one that reads a prompt."""
CLEARLY = 1.05
"""Times as fast; speeds that differ by less are not told apart."""


def measured(model: LocalModel, *, writes: bool) -> Mapping[Format, float] | str:
    """How many times as fast as now the base would be in each format: tokens per second of decoding where answers are
    written, else of reading prompts. Or why it cannot run in any."""
    engine = model.engine
    try:
        found = calibrated(model.base)
    except UsageError as error:
        return error.message
    ways: dict[str, Way] = {"bfloat16": "bfloat16", "int8": "int8", "int4": "int4"}
    now: Way = "torch" if engine.kernel == "torch" else ways[engine.weights]
    tokens = DECODE if writes else PREFILL
    before = found.speeds[now][tokens]
    return {one: found.speeds[one][tokens] / before for one in FORMATS if one != engine.weights}


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
