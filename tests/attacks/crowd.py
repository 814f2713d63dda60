"""Clients of many tenants at one server, one of them hostile with everything, in turns with spells without it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.serving.conftest import make_skins
from tests.serving.process import Process, serving
from tests.tiny import write_tiny_base

from bedplate.models.checkpoints.base import load_base
from bedplate.serving.callers.api_keys import Key, KeysFile, change_keys, new_secret
from bedplate.skins.files import write_skin

from .neighbours import Tenant, beat, honest, quantile
from .probing import Probe, probing
from .siege import SETTINGS, Besieger, Report, Siege

CLIENTS = 8
"""Of each tenant."""
PAUSE = 1.0
"""Seconds between one client's calls: all together they leave the server half idle."""
SPELL_SECONDS, QUIET_SHARE = 40.0, 0.25
"""About how long it is besieged at a time, after a quiet spell of this share of it: other work on the machine falls on
both alike."""
REST_SECONDS = 30.0
"""How long at most what the hostile tenant left behind is waited for, before it counts as quiet."""


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
    """probes: of `/health`, in the besieged spells. resident: bytes before the first of them. late: seconds by which
    the honest clients' event loop was late, quiet and besieged: part of what their calls took. spells: the slowest
    hundredth of all tenants' calls in each spell, quiet and besieged, in seconds."""

    probes: list[Probe] = field(default_factory=list[Probe])
    resident: int = 0
    late: tuple[list[float], list[float]] = field(default_factory=lambda: (list[float](), list[float]()))
    spells: tuple[list[float], list[float]] = field(default_factory=lambda: (list[float](), list[float]()))

    def slow(self, seconds: float) -> list[Probe]:
        """What took longer, or was not answered with 200."""
        return [probe for probe in self.probes if probe.seconds > seconds]

    @property
    def growth(self) -> int:
        """Bytes by which resident memory grew at most."""
        return max((probe.resident for probe in self.probes), default=self.resident) - self.resident


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
    """Quiet spells and besieged ones, of so many seconds in all, in turns at one server of a tiny base; the server's
    vital signs in the besieged ones."""
    scenario, vitals, report = scenario or Scenario(), Vitals(), Report()
    base = write_tiny_base(directory / "tiny", **scenario.spec)
    skins = [write_skin(skin, directory / skin.name) for skin in make_skins(load_base(base))]
    with serving(base, skins, directory, **scenario.settings) as live:
        secrets = _add_tenants(directory, scenario.tenants)
        runs = [TenantRuns(Tenant(name), Tenant(name)) for name in secrets]
        attacker = {name: live.secrets[name] for name in ("two", "admin")}
        _run(live, secrets, min(5.0, seconds / 10), [Tenant(name) for name in secrets], [])  # what is done once
        spells = max(1, round(seconds / SPELL_SECONDS))
        for spell in range(spells):
            quiet, besieged = [run.quiet for run in runs], [run.besieged for run in runs]
            vitals.spells[0].append(_run(live, secrets, QUIET_SHARE * seconds / spells, quiet, vitals.late[0]))
            siege = Siege(
                live.url,
                attacker,
                directory / f"report-{spell}.json",
                seed=seed,
                first=spell * SHOTS,
                shots=SHOTS,
                seconds=seconds / spells,
                workers=CLIENTS,
                besieger=scenario.besieger,
            )
            vitals.resident = vitals.resident or live.rss()
            with probing(live.url, live.process.pid) as probes:
                vitals.spells[1].append(_run(live, secrets, seconds / spells, besieged, vitals.late[1]))
                result = siege.end()
            vitals.probes.extend(probes)
            report.add(result)
            live.idle(REST_SECONDS)
        assert not live.faults, "\n".join(live.faults[:5])[:20_000]
        return runs, report, vitals


SHOTS = 10**7
"""More than a spell has."""


def _run(
    live: Process, secrets: Mapping[str, str], seconds: float, tenants: Sequence[Tenant], late: list[float]
) -> float:
    """Lets the tenants ask for so long, and notes how late their own loop was. Returns the seconds of the slowest
    hundredth of these calls."""
    until, earlier = time.monotonic() + seconds, [len(tenant.seconds) for tenant in tenants]

    async def run() -> None:
        beating = asyncio.create_task(beat(late))
        await honest(
            live.url, secrets, tenants, clients=CLIENTS, pause=PAUSE, is_running=lambda: time.monotonic() < until
        )
        beating.cancel()

    asyncio.run(run())
    calls = [s for tenant, start in zip(tenants, earlier, strict=True) for s in tenant.seconds[start:]]
    return quantile(calls, 0.99)


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
