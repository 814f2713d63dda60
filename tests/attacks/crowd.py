"""64 clients of 8 tenants at one server, one of them hostile with everything; against the same time without it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.serving.conftest import make_skins
from tests.serving.process import Process, serving
from tests.tiny import write_tiny_base

from bedplate.models.checkpoints.base import load_base
from bedplate.serving.callers.api_keys import Key, KeysFile, change_keys, new_secret
from bedplate.skins.files import write_skin

from .neighbours import Tenant, honest
from .siege import SETTINGS, Report, Siege

TENANTS = tuple(f"tenant-{number}" for number in range(7))
CLIENTS = 8
"""Of each tenant."""
PAUSE = 1.0
"""Seconds between one client's calls: all together they leave the server half idle."""


@dataclass(frozen=True)
class TenantRuns:
    """What one honest tenant saw, quiet and besieged."""

    quiet: Tenant
    besieged: Tenant

    @property
    def ratio(self) -> float:
        """Of the slowest hundredth of calls."""
        return self.besieged.quantile(0.99) / max(self.quiet.quantile(0.99), 1e-3)

    @property
    def faults(self) -> int:
        return sum(count for status, count in self.besieged.statuses.items() if status >= 500)

    @property
    def refused(self) -> int:
        return self.besieged.statuses[429]

    def __str__(self) -> str:
        quiet, besieged = self.quiet.quantile(0.99), self.besieged.quantile(0.99)
        return (
            f"| {self.besieged.name} | {len(self.quiet.seconds)} | {len(self.besieged.seconds)} | {self.faults} | "
            f"{self.refused} | {1000 * quiet:.0f} | {1000 * besieged:.0f} | {self.ratio:.2f} |"
        )


HEAD = "| tenant | calls, quiet | besieged | 5xx | 429 | p99 quiet, ms | besieged | ratio |\n" + "|---" * 8 + "|"


def crowd(directory: Path, seconds: float, seed: int = 0) -> tuple[Sequence[TenantRuns], Report]:
    """Two runs of so long each, at one server of a tiny base."""
    base = write_tiny_base(directory / "tiny")
    skins = [write_skin(skin, directory / skin.name) for skin in make_skins(load_base(base))]
    with serving(base, skins, directory, **SETTINGS) as live:
        secrets = _add_tenants(directory)
        _run(live, secrets, time.monotonic() + min(5.0, seconds / 10))  # what is compiled or read once
        quiet = _run(live, secrets, time.monotonic() + seconds)
        attacker = {name: live.secrets[name] for name in ("two", "admin")}
        siege = Siege(
            live.url,
            attacker,
            directory / "report.json",
            seed=seed,
            shots=10**7,
            seconds=seconds,
            workers=CLIENTS,
        )
        besieged = _run(live, secrets, time.monotonic() + seconds)
        report = siege.end()
        return [TenantRuns(*pair) for pair in zip(quiet, besieged, strict=True)], report


def _run(live: Process, secrets: Mapping[str, str], until: float) -> list[Tenant]:
    run = honest(live.url, secrets, clients=CLIENTS, pause=PAUSE, is_running=lambda: time.monotonic() < until)
    return asyncio.run(run)


def _add_tenants(directory: Path) -> dict[str, str]:
    secrets: dict[str, str] = {}
    keys: list[Key] = []
    for name in TENANTS:
        id_, secrets[name], hash_ = new_secret()
        keys.append(
            Key.model_validate({"id": id_, "name": name, "hash": hash_, "created": "2026-01-01", "tenant": name})
        )
    change_keys(directory / "keys.yaml", lambda file: KeysFile(keys=(*file.keys, *keys)))
    return secrets
