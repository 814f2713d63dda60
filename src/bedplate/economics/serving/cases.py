"""A serving plan by case: on a measured machine the one case, on devices of the table the range of what engines reach
of a data sheet. What the command line and `bedplate.plan` share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bedplate.core.errors import UsageError
from bedplate.economics.hardware.device import Device
from bedplate.economics.hardware.machine import read_machine
from bedplate.economics.model.footprint import WeightFormat
from bedplate.economics.serving.replica import Replica, ReplicaEngine, measured_replica, on_devices
from bedplate.economics.serving.serving_cost import LatencyTarget, ServingPlan, plan_serving
from bedplate.economics.serving.traffic import Traffic

LOCAL_ENGINE = ReplicaEngine()
ON_DEVICES = ReplicaEngine(max_rows=128, max_step_tokens=4096)
"""How an engine is run on this machine, and on devices of the table, where nothing else is said."""


def engine_on(
    device: Device | None,
    *,
    max_rows: int | None = None,
    max_step_tokens: int | None = None,
    adapter_rank: int = 0,
    drafted: int = 0,
    accepted: float = 0.0,
) -> ReplicaEngine:
    """The engine of a device of the table, or of this machine (None), with what is said about it."""
    usual = LOCAL_ENGINE if device is None else ON_DEVICES
    return ReplicaEngine(
        usual.max_rows if max_rows is None else max_rows,
        usual.max_step_tokens if max_step_tokens is None else max_step_tokens,
        adapter_rank,
        drafted,
        accepted,
    )


def replicas_of(
    model: str,
    traffic: Traffic,
    on: Device | None = None,
    devices: int = 1,
    *,
    weights: WeightFormat | None = None,
    engine: ReplicaEngine | None = None,
    usd_per_hour: float | None = None,
    like: str | None = None,
    machine: Path | None = None,
) -> dict[str, Replica]:
    """ "central", and on devices of the table "low" and "high". Arguments as of `plan.serve`. UsageError for what does
    not go together, and where it does not fit."""
    run = engine or engine_on(on)
    if on is not None:
        if like is not None or machine is not None:
            raise UsageError("measurements (like, machine) are of this machine; leave the device out")
        return on_devices(model, on, devices, weights or "bfloat16", traffic, run, usd_per_hour=usd_per_hour)
    if devices != 1:
        raise UsageError("several devices make a replica of devices of the table; name the device, such as h100")
    replica = measured_replica(
        read_machine(machine), model, weights, traffic, run, like=like, usd_per_hour=usd_per_hour
    )
    return {"central": replica}


def plan_cases(
    replicas: Mapping[str, Replica],
    traffic: Traffic,
    calls_per_day: float,
    *,
    peak_factor: float = 3.0,
    target: LatencyTarget | None = None,
    spare: int = 0,
) -> dict[str, ServingPlan]:
    """A plan of each case. One of a range that cannot meet the target is left out; where "central" cannot, its
    UsageError is raised."""
    plans: dict[str, ServingPlan] = {}
    for case, replica in replicas.items():
        try:
            plans[case] = plan_serving(
                replica, traffic, calls_per_day, peak_factor=peak_factor, target=target, spare=spare
            )
        except UsageError:
            if case == "central":
                raise
    return plans
