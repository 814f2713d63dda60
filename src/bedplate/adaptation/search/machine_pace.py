"""Rungs that take long are planned by how fast the machine is now: other work may have come since a base's speed was
measured, and what was planned before it would then run over."""

from __future__ import annotations

import math
import time
from dataclasses import replace

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import RungPlan, Skip
from bedplate.adaptation.context.throughput import FIRST_CALLS
from bedplate.adaptation.rungs.rung import Rung
from bedplate.adaptation.search import planner
from bedplate.core.processor import load_average

LONG = 20.0
"""Seconds that a rung is to take, and that a measurement is old, before it is worth measuring again."""
NOTABLY, MAX_SLOWDOWN = 1.25, 4.0
"""Times slower that change a plan, and that are believed of a few calls at most."""


def planned_now(context: Context, rung: Rung) -> RungPlan | Skip:
    """The rung's plan. One that trains for long on a machine that has become slower is made smaller, and says why; a
    machine that has become faster changes nothing, since what is left in the end goes to larger fits."""
    plan = planner.planned(context, rung)
    if not isinstance(plan, RungPlan) or not rung.traits.trained or plan.seconds < LONG:
        return plan
    first_calls = context.throughput.first_calls
    if context.outer_clock is not None or math.isinf(context.seconds_left) or context.settled or not first_calls:
        return plan
    if time.monotonic() - context.throughput.at < LONG:
        return plan
    slower = min(MAX_SLOWDOWN, calls_now(context) / first_calls)
    if slower < NOTABLY:
        return plan
    context.slower = slower
    try:
        smaller = planner.planned(context, rung)
    finally:
        context.slower = 1.0
    if isinstance(smaller, Skip) or smaller.settings == plan.settings:
        return smaller
    load = load_average()
    load_note = "" if load is None else f" (load average {load:.1f})"
    reason = f"the machine is {slower:.1f} times slower than when the base's speed was measured{load_note}"
    return replace(smaller, left_out=(*smaller.left_out, reason))


def calls_now(context: Context) -> float:
    """Seconds of the first few calls that the base's speed was measured with, as they are now: the least of a few
    medians, until one is not notably more. What disturbs a tenth of a second says nothing of the minutes that a fit
    takes."""
    prompt, output = context.default_prompt() if context.is_encoder else context.task_prompt()
    enough = NOTABLY * context.throughput.first_calls
    tenant = f"pace at {context.clock.used:.1f} s"  # for whom nothing is cached, however often it is measured
    return context.calls(prompt, output, enough, FIRST_CALLS, tenant).call
