"""A user's own hardware: values that replace a row's of the table, or a new device that is like one.

devices:
  h100-sxm: {usd_per_hour: 2.10}                 # what we pay
  our-box:  {like: rtx-4090, devices_per_node: 8, watts: 400}
"""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from bedplate.core.config import Strict, load_config
from bedplate.core.errors import ConfigError, UsageError
from bedplate.economics.hardware.device import Device, Number, RentalExample
from bedplate.economics.hardware.device_table import find_device
from bedplate.economics.hardware.mfu import CURVES

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
    """Devices by name: one of the table's, or a new one with `like`."""

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
    devices = load_config(path, HardwareFile).devices
    device_name = next((candidate for candidate in devices if candidate.lower() == name.strip().lower()), None)
    if device_name is not None:
        base = device_name if devices[device_name].like is None else devices[device_name].like
        assert base is not None
        return overridden(_row(path, device_name, base), devices[device_name], name=device_name)
    try:
        row = find_device(name)
    except UsageError as error:
        raise UsageError(f"{error}; {path} has {', '.join(devices)}") from None
    # `h100` on the command line and `h100-sxm` in the file are one device
    alias = next(
        (
            candidate
            for candidate in devices
            if devices[candidate].like is None and _row(path, candidate, candidate).name == row.name
        ),
        None,
    )
    return row if alias is None else overridden(row, devices[alias])


def _row(path: Path | str, name: str, base: str) -> Device:
    try:
        return find_device(base)
    except UsageError as error:
        raise ConfigError(f"{path}: devices.{name}: {error}; a new device says which one it is `like`") from None
