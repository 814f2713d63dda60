"""A server of ours in a process of its own, and the load client against it."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def running(*arguments: str) -> Generator[str]:
    """`bedplate serve` with these arguments, on a free port (a file has to say so itself); its URL once it answers."""
    port = () if "--config" in arguments else ("--port", "0")
    command = [sys.executable, "-m", "bedplate.cli.main", "serve", *arguments, *port, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        try:
            announcement = server.stdout.readline()
            if not announcement:
                raise RuntimeError("the server did not start")
            yield json.loads(announcement)["url"]
        finally:
            server.terminate()


def load(url: str, models: Sequence[str], repeats: int, *arguments: str) -> tuple[float, float]:
    """Tokens per second, and the share of the time in which the client itself computed: medians, the first run left
    out."""
    script = str(Path(__file__).parent / "load.py")
    speeds: list[float] = []
    shares: list[float] = []
    for turn in range(repeats + 1):
        command = [sys.executable, script, url, *models, "--seed", str(turn), *arguments]
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        if turn:
            speeds.append(result["tokens"] / result["seconds"])
            shares.append(result["cpu_seconds"] / result["seconds"])
    return statistics.median(speeds), statistics.median(shares)
