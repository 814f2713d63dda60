"""A signal to stop is obeyed in time, and everybody is told, while large replies are made for many at once."""

from __future__ import annotations

import json
import signal
import threading
import time
from pathlib import Path

import httpx
from tests.serving.conftest import Files
from tests.serving.process import serving

from bedplate.serving.server.lifecycle import CLOSE_SECONDS

TEXT_BYTES, CLIENTS = 512 * 1024, 12
TENANTS = ("one", "two", "admin")
SLACK_SECONDS = 5.0
"""For closing connections, and for a busy machine."""


def test_a_server_that_makes_large_replies_ends_when_it_is_told(files: Files, tmp_path: Path) -> None:
    body = json.dumps({"model": "tiny", "prompt": "so good " * (TEXT_BYTES // 8), "return_token_strs": True}).encode()
    with serving(files.base, [], tmp_path, grace_seconds=0) as live:
        replies, first = list[httpx.Response](), threading.Event()

        def ask(tenant: str) -> None:
            replies.append(live.request("POST", "/tokenize", tenant, content=body))
            first.set()

        clients = [threading.Thread(target=ask, args=(TENANTS[i % len(TENANTS)],)) for i in range(CLIENTS)]
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
        assert len(replies) == CLIENTS  # nobody's connection was closed without an answer
        assert set(statuses) == {200, 503}
        assert {reply.json()["error"]["code"] for reply in replies if reply.status_code == 503} == {"shutting_down"}
        assert all(len(reply.json()["tokens"]) > TEXT_BYTES // 8 for reply in replies if reply.status_code == 200)
        assert "Traceback" not in live.process.errors, live.process.errors
