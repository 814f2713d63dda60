"""Bodies in chunks of a few bytes, which cost the event loop more than they are worth, are refused in time."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

import pytest
from tests.attacks.conftest import listening

from bedplate.serving.server.uvicorn_server import CHUNK_BYTES, FEW_CHUNKS


async def counting(scope: Any, receive: Any, send: Any) -> None:
    """200 with the body's length, or 401 at once."""
    size, more_body = 0, scope["path"] == "/read"
    while more_body:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size, more_body = size + len(message.get("body", b"")), message.get("more_body", False)
    body = str(size).encode()
    head = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200 if scope["path"] == "/read" else 401, "headers": head})
    await send({"type": "http.response.body", "body": body})


def answer(port: int, path: str, sizes: list[int]) -> bytes:
    """What is answered to a body in chunks of these sizes."""
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n".encode()
    chunks = b"".join(b"%x\r\n%b\r\n" % (size, b"x" * size) for size in [*sizes, 0])
    reply = b""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(20)
        with contextlib.suppress(ConnectionError):
            connection.sendall(head + chunks)
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65536):
                reply += part
    return reply


SMALL_CHUNKS = [1] * (FEW_CHUNKS - 1)


@pytest.mark.parametrize(
    ("sizes", "accepted"),
    [
        (SMALL_CHUNKS, True),
        ([CHUNK_BYTES] * 3 * FEW_CHUNKS, True),
        ([1_000_000, *SMALL_CHUNKS, *SMALL_CHUNKS], True),
        ([1] * 5 * FEW_CHUNKS, False),
        ([*[CHUNK_BYTES] * FEW_CHUNKS, *SMALL_CHUNKS], False),
    ],
    ids=["few", "not small", "few for all that they bring", "small", "small ones later"],
)
def test_a_body_in_crumbs_is_not_read(sizes, accepted):
    with listening(counting) as port:
        reply = answer(port, "/read", sizes)
        if accepted:
            assert reply.startswith(b"HTTP/1.1 200")
            assert reply.endswith(b"\r\n\r\n%d" % sum(sizes))
        else:
            assert reply.startswith(b"HTTP/1.1 400")
        assert reply.count(b"HTTP/1.1") == 1
        assert answer(port, "/read", [5]).startswith(b"HTTP/1.1 200")  # the next is none of its fault


def test_crumbs_that_nobody_asked_for_end_the_connection():
    """They come behind an answer that needed no body, as one without a key gets it."""
    head = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    with listening(counting) as port, socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(20)
        connection.sendall(head)
        reply = b""
        while not reply.endswith(b"\r\n\r\n0"):
            reply += connection.recv(65536)
        assert reply.startswith(b"HTTP/1.1 401")
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"1\r\nx\r\n" * 2 * FEW_CHUNKS)  # and its end is never sent
        with contextlib.suppress(ConnectionError):
            assert connection.recv(65536) == b""
