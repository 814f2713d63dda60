"""The largest parts of what a run takes, sampled by Linux's perf while this process works."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SECONDS, FREQUENCY, LINES = 3.0, 997, 10
_LINE = re.compile(r"^\s*([\d.]+)%\s+(\S+)\s+\[[.k]\]\s+(.+?)\s*(?:-\s+-\s*)?$")


def largest_parts(run: Callable[[], object]) -> str:
    """Lines that name the functions in which `run`, repeated for some seconds, spends its time on all threads; or one
    line that says why there are none."""
    if shutil.which("perf") is None:
        return "profile: skipped, perf is not installed (Debian and Ubuntu: apt install linux-perf)"
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "perf.data"
        # The processor's own counters are often hidden from virtual machines; its clock is not.
        command = ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(FREQUENCY), "-o", str(file)]
        with subprocess.Popen([*command, "-p", str(os.getpid())], stderr=subprocess.PIPE, text=True) as recorder:
            until = time.perf_counter() + SECONDS
            while time.perf_counter() < until and recorder.poll() is None:
                run()
            recorder.send_signal(signal.SIGINT)
            _, errors = recorder.communicate()
        if not file.is_file():
            return f"profile: skipped, perf does not record here ({' '.join(errors.split())[:200]})"
        report = ["perf", "report", "-i", str(file), "--stdio", "--no-children", "-g", "none", "-s", "dso,symbol"]
        text = subprocess.run(report, capture_output=True, text=True, check=False).stdout
    symbols = [match.groups() for match in map(_LINE.match, text.splitlines()) if match]
    lines = [
        f"  {float(share):5.1f}%  {_short(symbol)}  ({Path(place).name})" for share, place, symbol in symbols[:LINES]
    ]
    return "\n".join(["profile, share of the samples on all threads:", *lines])


def _short(symbol: str) -> str:
    """A function's name without its arguments."""
    return re.sub(r"\(.*", "", symbol)[:70]
