"""Hostile requests of every kind to every route of a live server: no fault, nothing lost, nothing kept, and the other
tenants are served."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.serving.conftest import Files
from tests.serving.process import Process, serving

from bedplate.serving.request.preparation import GIVE_BACK_SECONDS

from .neighbours import Tenant, honest, late_beats
from .siege import SETTINGS, Report, Siege, operations

SEED = int(os.environ.get("BEDPLATE_FUZZ_SEED", "17"))
GROWTH, NOISE_BYTES = 1.10, 24 * 2**20
"""Resident memory after it, over that before it; and what allocators keep for themselves."""
LATE = 0.002
"""Share of looks at which the event loop may be a quarter of a second late: other work on the machine is in it."""
QUIET_FLOOR = 0.2
"""Seconds: what a call may take on any machine that others use as well."""
CHAT = "/v1/chat/completions"


def hostile(live: Process) -> dict[str, str]:
    """The keys of the attacker, which are not `one`'s; and some that are none."""
    return {name: live.secrets[name] for name in ("two", "slow", "few", "admin")} | {"nobody": "bp_nobody"}


def besieged(live: Process, directory: Path, seed: int, shots: int, seconds: float) -> tuple[Report, Tenant]:
    """A siege of the live server, and what tenant `one` saw meanwhile."""
    siege = Siege(live.url, hostile(live), directory / f"{seed}.json", seed=seed, shots=shots, seconds=seconds)
    [tenant] = asyncio.run(
        honest(live.url, {"one": live.secrets["one"]}, clients=2, pause=0.2, is_running=lambda: siege.running)
    )
    return siege.end(), tenant


def begin_batch(live: Process) -> str:
    rows = [
        {
            "custom_id": str(i),
            "method": "POST",
            "url": CHAT,
            "body": {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
        }
        for i in range(20)
    ]
    content = "\n".join(map(json.dumps, rows)).encode()
    sent = live.request("POST", "/v1/files", files={"file": ("rows.jsonl", content)}, data={"purpose": "batch"})
    fields = {"input_file_id": sent.json()["id"], "endpoint": CHAT, "completion_window": "24h"}
    return live.request("POST", "/v1/batches", json=fields).json()["id"]


def check_batch(live: Process, name: str) -> None:
    """Each row was answered once, and as it should be."""
    end = time.monotonic() + 60
    while (batch := live.request("GET", f"/v1/batches/{name}").json())["status"] != "completed":
        assert time.monotonic() < end, batch
        time.sleep(0.1)
    output = live.request("GET", f"/v1/files/{batch['output_file_id']}/content").text
    rows = [json.loads(line) for line in output.splitlines()]
    assert Counter(row["custom_id"] for row in rows) == {str(i): 1 for i in range(20)}
    assert {row["response"]["status_code"] for row in rows} == {200}


def check_answers(live: Process, report: Report, tenants: list[Tenant]) -> None:
    """No fault, every route asked, and each honest call answered once: by the client's count and by the log."""
    assert not live.faults, "\n".join(live.faults[:5])[:20_000]
    assert not report.wrong, "\n".join(report.wrong[:5])
    document: dict[str, Any] = live.request("GET", "/openapi.json").json()
    missed = [
        operation for operation in operations(document) if not report.routes[f"{operation.method} {operation.path}"]
    ]
    assert not missed
    logged = Counter(re.findall(r" id=(one-\d+)$", live.process.errors, re.MULTILINE))
    for tenant in tenants:
        assert set(tenant.statuses) == {200}, tenant.statuses
        assert len(tenant.seconds) == len(tenant.ids) > 0
    assert all(logged[name] == sum(name in tenant.ids for tenant in tenants) for name in logged)
    assert len(logged) == len({name for tenant in tenants for name in tenant.ids})
    assert live.process.poll() is None
    assert live.request("GET", "/health", None).status_code == 200


def test_no_request_of_many_breaks_anything(files: Files, tmp_path: Path) -> None:
    with serving(files.base, list(files.skins), tmp_path, **SETTINGS) as live:
        shutil.copytree(files.skins[1], live.shelf / "first")
        batch = begin_batch(live)
        report, tenant = besieged(live, tmp_path, SEED, shots=500, seconds=30)
        print(report.shots, f"{report.seconds:.1f} s", dict(report.statuses), f"p99 {tenant.quantile(0.99):.3f}")
        check_answers(live, report, [tenant])
        check_batch(live, batch)
        assert live.idle(30)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_request_breaks_anything_for_long(files: Files, tmp_path: Path) -> None:
    """Twenty minutes, in rounds: what the other tenant waits, and what is kept, does not grow with them."""
    seconds, rounds = float(os.environ.get("BEDPLATE_FUZZ_SECONDS", "1200")), 10
    with serving(files.base, list(files.skins), tmp_path, **SETTINGS) as live:
        shutil.copytree(files.skins[1], live.shelf / "first")
        until = time.monotonic() + max(10.0, seconds / 40)
        [quiet] = asyncio.run(
            honest(
                live.url,
                {"quiet": live.secrets["one"]},
                clients=2,
                pause=0.2,
                is_running=lambda: time.monotonic() < until,
            )
        )
        whole, tenants, sizes = Report(), list[Tenant](), list[int]()
        for number in range(rounds):
            report, tenant = besieged(live, tmp_path, SEED + number, shots=10**6, seconds=seconds / rounds)
            assert live.idle(60)
            time.sleep(2 * GIVE_BACK_SECONDS)
            sizes.append(live.rss())
            whole.shots += report.shots
            whole.statuses += report.statuses
            whole.routes += report.routes
            whole.wrong += report.wrong
            tenants.append(tenant)
        late, beats = late_beats(live.request("GET", "/metrics", "admin").text)
        p99 = [round(tenant.quantile(0.99), 3) for tenant in tenants]
        print(f"{whole.shots:,} requests: {dict(sorted(whole.statuses.items()))}; p99 of another tenant", end=" ")
        print(
            f"{quiet.quantile(0.99):.3f} s quiet, after each round {p99}; MiB {[size >> 20 for size in sizes]}", end=" "
        )
        print(f"({(GROWTH * sizes[1] + NOISE_BYTES) / 2**20:.0f} allowed); loop late {late} of {beats}")
        assert not live.faults, "\n".join(live.faults[:5])[:20_000]
        assert not whole.wrong, "\n".join(whole.wrong[:5])
        assert all(set(tenant.statuses) == {200} for tenant in tenants)
        assert sorted(p99)[rounds // 2] <= 3 * max(quiet.quantile(0.99), QUIET_FLOOR)
        assert sizes[-1] <= GROWTH * sizes[1] + NOISE_BYTES
        assert late <= LATE * beats
        assert live.process.poll() is None
