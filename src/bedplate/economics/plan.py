"""`bedplate.plan`: what training, tuning and serving cost, and what to choose, as functions. Free of torch.

The same answers as `bedplate plan …` on the command line; results are frozen dataclasses. Every function raises
UsageError for numbers that cannot be and for what does not fit, and ConfigError for files.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path

from bedplate.core.arguments import checked
from bedplate.economics.costs import amortisation, decisions
from bedplate.economics.costs.amortisation import AmortisationFile
from bedplate.economics.hardware.devices import Device, find_device_in
from bedplate.economics.model.footprint import WeightFormat
from bedplate.economics.serving.replica import ReplicaEngine, replicas_of
from bedplate.economics.serving.serving_cost import LatencyTarget, ServingPlan, plan_cases
from bedplate.economics.serving.simulation import TokenLengths, Traffic, parse_lengths
from bedplate.economics.training.training_cost import BudgetPlan, TrainingPlan, plan_budget, plan_training
from bedplate.economics.training.tuning_cost import TuningPlan, plan_tuning

__all__ = [
    "BudgetPlan",
    "Device",
    "LatencyTarget",
    "ReplicaEngine",
    "ServingPlan",
    "TokenLengths",
    "Traffic",
    "TrainingPlan",
    "TuningPlan",
    "amortise",
    "budget",
    "decide",
    "device",
    "lengths",
    "serve",
    "train",
    "tune",
]

train = checked(plan_training)
tune = checked(plan_tuning)
budget = checked(plan_budget)


def __dir__() -> list[str]:
    return sorted(__all__)


@checked
def device(name: str, hardware: Path | str | None = None) -> Device:
    """A device of the table, or of one's own hardware file."""
    return find_device_in(hardware, name)


@checked
def lengths(text: str) -> TokenLengths:
    """Tokens: `300` (each call), `100-500` (evenly), `250~900` (median and 95th percentile), `@FILE` (one a line)."""
    return parse_lengths(text, "the length")


@checked
def serve(
    model: str,
    traffic: Traffic,
    calls_per_day: float,
    on: Device | None = None,
    devices: int = 1,
    *,
    weights: WeightFormat | None = None,
    engine: ReplicaEngine | None = None,
    target: LatencyTarget | None = None,
    peak_factor: float = 3.0,
    spare: int = 0,
    usd_per_hour: float | None = None,
    like: str | None = None,
    machine: Path | None = None,
) -> Mapping[str, ServingPlan]:
    """Plans of serving `model`: "central", and on devices of the table "low" and "high" of what engines reach of a data
    sheet; one of those that cannot meet the target is left out.

    on: None: this machine, as measured (`bedplate plan calibrate`). devices: of one replica. weights: None: what was
    measured last, or bfloat16. usd_per_hour: of one device. like: a measured base to extrapolate from. machine: another
    file of measurements.
    """
    replicas = replicas_of(
        model,
        traffic,
        on,
        devices,
        weights=weights,
        engine=engine,
        usd_per_hour=usd_per_hour,
        like=like,
        machine=machine,
    )
    return plan_cases(replicas, traffic, calls_per_day, peak_factor=peak_factor, target=target, spare=spare)


@checked
def decide(
    case: Path | str,
    overrides: Sequence[str] = (),
    *,
    prices: Path | str | None = None,
    today: datetime.date | None = None,
) -> decisions.Decision:
    """The answer to a decision file. prices: instead of the price file that it names. today: for prices' age."""
    return decisions.decide(*decisions.load_case(case, None if prices is None else Path(prices), overrides), today)


@checked
def amortise(account: Path | str, overrides: Sequence[str] = ()) -> amortisation.Statement:
    """Profit and loss by skin and tenant over the period of an amortisation file."""
    return amortisation.amortise(AmortisationFile.load(account, overrides))
