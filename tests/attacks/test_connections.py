"""Clients that neither end what they send nor take what they asked for do not keep their connections."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from bedplate.serving.server import connections

LARGE = 32 * 1024 * 1024


async def answering_unread(scope: Any, receive: Any, send: Any) -> None:
    """401 without a look at the body, or a large reply."""
    large = scope["path"] == "/large"
    body = b"x" * (LARGE if large else 2)
    head = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200 if large else 401, "headers": head})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(connections, "UNREAD_SECONDS", 0.3)
    monkeypatch.setattr(connections, "TAKE_SECONDS", 0.3)
    settings: Any = {"http": connections.TimedConnection, "log_config": None, "lifespan": "off", "interface": "asgi3"}
    server = uvicorn.Server(uvicorn.Config(answering_unread, **settings))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = server.force_exit = True
        thread.join()


def test_a_body_that_was_answered_unread_cannot_be_sent_for_ever(port):
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n")
        connection.settimeout(0.05)
        began, cut = time.monotonic(), False
        with contextlib.suppress(ConnectionError):
            while not cut and time.monotonic() - began < 5:
                connection.sendall(b"x")
                with contextlib.suppress(TimeoutError):
                    cut = connection.recv(4096) == b""
        assert time.monotonic() - began < 5


def test_a_reply_that_nobody_takes_is_dropped_and_one_taken_slowly_is_not(port):
    for slow in (False, True):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"GET /large HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            connection.settimeout(5)
            if not slow:
                time.sleep(1.0)
            got = 0
            with contextlib.suppress(ConnectionError):
                while part := connection.recv(1 << 20):
                    got += len(part)
                    if slow:
                        time.sleep(0.02)
            assert (got >= LARGE) is slow
