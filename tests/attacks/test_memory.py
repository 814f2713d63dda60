"""What large texts took of memory while they were prepared is given back to the system, and not kept by the process."""

from __future__ import annotations

import json
import time
from pathlib import Path

from tests.serving.conftest import Files
from tests.serving.process import Process, serving

from .conftest import at_once

TEXT_BYTES = 512 * 1024
CLIENTS = 4
KEPT = 0.4
"""Share of it that allocators and caches may keep."""


def resident(live: Process, name: str) -> int:
    """A field of proc_pid_status(5), bytes. RssAnon: what is its own; VmHWM: the most that was ever resident."""
    lines = Path(f"/proc/{live.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def test_what_large_texts_took_is_given_back(files: Files, tmp_path: Path) -> None:
    with serving(files.base, [], tmp_path) as live:

        def tokenize(size: int) -> int:
            text = json.dumps({"model": "tiny", "prompt": "so good " * (size // 8)})
            return live.request("POST", "/tokenize", content=text).status_code

        assert at_once(CLIENTS, lambda _: tokenize(20_000)) == [200] * CLIENTS  # threads, and what is read once
        before, whole = resident(live, "RssAnon"), resident(live, "VmRSS")
        assert at_once(CLIENTS, lambda _: tokenize(TEXT_BYTES)) == [200] * CLIENTS
        taken = resident(live, "VmHWM") - whole
        end = time.monotonic() + 20
        while (kept := resident(live, "RssAnon") - before) > KEPT * taken and time.monotonic() < end:
            time.sleep(0.05)
        print(f"{before >> 20} MiB before, {taken >> 20} more at the peak, {kept >> 20} more afterwards")
        assert taken > 200 * 2**20
        assert kept <= KEPT * taken
