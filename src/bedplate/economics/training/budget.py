"""What a sum of money trains: operations, the size and tokens of least loss, and of least cost over a model's use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bedplate.core.display import Brief
from bedplate.core.errors import UsageError
from bedplate.economics.hardware.device import Device
from bedplate.economics.hardware.mfu import Execution, Precision, peak_of
from bedplate.economics.numbers.bounds import positive, whole
from bedplate.economics.training.scaling_laws import (
    DEFAULT_FIT,
    Optimum,
    ScalingFit,
    compute_optimal,
    flops_for_budget,
    inference_aware,
)
from bedplate.economics.training.training_cost import DEFAULT_OVERHEAD, DevicePrice, Range, mfu_of, price_of

_DEMANDS = (1e11, 1e12, 1e13)
"""Tokens of use over a model's life that are shown where none are given."""

FORMULAS: dict[str, tuple[str, str]] = {
    "flops": ("usd / usd_per_hour × 3600 × dense peak × mfu / overhead", "PaLM 2204.02311, appendix B"),
    "compute_optimal": ("least E + A/N^α + B/D^β under 6·N·D operations", "Hoffmann 2203.15556; refit 2404.10102"),
    "inference_aware": ("least 6·N·D + 2·N·T at the same loss", "Sardana et al. 2401.00448"),
}


@dataclass(frozen=True, repr=False)
class BudgetPlan(Brief):
    """flops: of training, that the money buys. optimal: the least loss for them. in_use: by tokens of use, the size and
    tokens that reach `optimal`'s loss with the least training and use together."""

    usd: float
    device: Device
    devices: int
    price: DevicePrice
    flops: Range
    optimal: Optimum
    in_use: dict[float, Optimum]

    def as_json(self) -> dict[str, Any]:
        """One object; sizes in parameters, losses in nats a token."""
        return {
            "budget_usd": self.usd,
            "device": self.device.name,
            "devices": self.devices,
            "usd_per_hour": self.price.usd_per_hour.central,
            "price_source": self.price.source,
            "flops": self.flops.central,
            "flops_range": [self.flops.low, self.flops.high],
            "compute_optimal": _json(self.optimal),
            "inference_aware": [
                {"inference_tokens": demand, **_json(optimum)} for demand, optimum in self.in_use.items()
            ],
            "formulas": {name: {"formula": text, "source": source} for name, (text, source) in FORMULAS.items()},
        }


def plan_budget(
    usd: float,
    device: Device,
    devices: int,
    *,
    inference_tokens: float | None = None,
    precision: Precision = "bf16",
    execution: Execution = "tuned",
    mfu_share: float | None = None,
    overhead: float = DEFAULT_OVERHEAD,
    usd_per_hour: float | None = None,
    fit: str | ScalingFit = DEFAULT_FIT,
) -> BudgetPlan:
    """What `usd` train on `devices` devices. UsageError for numbers that cannot be, and where no price is known."""
    positive(usd=usd)
    whole(devices=devices)
    price = price_of(device, usd_per_hour)
    if price is None:
        raise UsageError(f"there is no example price of {device.name}; give --usd-per-hour")
    reached = mfu_of(device, devices, precision, execution, mfu_share)
    peak = peak_of(device, precision)

    def bought(hourly: float, share: float) -> float:
        return flops_for_budget(usd, hourly, peak, share, overhead)

    hourly = price.usd_per_hour
    flops = Range(
        bought(hourly.high, reached.low), bought(hourly.central, reached.central), bought(hourly.low, reached.high)
    )
    optimal = compute_optimal(flops.central, fit)
    demands = _DEMANDS if inference_tokens is None else (inference_tokens,)
    in_use = {demand: inference_aware(optimal.loss, demand, fit) for demand in demands}
    return BudgetPlan(usd, device, devices, price, flops, optimal, in_use)


def _json(optimum: Optimum) -> dict[str, Any]:
    return {
        "parameters": optimum.parameters,
        "tokens": optimum.tokens,
        "tokens_per_parameter": optimum.tokens / optimum.parameters,
        "loss": optimum.loss,
        "training_flops": optimum.training_flops,
        "inference_flops": optimum.inference_flops,
        "fit": optimum.fit.source,
        "warnings": list(optimum.warnings),
    }
