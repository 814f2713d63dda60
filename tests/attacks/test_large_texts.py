"""What large texts took of memory is given back to the system; a signal to stop is obeyed in time, and everybody told,
while large replies are made for many at once."""

from __future__ import annotations

import json
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest
from tests.serving.conftest import Files
from tests.serving.process import Process, serving

from bedplate.serving.server.uvicorn_server import CLOSE_SECONDS

from .conftest import at_once

TEXT_BYTES = 256 * 1024
CLIENTS = 4
MAX_RETAINED_SHARE = 0.4
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
        peak_growth = resident(live, "VmHWM") - whole
        end = time.monotonic() + 20
        while (
            retained := resident(live, "RssAnon") - before
        ) > MAX_RETAINED_SHARE * peak_growth and time.monotonic() < end:
            time.sleep(0.05)
        print(f"{before >> 20} MiB before, {peak_growth >> 20} more at the peak, {retained >> 20} more afterwards")
        assert peak_growth > 100 * 2**20
        assert retained <= MAX_RETAINED_SHARE * peak_growth


REPLY_COUNT = 12
TENANTS = ("one", "two", "admin")
SLACK_SECONDS = 5.0
"""For closing connections, and for a busy machine."""


@pytest.mark.slow
def test_a_server_that_makes_large_replies_ends_when_it_is_told(files: Files, tmp_path: Path) -> None:
    body = json.dumps({"model": "tiny", "prompt": "so good " * (TEXT_BYTES // 8), "return_token_strs": True}).encode()
    with serving(files.base, [], tmp_path, grace_seconds=0) as live:
        replies, first = list[httpx.Response](), threading.Event()

        def send_tokenize(tenant: str) -> None:
            replies.append(live.request("POST", "/tokenize", tenant, content=body))
            first.set()

        clients = [
            threading.Thread(target=send_tokenize, args=(TENANTS[i % len(TENANTS)],)) for i in range(REPLY_COUNT)
        ]
        for client in clients:
            client.start()
        assert first.wait(60)
        begun = time.monotonic()
        live.process.send_signal(signal.SIGTERM)
        assert live.process.wait(60) == 0
        took = time.monotonic() - begun
        for client in clients:
            client.join()
        statuses = [reply.status_code for reply in replies]
        print(f"ended after {took:.1f} s; answered {statuses}")
        assert took < CLOSE_SECONDS + SLACK_SECONDS
        assert len(replies) == REPLY_COUNT  # nobody's connection was closed without an answer
        assert 200 in statuses
        assert set(statuses) <= {200, 503}  # a quick machine has made them all before it is told
        assert {reply.json()["error"]["code"] for reply in replies if reply.status_code == 503} == {"shutting_down"}
        assert all(len(reply.json()["tokens"]) > TEXT_BYTES // 8 for reply in replies if reply.status_code == 200)
        assert "Traceback" not in live.process.errors, live.process.errors
