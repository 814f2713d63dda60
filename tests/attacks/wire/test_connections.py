"""Clients that neither end what they send nor take what they asked for do not keep their connections."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import h11
import pytest
from tests.attacks.conftest import listening

from bedplate.serving.server import uvicorn_server

LARGE = 32 * 1024 * 1024
BUFFER = 1024 * 1024
"""Of each end's socket: what lies between the two is far less than a quarter of a large reply, on any system."""
UNREAD, TAKE_DELAY = 7001.0, 7002.0
"""In no other timer's delay, and longer than any test."""


async def answering_unread(scope: Any, receive: Any, send: Any) -> None:
    """401 without a look at the body, or a large reply."""
    large = scope["path"] == "/large"
    body = b"x" * (LARGE if large else 2)
    head = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200 if large else 401, "headers": head})
    await send({"type": "http.response.body", "body": body})


@dataclass
class Timers:
    """A server whose connections' timers run out when a test says so."""

    port: int = 0
    set: queue.SimpleQueue[tuple[float, Callable[[], Any], Any]] = field(default_factory=queue.SimpleQueue)

    def run_out(self, delay: float) -> bool:
        """The next timer that was set has run out, unless it was stopped; whether it had not been."""
        timer_delay, callback, handle = self.set.get(timeout=20)
        assert timer_delay == delay
        ran, finished = [False], threading.Event()

        def run() -> None:
            if not handle.cancelled():
                ran[0] = True
                callback()
            finished.set()

        handle._loop.call_soon_threadsafe(run)
        assert finished.wait(20)
        return ran[0]


@pytest.fixture
def timers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Timers]:
    timers = Timers()
    monkeypatch.setattr(uvicorn_server, "UNREAD_SECONDS", UNREAD)
    monkeypatch.setattr(uvicorn_server, "TAKE_SECONDS", TAKE_DELAY)
    original = asyncio.BaseEventLoop.call_later

    def call_later(loop: Any, delay: float, callback: Callable[[], Any], *args: Any, **kwargs: Any) -> Any:
        handle = original(loop, delay, callback, *args, **kwargs)
        if delay in (UNREAD, TAKE_DELAY):
            timers.set.put((delay, callback, handle))
        return handle

    monkeypatch.setattr(asyncio.BaseEventLoop, "call_later", call_later)
    with listening(answering_unread, BUFFER) as timers.port:
        yield timers


def connect(timers: Timers) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", timers.port))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
    connection.settimeout(20)
    return connection


def test_a_body_that_was_answered_unread_cannot_be_sent_for_ever(timers):
    with connect(timers) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\nx")
        assert connection.recv(4096).startswith(b"HTTP/1.1 401")
        connection.sendall(b"x")
        assert timers.run_out(UNREAD)
        with contextlib.suppress(ConnectionError):
            while connection.recv(4096):
                pass


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_an_answer_reaches_a_client_that_is_still_sending_its_last_request(timers, version):
    """Proxies and urllib send all of it before they look for an answer."""
    head = f"POST / HTTP/{version}\r\nhost: x\r\nconnection: close\r\ncontent-length: {LARGE}\r\n\r\n"
    with connect(timers) as connection:
        connection.sendall(head.encode())
        reply = connection.recv(12)  # it has been answered before its body comes
        connection.sendall(b"x" * LARGE)
        while part := connection.recv(4096):
            reply += part
    assert reply.startswith(b"HTTP/1.1 401")
    assert reply.endswith(b"\r\n\r\nxx")


def test_a_body_that_was_answered_unread_cannot_be_sent_for_ever_on_a_last_request_either(timers):
    with connect(timers) as connection:
        connection.sendall(b"POST / HTTP/1.0\r\nhost: x\r\ncontent-length: 1000000\r\n\r\nx")
        assert rest_of(connection) > 2
        connection.sendall(b"x")
        assert timers.run_out(UNREAD)
        with pytest.raises(ConnectionError):
            connection.sendall(b"x" * LARGE)


def asking_for_much(timers: Timers) -> socket.socket:
    connection = connect(timers)
    connection.sendall(b"GET /large HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    return connection


def rest_of(connection: socket.socket) -> int:
    received = 0
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(1 << 20):
            received += len(part)
    return received


def test_a_reply_that_nobody_takes_is_dropped(timers):
    with asking_for_much(timers) as connection:
        assert timers.run_out(TAKE_DELAY)
        while not timers.set.empty():  # the system took something for the client since the timer was set
            assert timers.run_out(TAKE_DELAY)
        assert rest_of(connection) < LARGE


def test_a_reply_that_is_taken_slowly_is_not_dropped(timers):
    with asking_for_much(timers) as connection:
        end = time.monotonic() + 20
        while timers.set.empty():  # until the system takes no more: a quarter is more than that
            assert time.monotonic() < end
            time.sleep(0.001)
        received = 0
        for quarter in (1, 2):
            while received < quarter * LARGE // 4:
                part = connection.recv(1 << 20)
                assert part
                received += len(part)
            assert timers.run_out(TAKE_DELAY)
        assert received + rest_of(connection) > LARGE


@pytest.mark.parametrize("path", ["/", "/large"])
def test_what_is_no_http_behind_a_head_is_answered_once(timers, path, caplog):
    """The head is a request; what should be its body's first chunk is none."""
    with connect(timers) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n".encode())
        reply = b""
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(1 << 20):
                reply += part
    assert reply.startswith(b"HTTP/1.1 400")
    assert reply.count(b"HTTP/1.1") == 1
    assert "Exception in ASGI application" not in caplog.text
    assert "Fatal error" not in caplog.text


def test_a_client_that_has_gone_when_its_answer_ends_is_no_failure():
    closed: list[bool] = []

    class ClosedTransport(asyncio.Transport):
        def can_write_eof(self) -> bool:
            return True

        def is_closing(self) -> bool:
            return False

        def write_eof(self) -> None:
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

        def close(self) -> None:
            closed.append(True)

    conn: Any = SimpleNamespace(our_state=h11.CLOSED, their_state=h11.SEND_BODY)
    uvicorn_server._ExchangeTransport(ClosedTransport(), conn).close()
    assert closed == [True]
