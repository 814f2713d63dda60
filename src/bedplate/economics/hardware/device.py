"""One kind of device as data: dense peaks, memory, links, power and an example of its price.

Peaks are dense: vendors' sheets print twice as much for structured sparsity, which training does not use. Bandwidths of
links are of one direction, per device: half of what sheets call "bidirectional" or "total".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from bedplate.core.display import Brief
from bedplate.core.errors import UsageError

GB = 1e9

Number = Literal["fp32", "tf32", "bf16", "fp16", "fp8", "int8", "fp4"]


@dataclass(frozen=True)
class RentalExample:
    """What renting one device for an hour cost at some date: an example, not a quotation. `usd_per_hour` is the
    geometric middle of the range."""

    usd_per_hour_low: float
    usd_per_hour_high: float
    as_of: str
    source: str

    @property
    def usd_per_hour(self) -> float:
        return math.sqrt(self.usd_per_hour_low * self.usd_per_hour_high)


@dataclass(frozen=True, repr=False)
class Device(Brief):
    """One GPU, one TPU chip or one CPU socket.

    peak_flops_per_second: dense operations per second of matrix products by number format, accumulated in 32 bits.
    link_bytes_per_second: to the other devices of its node (or of its pod's torus), one direction, all links together.
    network_bytes_per_second: its share of the network between nodes, one direction.
    mfu: the name of its curve in `economics.hardware.mfu`. watts: of the device alone, at its limit.
    """

    name: str
    title: str
    device_type: Literal["gpu", "tpu", "cpu"]
    peak_flops_per_second: Mapping[str, float]
    memory_bytes: float
    memory_bytes_per_second: float
    devices_per_node: int
    link_bytes_per_second: float
    network_bytes_per_second: float
    watts: float
    mfu: str
    source: str
    as_of: str
    rental: RentalExample | None = None
    MADE_BY: ClassVar[str] = "bedplate.plan.device(NAME)"
    aliases: tuple[str, ...] = field(default=())

    def peak(self, number: str) -> float:
        """Dense operations per second in `number`. UsageError where the device has no products in it."""
        if number not in self.peak_flops_per_second:
            formats = ", ".join(self.peak_flops_per_second)
            raise UsageError(f"{self.name} has no {number} products; it has {formats}")
        return self.peak_flops_per_second[number]
