"""Honest tenants of a server, and what each of them sees."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import httpx


def quantile(seconds: Sequence[float], share: float) -> float:
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


@dataclass
class Tenant:
    """What one honest tenant saw: seconds of each answered call, and how often which status came."""

    name: str
    seconds: list[float] = field(default_factory=list[float])
    statuses: Counter[int] = field(default_factory=Counter[int])
    ids: list[str] = field(default_factory=list[str])

    def quantile(self, share: float) -> float:
        return quantile(self.seconds, share)

    async def call(self, client: httpx.AsyncClient, secret: str) -> None:
        """One short chat. An id of its own is echoed, and stands in the log once."""
        name = f"{self.name}-{len(self.ids)}"
        self.ids.append(name)
        body = {"model": "tiny", "messages": [{"role": "user", "content": f"hi {name}"}], "max_tokens": 4}
        headers = {"authorization": f"Bearer {secret}", "x-request-id": name}
        begin = time.monotonic()
        reply = await client.post("/v1/chat/completions", json=body, headers=headers)
        self.seconds.append(time.monotonic() - begin)
        self.statuses[reply.status_code] += 1
        if reply.status_code == 200:
            assert reply.headers["x-request-id"] == name
            assert len(reply.json()["choices"]) == 1


async def honest(
    url: str,
    secrets: Mapping[str, str],
    tenants: Sequence[Tenant] = (),
    *,
    clients: int,
    pause: float,
    is_running: Callable[[], bool],
) -> Sequence[Tenant]:
    """Tenants (name to secret) that ask while `is_running` says so: `clients` of each, with a pause of about so long
    between one's calls. tenants: those whom what is seen is added to; otherwise new ones."""
    tenants = tenants or [Tenant(name) for name in secrets]
    # The server closes what is idle for five seconds: nothing is sent on a connection that it may be closing.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=1.0)
    async with httpx.AsyncClient(base_url=url, timeout=90, trust_env=False, limits=limits, verify=False) as client:

        async def send_calls(tenant: Tenant, number: int) -> None:
            draw = random.Random(f"{tenant.name}/{number}")
            await asyncio.sleep(draw.random() * pause)
            while is_running():
                await tenant.call(client, secrets[tenant.name])
                await asyncio.sleep(pause * (0.5 + draw.random()))

        async with asyncio.TaskGroup() as group:
            for tenant in tenants:
                for number in range(clients):
                    group.create_task(send_calls(tenant, number))
    return tenants


async def beat(late: list[float]) -> None:
    """Notes by how many seconds this event loop wakes too late, until it is cancelled."""
    while True:
        due = time.monotonic() + 0.02
        await asyncio.sleep(0.02)
        late.append(max(0.0, time.monotonic() - due))


def late_beats(metrics: str) -> tuple[int, int]:
    """How often the event loop was later than a quarter of a second, and how often that was looked at."""
    name = "bedplate:event_loop_lag_seconds"
    counts = dict(re.findall(rf'^{name}_bucket{{le="([^"]+)"}} (\S+)$', metrics, re.MULTILINE))
    if not counts:  # a server that does not measure it
        return 0, 0
    beats = int(float(counts["+Inf"]))
    return beats - int(float(counts["0.25"])), beats
