"""Seven tenants beside a hostile one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .crowd import HEAD, crowd

SECONDS = float(os.environ.get("BEDPLATE_ATTACK_SECONDS", "300"))
MAX_SLOWDOWN = 3.0
FLOOR = 0.05
"""Seconds: what a call may take on any machine that others use as well."""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_others_are_served_as_if_it_were_not_there(tmp_path: Path) -> None:
    tenant_runs, report, _ = crowd(tmp_path, SECONDS)
    print(HEAD, *tenant_runs, f"{report.shots} hostile requests: {dict(report.statuses)}", sep="\n")
    assert not report.wrong, "\n".join(report.wrong[:5])
    assert sum(tenant.faults + tenant.refused for tenant in tenant_runs) == 0
    assert all(set(tenant.besieged.statuses) == {200} for tenant in tenant_runs)
    assert all(
        tenant.besieged.quantile(0.99) <= MAX_SLOWDOWN * max(tenant.quiet.quantile(0.99), FLOOR)
        for tenant in tenant_runs
    )
