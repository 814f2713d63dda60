"""The table of devices (devices.yaml), and finding a device in it by its name."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import yaml

from bedplate.core.errors import UsageError
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.economics.hardware.device import GB, Device, RentalExample

_TERA = 1e12
_TEXT = (files("bedplate.economics.hardware") / "devices.yaml").read_text(encoding="utf-8")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times as fast, where it is installed


def _device(name: str, row: dict[str, Any]) -> Device:
    gigabytes, rental = row.pop("gigabytes"), row.pop("rental", None)
    return Device(
        name=name,
        peak_flops_per_second={number: tera * _TERA for number, tera in row.pop("teraflops").items()},
        memory_bytes=gigabytes["memory"] * GB,
        memory_bytes_per_second=gigabytes["reads"] * GB,
        link_bytes_per_second=gigabytes["link"] * GB,
        network_bytes_per_second=gigabytes["network"] * GB,
        rental=None if rental is None else RentalExample(**rental),
        aliases=tuple(row.pop("aliases", ())),
        **row,
    )


DEVICES: dict[str, Device] = {name: _device(name, row) for name, row in yaml.load(_TEXT, Loader=_LOADER).items()}
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
