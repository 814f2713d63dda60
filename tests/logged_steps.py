"""How far a run is, by the log of its steps: so that a test can stop it at a step, however fast the machine is."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from tests.forked import Command


def steps_of(log: Path) -> int:
    return log.read_bytes().count(b"\n") if log.exists() else 0


def wait_for_steps(process: subprocess.Popen[bytes] | subprocess.Popen[str] | Command, log: Path, steps: int) -> None:
    """Until the process, which has just been started, has written to the log, and that holds so many steps; or until
    it has ended. A run that is resumed first removes the steps after its saved state."""
    began, until = time.time(), time.monotonic() + 120
    while process.poll() is None:
        if log.exists() and log.stat().st_mtime > began and steps_of(log) >= steps:
            return
        assert time.monotonic() < until, f"{log} has {steps_of(log)} steps after two minutes"
        time.sleep(0.001)
