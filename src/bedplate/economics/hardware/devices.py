"""Devices as data: dense peaks, memory, links, power and an example of their price (devices.yaml), a user's own ones,
and which share of the peak a training run reaches on them: one curve per kind of device over their number.

    MFU(n) = floor + (first − floor) · (8 / max(n, 8))^β          β = 0.2 for all

Peaks are dense: vendors' sheets print twice as much for structured sparsity, which training does not use. Bandwidths of
links are of one direction, per device: half of what sheets call "bidirectional" or "total".

Model FLOPs utilization (PaLM, https://arxiv.org/abs/2204.02311): the operations of the model itself over the dense bf16
peak, recomputation not counted. Attention of decoders is counted CAUSALLY, the lower triangle only: sources that count
the full square were converted, which lowers theirs (Llama-3.1-8B at 8,192 tokens: 39% is 35% here). The constants are
written by hand, two a curve, rounded. They were set between the sources named with each curve, none of which is a row
that docs/predictions.md is checked on; those rows were known then, so the check there is not blind. `first` is of one
node with well-made kernels, `floor` what very many devices approach. β: from the A100 sources, whose scale is the
widest (8 to 2,048). The range is a factor of 0.8 to 1.25: the published MFU of large runs and of NVIDIA's own tuned
recipes lie in it; a first run of a new stack can lie below.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import Field, field_validator

from bedplate.core.config import Strict, load_config
from bedplate.core.display import Brief
from bedplate.core.errors import ConfigError, UsageError
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.economics.numbers.formula import Range

BETA = 0.2
LOW, HIGH = 0.8, 1.25

Execution = Literal["tuned", "compile", "eager"]
Precision = Literal["bf16", "fp16", "fp8", "tf32", "fp32"]

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times as fast, where it is installed


def _table(name: str) -> dict[str, Any]:
    return yaml.load((files("bedplate.economics.hardware") / name).read_text("utf-8"), Loader=_LOADER)


@dataclass(frozen=True)
class MfuCurve:
    """One kind of device. n: how many devices work on one model."""

    first: float
    floor: float
    source: str

    def at(self, n: int) -> float:
        """The central share of `n` devices."""
        return (8.0 / max(n, 8)) ** BETA * (self.first - self.floor) + self.floor


CURVES = {name: MfuCurve(**row) for name, row in _table("curves.yaml").items()}
"""By kind of device."""

# Throughput against well-made kernels in bf16. Both from torchtitan's 128-GPU table (Llama-3.1-8B, arXiv 2410.06511 and
# benchmarks/llama3_h100_202412): 6,514 tokens/s/GPU compiled are 0.86 of what the curve says there, 5,605 eager 0.74
# (its H100s are held at 500 W, which is in the factors).
EXECUTION: dict[str, float] = {"tuned": 1.0, "compile": 0.86, "eager": 0.74}
EXECUTION_SOURCE = "torchtitan's 128-GPU rows (https://arxiv.org/abs/2410.06511)"

# fp8 products with everything else in bf16, as a factor on the bf16 share: torchtitan's 128-GPU rows 8,380 / 6,514 =
# 1.286; OLMo-core's README 1.18 to 1.32; LLM Foundry 1.10 to 1.35.
FP8_FACTOR = 1.28
FP8_SOURCE = "torchtitan's 128-GPU rows; OLMo-core and LLM Foundry agree (1.10 to 1.35)"


def peak_of(device: Device, precision: Precision) -> float:
    """The dense operations per second that a share of the peak is of: fp8 runs are stated on the bf16 peak, with a
    factor. UsageError where the device lacks `precision`."""
    peak = device.peak(precision)
    return device.peak("bf16") if precision == "fp8" else peak


def mfu(curve: str, devices: int, precision: Precision = "bf16", execution: Execution = "tuned") -> Range:
    """The range for so many devices; of fp8, over the bf16 peak. UsageError for values that cannot be."""
    if curve not in CURVES:
        raise UsageError(f"there is no MFU curve {curve!r}; there are {', '.join(CURVES)}")
    if execution not in EXECUTION:
        raise UsageError(f"there is no execution {execution!r}; there are {', '.join(EXECUTION)}")
    if devices < 1:
        raise UsageError(f"{devices} devices: there must be at least 1")
    factor = EXECUTION[execution] * (FP8_FACTOR if precision == "fp8" else 1.0)
    central = CURVES[curve].at(devices) * factor
    return Range(LOW * central, central, HIGH * central)


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
    mfu: the name of its curve in `CURVES`. watts: of the device alone, at its limit.
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


def _device(name: str, row: dict[str, Any]) -> Device:
    gigabytes, rental = {key: size * 1e9 for key, size in row.pop("gigabytes").items()}, row.pop("rental", None)
    return Device(
        name=name,
        peak_flops_per_second={number: tera * 1e12 for number, tera in row.pop("teraflops").items()},
        memory_bytes=gigabytes["memory"],
        memory_bytes_per_second=gigabytes["reads"],
        link_bytes_per_second=gigabytes["link"],
        network_bytes_per_second=gigabytes["network"],
        rental=None if rental is None else RentalExample(**rental),
        aliases=tuple(row.pop("aliases", ())),
        **row,
    )


DEVICES: dict[str, Device] = {name: _device(name, row) for name, row in _table("devices.yaml").items()}
"""Every device by its name."""

_NAMES = {alias: row.name for row in DEVICES.values() for alias in (row.name, *row.aliases)}


def find_device(name: str) -> Device:
    """The row of a name or an alias, without regard to case, spaces, underscores and "nvidia". UsageError names the
    nearest."""
    key = "-".join(name.lower().replace("_", " ").replace("-", " ").split()).removeprefix("nvidia-")
    if key in _NAMES:
        return DEVICES[_NAMES[key]]
    close = list(dict.fromkeys(_NAMES[alias] for alias in nearest(key, _NAMES, 5)))
    hint = did_you_mean(close[:3], show=str) or f"the devices are {', '.join(DEVICES)}"
    raise UsageError(f"there is no device {name!r} in the table; {hint} (or describe it in a hardware file)")


# --- a user's own hardware

Positive = Annotated[float, Field(gt=0)]


class DeviceOverride(Strict):
    """What differs from a row of the table. Units are in the names; peaks are dense. Peaks that are not named stay."""

    like: str | None = None
    title: str | None = None
    peak_flops_per_second: dict[Number, Positive] | None = None
    memory_bytes: Positive | None = None
    memory_bytes_per_second: Positive | None = None
    devices_per_node: Annotated[int, Field(ge=1)] | None = None
    link_bytes_per_second: Annotated[float, Field(ge=0)] | None = None
    network_bytes_per_second: Positive | None = None
    watts: Positive | None = None
    mfu: str | None = None
    usd_per_hour: Positive | None = None
    as_of: datetime.date | None = None
    source: str | None = None

    @field_validator("mfu")
    @classmethod
    def _known_curve(cls, name: str | None) -> str | None:
        if name is not None and name not in CURVES:
            raise ValueError(f"there is no MFU curve {name!r}; there are {', '.join(CURVES)}")
        return name


class HardwareFile(Strict):
    """Values that replace a row's of the table, or a new device that is like one.

    devices:
      h100-sxm: {usd_per_hour: 2.10}                 # what we pay
      our-box:  {like: rtx-4090, devices_per_node: 8, watts: 400}
    """

    devices: Annotated[dict[str, DeviceOverride], Field(min_length=1)]


def overridden(device: Device, override: DeviceOverride, *, name: str | None = None) -> Device:
    """A copy of `device` with some values replaced, under `name` if given."""
    changes = override.model_dump(exclude_none=True, exclude={"like", "usd_per_hour", "as_of", "peak_flops_per_second"})
    if override.peak_flops_per_second is not None:
        changes["peak_flops_per_second"] = {**device.peak_flops_per_second, **override.peak_flops_per_second}
    as_of = None if override.as_of is None else override.as_of.isoformat()
    if override.usd_per_hour is not None:
        changes["rental"] = RentalExample(
            override.usd_per_hour, override.usd_per_hour, as_of or "now", override.source or "the hardware file"
        )
    if changes.keys() - {"rental", "source"}:
        changes["as_of"] = as_of or device.as_of
        changes.setdefault("source", f"{device.source}; changed by the hardware file")
    if name is not None and name != device.name:
        changes |= {"name": name, "aliases": (), "title": changes.get("title", name)}
    return dataclasses.replace(device, **changes)


def find_device_in(path: Path | str | None, name: str) -> Device:
    """The device `name` of the hardware file, or of the table where the file lacks it. UsageError, ConfigError."""
    if path is None:
        return find_device(name)
    overrides = load_config(path, HardwareFile).devices
    key = next((candidate for candidate in overrides if candidate.lower() == name.strip().lower()), None)
    if key is not None:
        return overridden(_row(path, key, overrides[key].like or key), overrides[key], name=key)
    try:
        row = find_device(name)
    except UsageError as error:
        raise UsageError(f"{error}; {path} has {', '.join(overrides)}") from None
    for key, override in overrides.items():  # `h100` on the command line and `h100-sxm` in the file are one device
        if override.like is None and _row(path, key, key).name == row.name:
            return overridden(row, override)
    return row


def _row(path: Path | str, name: str, base: str) -> Device:
    try:
        return find_device(base)
    except UsageError as error:
        raise ConfigError(f"{path}: devices.{name}: {error}; a new device says which one it is `like`") from None
