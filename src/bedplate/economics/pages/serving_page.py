"""The page of a serving plan: one replica's latency at every load that the search for its capacity can look at.

`plan_serving` looks, whatever the latency target is, at multiples of a part (1 / PARTS) of the saturating rate
only. All of these are simulated here once; the page then finds the capacity of
any target as the plan would. Latencies between two of the loads are interpolated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from bedplate.core.errors import UsageError
from bedplate.core.progress import Progress
from bedplate.economics.numbers.formula import javascript
from bedplate.economics.serving.replica import Replica
from bedplate.economics.serving.serving_cost import (
    FORMULAS,
    PARTS,
    LatencyTarget,
    fleet_formulas,
    load_curve,
    plan_serving,
)
from bedplate.economics.serving.traffic_model import Traffic
from bedplate.report.pages import interactive_page

_SCRIPTS = ("fleets.js", "serving.js")
_FIGURES = ("first_token_p50", "first_token_p95", "total_p50", "total_p95", "total_p99", "utilisation")
_MORE_FORMULAS = {
    "at_peak": ("calls_per_day / 86400 × peak_factor / replicas", f"interpolated between {PARTS} simulated loads"),
    "at_mean": ("calls_per_day / 86400 / replicas", f"interpolated between {PARTS} simulated loads"),
}


def serving_page(
    model: str,
    replicas: Mapping[str, Replica],
    traffic: Traffic,
    calls_per_day: float,
    *,
    peak_factor: float = 3.0,
    target: LatencyTarget | None = None,
    spare: int = 0,
    devices: int = 1,
    command: Sequence[str] = (),
) -> str:
    """The page as HTML. Arguments and errors as of `plan_cases`.

    devices: that the price of a replica is of. command: what answers the same in the terminal, without what the
    sliders say.
    """
    goal, central = target or LatencyTarget(), replicas["central"]
    if goal.share != LatencyTarget().share:
        raise UsageError(
            f"a page shows what holds for {LatencyTarget().share:.0%} of the calls, not for {goal.share:.0%}"
        )
    plan_serving(central, traffic, calls_per_day, peak_factor=peak_factor, target=goal, spare=spare)  # or its errors
    with Progress("loads", total=len(replicas) * PARTS) as bar:
        cases = {name: _case(replica, traffic, bar) for name, replica in replicas.items()}
    formulas = {**FORMULAS, **_MORE_FORMULAS}
    tokens_per_call = traffic.skin_tokens + traffic.prompt.mean + traffic.output.mean
    data = {
        "model": model,
        "traffic": {
            "prompt": str(traffic.prompt),
            "output": str(traffic.output),
            "skin_tokens": traffic.skin_tokens,
            "skins": traffic.skins,
            "tokens_per_call": tokens_per_call,
        },
        "calls_per_day": calls_per_day,
        "peak_factor": peak_factor,
        "spare": spare,
        "target": {"total_seconds": goal.total_seconds, "first_token_seconds": goal.first_token_seconds},
        "usd_per_hour": central.usd_per_hour,
        "price_source": central.price_source,
        "devices": devices,
        "basis": central.basis,
        "memory": dict(central.memory),
        "grid": PARTS,
        "cases": cases,
        "formulas": {name: {"formula": text, "source": source} for name, (text, source) in formulas.items()},
        "command": list(command),
    }
    folder = files("bedplate.economics.pages")
    scripts = [javascript("COSTS", fleet_formulas(tokens_per_call)), *(folder / name for name in _SCRIPTS)]
    return interactive_page(f"Serving {model}", scripts, data)


def _case(replica: Replica, traffic: Traffic, bar: Progress) -> dict[str, Any]:
    """One replica: alone, saturated, and by figure a list of its values at 1, 2, … parts of the saturated rate."""
    plan = plan_serving(replica, traffic, 1.0)
    columns: dict[str, list[float]] = {name: [] for name in _FIGURES}
    for part in range(1, PARTS + 1):
        (latency,) = load_curve(replica, traffic, plan, loads=(part / PARTS,))
        for name, column in columns.items():
            column.append(getattr(latency, name))
        bar.advance(1)
    return {
        "alone": asdict(plan.alone),
        "saturated_calls_per_second": plan.saturated_calls_per_second,
        "saturated_tokens_per_second": plan.saturated_tokens_per_second,
        "loads": columns,
    }
