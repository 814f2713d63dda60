"""What heads of requests may do: change to no other protocol, forge no line of the log, hide no call from traces."""

from __future__ import annotations

import contextlib
import http.client
import logging
import socket
import threading
import time
from collections.abc import Generator, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from bedplate.serving.request.server_state import Exchange
from bedplate.serving.server.monitoring import Telemetry
from bedplate.serving.server.uvicorn_server import Server
from bedplate.serving.settings.server_config import TelemetryConfig

HEAD_BYTES = 8 * 1024
UPGRADE = {
    "connection": "Upgrade",
    "upgrade": "websocket",
    "sec-websocket-version": "13",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
}


@pytest.fixture
def loading() -> Iterator[int]:
    """The port of a server that loads until the test is over."""
    over = threading.Event()

    @contextlib.contextmanager
    def load() -> Generator[Any]:
        over.wait(60)
        raise RuntimeError("the test is over")
        yield

    def build_app(_: Any) -> Any:
        raise AssertionError

    server = Server(load(), build_app, lambda _: None, 0.0, HEAD_BYTES)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.serve_until_stopped, args=(listener,))
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = server.force_exit = True
        thread.join()
    over.set()


def get_health(port: int, headers: dict[str, str]) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.closing(connection):
        connection.request("GET", "/health", headers=headers)
        reply = connection.getresponse()
        return reply.status, reply.read()


def test_a_client_that_would_change_to_web_sockets_is_answered_in_http(loading):
    assert get_health(loading, UPGRADE) == (200, b'{"status":"loading"}')


def test_a_head_of_many_lines_is_not_looked_through(loading):
    headers = {f"x-{number}": "y" for number in range(100)}
    assert get_health(loading, headers)[0] == 200
    with socket.create_connection(("127.0.0.1", loading)) as connection:
        connection.settimeout(20)
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n" + b"a:\r\n" * HEAD_BYTES)
        with contextlib.suppress(ConnectionError):
            assert not connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_body_of_two_lengths_is_read_in_neither_way(target):
    """A proxy that goes by the other one would pass on, as one request, what is two here."""
    inner = b"0\r\n\r\nGET /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(inner)}\r\n"
    reply = b""
    with socket.create_connection(("127.0.0.1", urlsplit(target.url).port)) as connection:
        connection.settimeout(20)
        connection.sendall(head.encode() + b"transfer-encoding: chunked\r\n\r\n" + inner)
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65536):
                reply += part
    assert reply.startswith(b"HTTP/1.1 400")
    assert b"ambiguous_length" in reply
    assert reply.count(b"HTTP/1.1") == 1


FORGED = "\x1b[2J203.0.113.9 GET /admin/skins 200 1.0ms id=forged"


@pytest.mark.parametrize(
    ("forwarded_for", "shown"), [("203.0.113.7", "203.0.113.7"), (FORGED, '"\\u001b[2J203.0.113.9 GET')]
)
def test_who_says_for_whom_it_asks_forges_no_line(target, caplog, forwarded_for, shown):
    caplog.set_level(logging.INFO, "bedplate.access")
    address = urlsplit(target.url)
    assert get_health(address.port, {"x-forwarded-for": forwarded_for, "x-request-id": "looked-for"})[0] == 200
    end, lines = time.monotonic() + 10, list[str]()
    while not lines and time.monotonic() < end:  # a request is told to the log when it is over
        lines = [record.getMessage() for record in caplog.records if "id=looked-for" in record.getMessage()]
        time.sleep(0.005)
    [line] = lines
    assert line.startswith(shown)
    assert line.isprintable()


def test_a_client_cannot_have_its_calls_left_out_of_the_traces():
    exporter = InMemorySpanExporter()
    telemetry = Telemetry(TelemetryConfig(endpoint="http://127.0.0.1:9"), exporter)
    for flags in ("00", "01"):
        exchange = Exchange(
            id="a",
            client="-",
            method="POST",
            path="/v1/chat/completions",
            route="/v1/chat/completions",
            status=200,
            began=1.0,
            seconds=0.5,
            traceparent=f"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}",
            facts={"endpoint": "chat", "model": "tiny"},
        )
        telemetry.watch(exchange)
    assert telemetry._provider.force_flush()
    assert len(exporter.get_finished_spans()) == 2
    telemetry._provider.shutdown()
