"""Seven tenants beside a hostile one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .crowd import HEAD, crowd

SECONDS = float(os.environ.get("BEDPLATE_ATTACK_SECONDS", "300"))
MOST = 3.0
FLOOR = 0.05
"""Seconds: what a call may take on any machine that others use as well."""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_others_are_served_as_if_it_were_not_there(tmp_path: Path) -> None:
    seen, report = crowd(tmp_path, SECONDS)
    print(HEAD, *seen, f"{report.shots} hostile requests: {dict(report.statuses)}", sep="\n")
    assert not report.wrong, "\n".join(report.wrong[:5])
    assert sum(one.faults + one.refused for one in seen) == 0
    assert all(set(one.besieged.statuses) == {200} for one in seen)
    assert all(one.besieged.quantile(0.99) <= MOST * max(one.quiet.quantile(0.99), FLOOR) for one in seen)
