"""Connections are so many at most, and a new one finds a place while there are some that wait for their client."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.attacks.conftest import listening

from bedplate.serving.server import uvicorn_server

MAX_CONNECTIONS = 8


@dataclass
class Door:
    """A server whose answers to `/held` wait until they are let go."""

    port: int = 0
    started: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    go: threading.Event = field(default_factory=threading.Event)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/held":
            self.started.release()
            while not self.go.is_set():
                await asyncio.sleep(0.002)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    def send_get(self, path: str = "/") -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port))
        connection.settimeout(20)
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        return connection

    def answered(self) -> socket.socket:
        """A connection that has had its answer, and is left open."""
        connection = self.send_get()
        assert read_reply(connection).endswith(b"ok")
        return connection

    def working(self) -> socket.socket:
        connection = self.send_get("/held")
        assert self.started.acquire(timeout=20)
        return connection


def read_reply(connection: socket.socket) -> bytes:
    """All of an answer, or nothing where the connection was closed."""
    reply = b""
    with contextlib.suppress(ConnectionError):
        while not reply.endswith(b"ok") and (part := connection.recv(4096)):
            reply += part
    return reply


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    monkeypatch.setattr(uvicorn_server, "MAX_CONNECTIONS", MAX_CONNECTIONS)
    door = Door()
    with listening(door) as door.port:
        yield door
        door.go.set()


def test_a_new_client_takes_the_place_of_the_one_that_has_been_idle_longest(door):
    with contextlib.ExitStack() as stack:
        working = stack.enter_context(door.working())
        begun = stack.enter_context(socket.create_connection(("127.0.0.1", door.port)))
        begun.settimeout(20)
        begun.sendall(b"GET / HTTP/1.1\r\nhost:")  # and never the rest
        idle = [stack.enter_context(door.answered()) for _ in range(MAX_CONNECTIONS - 2)]
        newcomer = stack.enter_context(door.answered())
        assert read_reply(begun) == b""
        latecomer = stack.enter_context(door.answered())
        assert read_reply(idle[0]) == b""
        for connection in (*idle[1:], newcomer, latecomer):
            connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert read_reply(connection).endswith(b"ok")
        door.go.set()
        assert read_reply(working).endswith(b"ok")


def test_who_is_being_answered_is_not_sent_away(door):
    with contextlib.ExitStack() as stack:
        working = [stack.enter_context(door.working()) for _ in range(MAX_CONNECTIONS)]
        with door.send_get() as late:
            assert read_reply(late) == b""
        door.go.set()
        assert all(read_reply(connection).endswith(b"ok") for connection in working)
        assert stack.enter_context(door.answered())


@pytest.mark.parametrize(
    ("soft", "hard", "raised", "expected"),
    [
        (1024, 2048, 2048, 512),
        (1024, 2**20, uvicorn_server.MAX_CONNECTIONS + uvicorn_server.OTHER_FILES, 512),
        (1024, resource.RLIM_INFINITY, uvicorn_server.MAX_CONNECTIONS + uvicorn_server.OTHER_FILES, 512),
        (2**20, 2**20, None, uvicorn_server.MAX_CONNECTIONS),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, None, uvicorn_server.MAX_CONNECTIONS),
        (100, 100, 100, 1),
    ],
)
def test_files_are_left_for_everything_else(monkeypatch, soft, hard, raised, expected):
    requested_limits: list[tuple[int, int]] = []
    monkeypatch.setattr(uvicorn_server.resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(uvicorn_server.resource, "setrlimit", lambda _, limits: requested_limits.append(limits))
    assert uvicorn_server.max_connections() == expected
    uvicorn_server.allow_connections()
    assert requested_limits == ([] if raised is None else [(raised, hard)])
