"""How late a server's `/health` is, asked ten times a second by a process of its own."""

from __future__ import annotations

import contextlib
import http.client
import math
import time
from collections.abc import Generator
from dataclasses import dataclass
from multiprocessing.connection import Connection

from tests.forked import CONTEXT
from tests.serving.process import resident_bytes


@dataclass(frozen=True)
class Probe:
    """begin: by `time.monotonic`. seconds: until the reply, infinite where it was not 200. late: seconds by which the
    prober itself woke too late just before, which is the machine's doing. resident: bytes of the server."""

    begin: float
    seconds: float
    late: float
    resident: int


@contextlib.contextmanager
def probing(url: str, pid: int) -> Generator[list[Probe]]:
    """The list has the probes once the context has ended."""
    probes: list[Probe] = []
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_probe, args=(url.removeprefix("http://"), pid, theirs))
    process.start()
    try:
        yield probes
    finally:
        ours.send(None)
        probes.extend(ours.recv())
        process.join()


def _probe(address: str, pid: int, ended: Connection) -> None:
    probes: list[Probe] = []
    client = http.client.HTTPConnection(address, timeout=60)
    due = time.monotonic() + 0.1
    while not ended.poll(max(0.0, due - time.monotonic())):
        begin = time.monotonic()
        try:
            client.request("GET", "/health")
            reply = client.getresponse()
            reply.read()
            healthy = reply.status == 200
        except (OSError, http.client.HTTPException):
            client.close()
            healthy = False
        end = time.monotonic()
        probes.append(Probe(begin, end - begin if healthy else math.inf, begin - due, resident_bytes(pid)))
        due = end + 0.1
    ended.send(probes)
