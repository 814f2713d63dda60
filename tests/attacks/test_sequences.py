"""No tenant's requests change what another waits, whatever their order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .crowd import HEAD, crowd
from .sequences import most_memory, sequences

SECONDS = float(os.environ.get("BEDPLATE_SEQUENCE_SECONDS", "60"))
MAX_SLOWDOWN = 3.0
FLOOR, HEALTH_SECONDS = 0.6, 0.25
"""Seconds: what a call may take on a machine whose two processors the clients and other work use as well, and what a
probe of the server's health may. `benchmarks/attack.py --sequences` prints the ratio itself."""
LATE = 0.01
"""Share of probes that other work on the machine may delay."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sequences_of_one_tenant_change_little_for_the_others(tmp_path: Path) -> None:
    runs, report, vitals = crowd(tmp_path, SECONDS, scenario=sequences(tenants=3))
    late = len(vitals.slow(HEALTH_SECONDS)) / len(vitals.probes)
    print(HEAD, *runs, f"{report.shots} hostile requests: {dict(report.statuses)}", sep="\n")
    print(f"health late {late:.4f} of {len(vitals.probes)}; MiB {vitals.resident >> 20} and {vitals.growth >> 20} more")
    assert not report.wrong, "\n".join(report.wrong[:5])
    assert all(set(tenant.besieged.statuses) == {200} for tenant in runs)
    assert vitals.growth <= most_memory()
    assert late <= LATE
    assert all(
        tenant.besieged.quantile(0.99) <= MAX_SLOWDOWN * max(tenant.quiet.quantile(0.99), FLOOR) for tenant in runs
    )
