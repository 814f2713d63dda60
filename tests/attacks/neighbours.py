"""Honest tenants of a server, and what each of them sees."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass
class Tenant:
    """What one honest tenant saw: seconds of each answered call, and how often which status came."""

    name: str
    seconds: list[float] = field(default_factory=list[float])
    statuses: Counter[int] = field(default_factory=Counter[int])
    ids: list[str] = field(default_factory=list[str])

    def quantile(self, share: float) -> float:
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0

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


async def honest(url: str, tenants: Mapping[str, str], *, clients: int, pause: float, is_running: Any) -> list[Tenant]:
    """Tenants (name to secret) that ask while `going()` says so: `clients` of each, with a pause of about so long
    between one's calls."""
    honest_tenants = [Tenant(name) for name in tenants]
    # The server closes what is idle for five seconds: nothing is sent on a connection that it may be closing.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=1.0)
    async with httpx.AsyncClient(base_url=url, timeout=90, trust_env=False, limits=limits, verify=False) as client:

        async def send_calls(tenant: Tenant, number: int) -> None:
            draw = random.Random(f"{tenant.name}/{number}")
            await asyncio.sleep(draw.random() * pause)
            while is_running():
                await tenant.call(client, tenants[tenant.name])
                await asyncio.sleep(pause * (0.5 + draw.random()))

        async with asyncio.TaskGroup() as group:
            for tenant in honest_tenants:
                for number in range(clients):
                    group.create_task(send_calls(tenant, number))
    return honest_tenants


def late_beats(metrics: str) -> tuple[int, int]:
    """How often the event loop was later than a quarter of a second, and how often that was looked at."""
    name = "bedplate:event_loop_lag_seconds"
    counts = dict(re.findall(rf'^{name}_bucket{{le="([^"]+)"}} (\S+)$', metrics, re.MULTILINE))
    if not counts:  # a server that does not measure it
        return 0, 0
    beats = int(float(counts["+Inf"]))
    return beats - int(float(counts["0.25"])), beats
