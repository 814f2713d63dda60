"""Clients of many tenants at one server, one of them hostile with everything; against the same time without it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from tests.serving.conftest import make_skins
from tests.serving.process import Process, serving
from tests.tiny import write_tiny_base

from bedplate.models.checkpoints.base import load_base
from bedplate.serving.callers.api_keys import Key, KeysFile, change_keys, new_secret
from bedplate.skins.files import write_skin

from .neighbours import Tenant, honest
from .siege import SETTINGS, Besieger, Report, Siege

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


@dataclass
class Vitals:
    """What `/health` took, in seconds, and resident bytes at the beginning and at most."""

    health: list[float] = field(default_factory=list[float])
    resident: int = 0
    peak: int = 0

    def slow(self, seconds: float) -> float:
        """The share of probes that took longer, or were not answered with 200."""
        return sum(took > seconds for took in self.health) / max(len(self.health), 1)

    @contextlib.contextmanager
    def watching(self, live: Process) -> Generator[None]:
        ended = threading.Event()
        self.resident = live.rss()

        def watch() -> None:
            while not ended.wait(0.1):
                begin = time.monotonic()
                try:
                    healthy = live.request("GET", "/health", None).status_code == 200
                except httpx.HTTPError:
                    healthy = False
                self.health.append(time.monotonic() - begin if healthy else math.inf)
                self.peak = max(self.peak, live.rss())

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@dataclass(frozen=True)
class Scenario:
    """Who asks, and of which server. tenants: honest ones. settings: the server's file."""

    besieger: type[Besieger] = Besieger
    tenants: int = 7
    settings: Mapping[str, Any] = field(default_factory=lambda: SETTINGS)
    spec: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What is different about the tiny base."""


def crowd(
    directory: Path, seconds: float, seed: int = 0, scenario: Scenario | None = None
) -> tuple[Sequence[TenantRuns], Report, Vitals]:
    """Two runs of so long each, at one server of a tiny base; the server's vital signs during the second."""
    scenario, vitals = scenario or Scenario(), Vitals()
    base = write_tiny_base(directory / "tiny", **scenario.spec)
    skins = [write_skin(skin, directory / skin.name) for skin in make_skins(load_base(base))]
    with serving(base, skins, directory, **scenario.settings) as live:
        secrets = _add_tenants(directory, scenario.tenants)
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
            besieger=scenario.besieger,
        )
        with vitals.watching(live):
            besieged = _run(live, secrets, time.monotonic() + seconds)
            report = siege.end()
        assert not live.faults, "\n".join(live.faults[:5])[:20_000]
        return [TenantRuns(*pair) for pair in zip(quiet, besieged, strict=True)], report, vitals


def _run(live: Process, secrets: Mapping[str, str], until: float) -> list[Tenant]:
    run = honest(live.url, secrets, clients=CLIENTS, pause=PAUSE, is_running=lambda: time.monotonic() < until)
    return asyncio.run(run)


def _add_tenants(directory: Path, count: int) -> dict[str, str]:
    secrets: dict[str, str] = {}
    keys: list[Key] = []
    for name in (f"tenant-{number}" for number in range(count)):
        id_, secrets[name], hash_ = new_secret()
        keys.append(
            Key.model_validate({"id": id_, "name": name, "hash": hash_, "created": "2026-01-01", "tenant": name})
        )
    change_keys(directory / "keys.yaml", lambda file: KeysFile(keys=(*file.keys, *keys)))
    return secrets
