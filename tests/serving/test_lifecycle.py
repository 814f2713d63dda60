"""Clients that leave or dawdle, full queues, failing engines, and the end of the server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from urllib.parse import urlsplit

import httpx
import pytest
import torch
from tests.forked import Command
from tests.tiny import SPECIAL

from bedplate.core.errors import UsageError
from bedplate.inference.engine.sampler import sample
from bedplate.serving.request.events import until_disconnect
from bedplate.serving.schemas.http_errors import ClientGone
from bedplate.serving.server.app import loaded_server, serve

from .conftest import Server, running
from .test_bad_requests import check

ENDLESS = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 450, "temperature": 1.9}


@pytest.fixture
def slow_steps(monkeypatch):
    """Engine steps of at least 20 ms that never choose an end, so that a generation of 450 tokens outlasts the test."""

    def slowly(logits, rows):
        time.sleep(0.02)
        logits[:, : len(SPECIAL)] = -torch.inf  # the tiny tokenizer's first ids
        return sample(logits, rows)

    monkeypatch.setattr("bedplate.inference.engine.runner.sample", slowly)


def send(server: Server, body: dict, headers: str = "") -> socket.socket:
    """An open connection that has asked. headers: further lines of the head."""
    parts = urlsplit(server.url)
    connection = socket.create_connection((parts.hostname, parts.port))
    content = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n{headers}\r\n"
    connection.sendall(head.encode() + content)
    return connection


def wait_until(condition, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_rows_at_once(server, slow_steps, stream):
    engine = server.state.registry.engines[0]
    with send(server, {**ENDLESS, "stream": stream, "n": 3}) as connection:
        wait_until(lambda: engine.running == 3)
        received = b""
        while stream and b"data: " not in received:
            received += connection.recv(65536)
    wait_until(lambda: engine.running == 0, 1.0)
    assert server.chat().status_code == 200


def test_a_client_that_leaves_the_queue_is_dropped(files, slow_steps):
    with loaded_server(files.base, max_rows=1) as state, running(state) as url:
        server = Server(url, state, {})
        running_one = send(server, ENDLESS)
        wait_until(lambda: state.registry.engines[0].running == 1)
        waiting = send(server, ENDLESS)
        wait_until(lambda: state.registry.engines[0].waiting == 1)
        waiting.close()
        wait_until(lambda: state.registry.engines[0].waiting == 0, 1.0)
        assert state.registry.engines[0].running == 1
        running_one.close()
        assert server.idle(1.0)


def test_work_goes_on_in_the_round_in_which_what_it_awaits_is_there():
    """It had a task of its own, and came back six rounds of the loop later: under load each is as long as what the loop
    does for all other calls together."""
    rounds = 0

    async def never() -> dict[str, str]:
        await asyncio.Event().wait()
        return {}

    async def run() -> None:
        nonlocal rounds
        loop = asyncio.get_running_loop()
        arrived: asyncio.Future[int] = loop.create_future()

        async def work() -> int:
            return await arrived

        def tick() -> None:
            nonlocal rounds
            rounds += 1
            ticking.append(loop.call_soon(tick))

        ticking = [loop.call_soon(tick)]
        loop.call_soon(arrived.set_result, 7)
        assert await until_disconnect(never, work()) == 7
        ticking[-1].cancel()

    asyncio.run(run())
    assert rounds <= 2


def test_who_leaves_ends_the_work_and_who_is_cancelled_or_late_is_told_so():
    ended: list[str] = []

    async def work(name: str) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(name)

    async def gone() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def fails() -> dict[str, str]:
        raise OSError

    async def never() -> dict[str, str]:
        await asyncio.Event().wait()
        return {}

    async def run() -> None:
        task = asyncio.current_task()
        assert task is not None
        for receive in (gone, fails):
            with pytest.raises(ClientGone):
                await until_disconnect(receive, work(receive.__name__))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await until_disconnect(never, work("late"))
        with pytest.raises(ClientGone):
            async with asyncio.timeout(60):
                await until_disconnect(gone, work("in time"))
        with pytest.raises(ValueError, match="its own"):
            await until_disconnect(gone, swallows())
        assert task.cancelling() == 0
        cancelled = asyncio.ensure_future(until_disconnect(never, work("cancelled")))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled

    async def swallows() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise ValueError("its own") from None

    asyncio.run(run())
    assert ended == ["gone", "fails", "late", "in time", "cancelled"]


def test_a_reader_that_takes_nothing_holds_nobody_up(server):
    connections = [send(server, {**ENDLESS, "stream": True}) for _ in range(4)]
    try:
        assert server.chat().status_code == 200
        assert server.idle()
    finally:
        for connection in connections:
            connection.close()


def test_a_reader_that_stalls_is_given_up(server, monkeypatch):
    """Its socket is full and nothing is read: the reply is broken off after a while."""
    from bedplate.serving.request import events

    monkeypatch.setattr(events, "STALL_SECONDS", 0.1)
    closed: list[bool] = []

    async def chunks():
        while True:
            yield events.Event({"text": "a"})

    async def never(*_):
        await asyncio.sleep(60)

    async def run():
        stream = events.EventStream(chunks())
        stream.at_end(lambda: closed.append(True))
        with pytest.raises(ClientGone):
            await stream({}, never, never)

    asyncio.run(run())
    assert closed == [True]


def test_a_full_queue_is_429_with_retry_after(files, slow_steps):
    with loaded_server(files.base, max_rows=1, max_waiting=2) as state, running(state) as url:
        server = Server(url, state, {})
        connections = [send(server, ENDLESS)]
        wait_until(lambda: state.registry.engines[0].running == 1)
        connections += [send(server, ENDLESS), send(server, ENDLESS)]
        wait_until(lambda: state.registry.engines[0].waiting == 2)
        for stream in (False, True):
            response = server.chat(stream=stream)
            check(response, 429, code="queue_full")
            assert int(response.headers["retry-after"]) >= 1
        assert "fewer" in check(server.chat(n=3), 400, "n")
        for connection in connections:
            connection.close()
        assert server.idle(2.0)
        assert server.chat().status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_failing_step_is_500_without_details(server, monkeypatch, caplog, stream):
    def fails(*_):
        raise RuntimeError("secret /home/someone/file.py")

    with monkeypatch.context() as patch:
        patch.setattr("bedplate.inference.engine.runner.sample", fails)
        message = check(server.chat(stream=stream), 500, code="internal_error")
    assert "secret" not in message
    assert "secret" in caplog.text
    assert server.chat().status_code == 200


def test_a_failure_in_the_middle_of_a_stream_is_an_event(server, monkeypatch):
    calls, begun = 0, threading.Event()

    def fails(logits, rows):
        nonlocal calls
        calls += 1
        if calls > 4 and (begun.wait(0.05) or calls > 45):
            raise RuntimeError("secret")
        return sample(logits, rows)

    body = {**ENDLESS, "stream": True, "max_tokens": 50, "seed": 1}
    with monkeypatch.context() as patch, httpx.Client(trust_env=False, timeout=30, verify=False) as client:
        patch.setattr("bedplate.inference.engine.runner.sample", fails)
        with client.stream("POST", f"{server.url}/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            first = next(lines)
            begun.set()
            text = "\n".join([first, *lines])
    assert response.status_code == 200
    events = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert json.loads(events[-1])["error"]["code"] == "internal_error"
    assert "secret" not in text
    assert server.idle()
    assert server.chat().status_code == 200


def test_an_unexpected_exception_is_500(server, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("bedplate.serving.request.lifecycle.read_fields", lambda *_: 1 / 0)
        check(server.chat(), 500, code="internal_error")
    assert server.chat().status_code == 200


def get(url: str) -> httpx.Response:
    with httpx.Client(trust_env=False) as client:
        return client.get(url)


def test_health(files):
    with loaded_server(files.base) as state, running(state) as url:
        response = get(f"{url}/health")
        assert (response.status_code, response.json()) == (200, {"status": "ok"})
        state.registry.engines[0].close()
        response = get(f"{url}/health")
        assert (response.status_code, response.json()) == (503, {"status": "failed"})


def test_a_stopping_server_refuses(files):
    with loaded_server(files.base) as state, running(state) as url:
        state.stopping = True
        check(Server(url, state, {}).chat(), 503, code="shutting_down")
        assert get(f"{url}/health").json() == {"status": "stopping"}


def everything(connection: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    connection.settimeout(20)
    return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize("stream", [True, False])
def test_requests_that_outlast_the_grace_are_told(files, slow_steps, stream, caplog):
    with loaded_server(files.base) as state:
        with running(state, grace=1) as url:
            connection = send(Server(url, state, {}), {**ENDLESS, "stream": stream})
            wait_until(lambda: state.registry.engines[0].running == 1)
            time.sleep(0.1)
        with connection:
            received = everything(connection)
        assert b"shutting_down" in received
        assert received.startswith(b"HTTP/1.1 200" if stream else b"HTTP/1.1 503")
        assert Server("", state, {}).idle(1.0)
    assert "Traceback" not in caplog.text


def test_requests_within_the_grace_are_finished(files):
    with loaded_server(files.base) as state:
        with running(state, grace=20) as url:
            connection = send(Server(url, state, {}), {**ENDLESS, "stream": True, "max_tokens": 100})
            wait_until(lambda: state.registry.engines[0].running == 1)
        with connection:
            assert b"[DONE]" in everything(connection)


def test_one_log_line_per_request_without_what_was_asked(server, caplog):
    caplog.set_level(logging.INFO, "bedplate.access")
    server.chat(messages=[{"role": "user", "content": "zanzibar"}], model="prompted")
    server.chat(messages=[{"role": "user", "content": "zanzibar"}], stream=True)
    get(f"{server.url}/v1/models/a%0Aforged")
    wait_until(lambda: len([r for r in caplog.records if r.name == "bedplate.access"]) == 3)
    lines = [record.getMessage() for record in caplog.records if record.name == "bedplate.access"]
    assert "zanzibar" not in caplog.text
    assert "POST /v1/chat/completions 200" in lines[0]
    assert "model=prompted prompt=" in lines[0]
    assert "model=tiny prompt=" in lines[1]
    assert "GET /v1/models/a%0Aforged 404" in lines[2]
    assert not any("\n" in line for line in lines)


def test_a_taken_port_is_said_before_anything_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(UsageError, match="choose another port"):
        serve("no such base", port=listener.getsockname()[1])
    with pytest.raises(UsageError, match="no address"):
        serve("no such base", host="no such host")


@contextlib.contextmanager
def command(files, directory, *arguments):
    """`bedplate serve` in a process of its own, and what it announced."""
    skins = [part for path in files.skins[:2] for part in ("--skin", path)]
    process = Command(directory, "serve", files.base, *skins, "--port", "0", "--json", *arguments)
    try:
        yield process, json.loads(process.first_line())
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("sent", "code"), [pytest.param(signal.SIGTERM, 0, marks=pytest.mark.slow), (signal.SIGINT, 130)]
)
def test_the_command_serves_and_ends_cleanly(files, tmp_path, sent, code):
    with command(files, tmp_path, "--grace", "1") as (process, announced):
        assert announced["models"] == ["tiny", "prompted", "tuned"]
        assert announced["url"].startswith("http://127.0.0.1:")
        server = Server(announced["url"].removesuffix("/v1"), None, {})  # type: ignore[arg-type]
        assert server.chat(model="tuned").json()["choices"][0]["bedplate"]["label"] in ("negative", "positive")
        with send(server, {**ENDLESS, "stream": True}) as connection:
            received = connection.recv(4096)
            process.send_signal(sent)
            received += everything(connection)
        ended = process.wait(20)
        _, _, out = process.output.partition("\n")
        assert b"[DONE]" in received or b"shutting_down" in received
        assert ended == code, process.errors
        assert "Traceback" not in process.errors
        assert (out == "") == (code == 0)  # --json says on stdout too that it was interrupted


def test_importing_bedplate_does_not_import_fastapi():
    code = "import bedplate, sys; sys.exit('fastapi' in sys.modules or 'uvicorn' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
