"""A client that leaves, or whose time is over, pays for what was computed for it; a reply that it does not take is one
of the calls that its key may run at once."""

from __future__ import annotations

import re
import socket
import threading
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from tests.serving.conftest import Files, Server
from tests.serving.test_guard import make_key
from tests.serving.test_guard_http import guarded, post_chat
from tests.serving.test_lifecycle import send, wait_until

from bedplate.serving.durable.batch_worker import Batches
from bedplate.serving.settings.server_config import MetricsConfig, PriceConfig

STEP = 64
LONG = {"model": "tiny", "messages": [{"role": "user", "content": "this product is great " * 40}], "max_tokens": 5}
PRICE = PriceConfig(usd_per_hour=3600.0, as_of="2026-11-24")


class FirstStep:
    """Steps of few tokens; the engine waits behind the first one."""

    def __init__(self, server: Server) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self.steps: Any = server.state.registry.engines[0]._steps
        self.steps._scheduler.budget = STEP
        self.steps._on_step = self._block_step

    def _block_step(self, record: Any) -> None:
        self.steps._on_step = None
        self.begun.set()
        assert self.go.wait(20)

    def let_time_run_out(self) -> None:
        """Of what has a deadline, while the engine waits."""
        [(_, number)] = self.steps._deadlines
        self.steps._deadlines[0] = (0.0, number)


def unanswered(server: Server) -> float:
    with httpx.Client(trust_env=False) as client:
        text = client.get(f"{server.url}/metrics").text
    match = re.search(r'^bedplate:unanswered_prompt_tokens_total{model_name="tiny"} (\S+)$', text, re.MULTILINE)
    return 0.0 if match is None else float(match[1])


@pytest.mark.parametrize("departure", ["left", "too late"])
def test_what_was_read_of_a_prompt_is_paid_for(files: Files, tmp_path: Path, departure: str):
    key, secret = make_key()
    public = MetricsConfig(public=True)
    with guarded(files, tmp_path, key, price=PRICE, metrics=public) as server:
        first, ledger = FirstStep(server), server.state.guard.ledger
        assert ledger is not None
        head = f"authorization: Bearer {secret}\r\n"
        late = "" if departure == "left" else "x-request-timeout-seconds: 60\r\n"
        connection = send(server, LONG, head + late)
        assert first.begun.wait(20)
        waiting = send(server, LONG, head)  # of this nothing is computed
        wait_until(lambda: server.state.registry.engines[0].waiting == 1)
        if departure == "left":
            connection.close()
            wait_until(lambda: len(first.steps._cancelled) == 1)
        else:
            first.let_time_run_out()
        waiting.close()
        wait_until(lambda: len(first.steps._cancelled) == (2 if departure == "left" else 1))
        first.go.set()
        wait_until(lambda: ledger.spent(key.id)[0].tokens > 0)
        assert server.idle()
        spent = ledger.spent(key.id)[0]
        assert 0 < spent.tokens <= STEP
        assert spent.usd > 0
        assert unanswered(server) == spent.tokens
        connection.close()


def test_a_reply_that_is_not_taken_is_one_of_the_calls_at_once(files: Files, tmp_path: Path):
    key, secret = make_key(limits={"concurrent": 1})
    size = 16 * 1024 * 1024
    with guarded(files, tmp_path, key) as server:
        assert post_chat(server, secret).status_code == 200
        with httpx.Client(trust_env=False, headers={"authorization": f"Bearer {secret}"}) as client:
            assert client.get(f"{server.url}/v1/files").status_code == 200
        file = server.state.part(Batches).store.add_file(f"key:{key.id}", "f", "batch", BytesIO(bytes(size)))
        parts = urlsplit(server.url)
        connection = socket.create_connection((parts.hostname or "", parts.port or 0))
        path = f"/v1/files/{file.id}/content"
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {secret}\r\n\r\n".encode())
        received = len(connection.recv(4096))
        for _ in range(3):
            assert post_chat(server, secret).status_code == 429
        while received < size:
            received += len(connection.recv(1 << 20))
        wait_until(lambda: post_chat(server, secret).status_code == 200)
        connection.close()


def test_bodies_that_are_not_whole_yet_are_held_within_a_bound(files: Files, tmp_path: Path):
    from .conftest import attacked, head

    def begin(server: Server, tenant: str) -> socket.socket:
        parts = urlsplit(server.url)
        connection = socket.create_connection((parts.hostname or "", parts.port or 0))
        connection.settimeout(20)
        top = f"POST /tokenize HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {tenant}\r\n"
        connection.sendall(f"{top}content-length: {len(body)}\r\n\r\n".encode() + body[:-1])
        return connection

    with attacked(files, tmp_path, body_bytes=16 * 1024) as server:
        body = b'{"model": "tiny", "prompt": "' + b"a" * 16_000 + b'"}'
        waiting_bytes = server.state.preparation._reserved
        max_waiting = 16 * 16 * 1024 // (len(body) - 1)
        waiting = [begin(server, "them") for _ in range(max_waiting)]
        wait_until(lambda: waiting_bytes["them"] == max_waiting * (len(body) - 1))
        over = begin(server, "them")
        assert b" 429 " in over.recv(4096)
        ours = server.post("/tokenize", json={"model": "tiny", "prompt": "a"}, headers=head("us"))
        assert ours.status_code == 200
        for client in waiting:
            client.sendall(body[-1:])
            assert b" 200 " in client.recv(4096)
        for client in (over, *waiting):
            client.close()
        wait_until(lambda: not waiting_bytes.total())
