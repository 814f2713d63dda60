"""A running server under hostile requests of every kind to every route, from a process of their own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, urlsplit

import httpx
from fastapi.routing import APIRoute
from tests.forked import CONTEXT

from bedplate.serving.server.app import ROUTERS

from .firing import Manner, Outcome, Shot, fire
from .sampling import Sampler, damaged, spoil, written

ALLOWED = frozenset((501, 503, 504, 507))
"""What is not there, is not possible now, took too long, or has no room: said, and not a fault."""
MANNERS: tuple[Manner, ...] = (*("whole",) * 14, "pieces", "cut", "left", "left", "slow", "twice")
MAX_REMEMBERED = 40
"""Ids of each kind that are remembered from replies."""


@dataclass(frozen=True)
class Operation:
    method: str
    path: str
    body: Any = None
    """The schema of what it reads, if it reads JSON."""
    queries: Sequence[str] = ()
    form: bool = False


def operations(document: Mapping[str, Any]) -> list[Operation]:
    """Every route of the server, with what the document says of it where it is listed."""
    endpoints: list[Operation] = []
    for router in ROUTERS:
        for route in router.routes:
            if isinstance(route, APIRoute):
                for method in sorted(route.methods or ()):
                    description = document["paths"].get(route.path_format, {}).get(method.lower(), {})
                    content = description.get("requestBody", {}).get("content", {})
                    body = content.get("application/json", {}).get("schema")
                    queries = [
                        parameter["name"]
                        for parameter in description.get("parameters", ())
                        if parameter["in"] == "query"
                    ]
                    form = "multipart/form-data" in content
                    endpoints.append(Operation(method, route.path_format, body, queries, form))
    return endpoints


@dataclass
class Report:
    """What came of a siege. wrong: what must not have been answered so, with the request."""

    shots: int = 0
    seconds: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter[str])
    routes: Counter[str] = field(default_factory=Counter[str])
    """Requests to each route that were answered at all."""
    wrong: list[str] = field(default_factory=list[str])

    def add(self, report: Report) -> None:
        """Takes in what came of a further siege."""
        self.shots += report.shots
        self.seconds += report.seconds
        self.statuses += report.statuses
        self.routes += report.routes
        self.wrong += report.wrong


class Besieger:
    """Draws requests and sends them, `workers` at once. secrets: of the keys that it has; the first is used most."""

    def __init__(self, url: str, secrets: Mapping[str, str], document: Mapping[str, Any], seed: int) -> None:
        address = urlsplit(url)
        assert address.hostname is not None
        assert address.port is not None
        self._host, self._port, self._secrets, self._seed = address.hostname, address.port, secrets, seed
        self._operations = operations(document)
        self._often = [operation for operation in self._operations if operation.body is not None or operation.form]
        models = [
            "tiny",
            "tiny",
            "tiny",
            "prompted",
            "tuned",
            "probed",
            "writer",
            "pair",
            "several",
            "worded",
            "nobody",
        ]
        self._values_by_name: dict[str, list[str]] = {"model": models, "name": list(models), "id": ["batch_0"]}
        self._sampler = Sampler(document, self._values_by_name)
        self.report = Report()

    async def run(self, shots: int, seconds: float, workers: int, first: int = 0) -> Report:
        """At most so many requests, for at most so long. Every route gets some of the very first ones, whatever is
        drawn; a later siege goes on with number `first`."""
        begin = time.monotonic()
        numbers = iter(range(first, first + shots))

        async def work() -> None:
            for number in numbers:
                if time.monotonic() - begin > seconds:
                    return
                await self._fire_shot(number)

        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(work())
        self.report.seconds = time.monotonic() - begin
        return self.report

    async def _fire_shot(self, number: int) -> None:
        draw = random.Random(f"{self._seed}/{number}")
        operation, shot = self.shot(number, draw)
        await self.send(shot, draw, f"{operation.method} {operation.path}", number)

    async def send(self, shot: Shot, draw: random.Random, route: str, number: int) -> Outcome:
        """Sends a request of the sequence of this number, and notes what came back."""
        outcome = await fire(self._host, self._port, shot, draw)
        self.report.shots += 1
        deadline_note = " in the time that it asked for" if SHORT in shot.headers else ""
        statuses = [f"{status}{deadline_note if status == 504 else ''}" for status in outcome.statuses]
        self.report.statuses.update(statuses or [shot.manner])
        if outcome.statuses:
            self.report.routes[route] += 1
        mistake = self._mistake(shot, outcome)
        if mistake and len(self.report.wrong) < 50:
            head = f"{mistake} (seed {self._seed}, number {number}, {shot.manner})"
            self.report.wrong.append(f"{head}\n  sent {shot.content[:1500]!r}\n  got {outcome.body[:500]!r}")
        self._learn(outcome)
        return outcome

    def _mistake(self, shot: Shot, outcome: Outcome) -> str:
        if outcome.mistake:
            return outcome.mistake
        bad = next((status for status in outcome.statuses if status >= 500 and status not in ALLOWED), None)
        if bad is not None:
            return f"answered {bad}"
        if b'"internal_error"' in outcome.body:
            return "an event says that the server failed"
        if b"Traceback" in outcome.body:
            return "a stack trace"
        # Who still writes when the answer comes, and the connection is closed behind it, may lose it.
        read = shot.framed and len(shot.body) <= BODY_BYTES and shot.manner in {"whole", "twice"}
        if not outcome.statuses and read:
            return "closed without an answer"
        return ""

    def _learn(self, outcome: Outcome) -> None:
        """Ids of what was made are asked for later."""
        if not outcome.body.startswith(b"{") or len(outcome.body) > 100_000:
            return
        with contextlib.suppress(ValueError, RecursionError):
            name = json.loads(outcome.body).get("id")
            if isinstance(name, str) and name.isascii():
                field = {"file": "input_file_id", "resp": "previous_response_id"}.get(name[:4], "id")
                for pool in (
                    self._values_by_name.setdefault(field, []),
                    self._values_by_name["id"],
                    self._values_by_name["name"],
                ):
                    pool.append(name)
                    del pool[10 : len(pool) - MAX_REMEMBERED]

    # --- drawing

    def shot(self, number: int, draw: random.Random) -> tuple[Operation, Shot]:
        """The request of this number."""
        rounds, place = divmod(number, len(self._operations))
        operation = (
            self._operations[place]
            if rounds < 2
            else draw.choice(self._often if draw.random() < 0.7 else self._operations)
        )
        target = self._sampler.path(operation.path, draw) + self._query(operation, draw)
        body, content_type = self._body(operation, draw, spoilt=rounds > 0)
        headers = self._headers(operation, draw, content_type)
        method, manner, framed = operation.method, draw.choice(MANNERS), True
        if rounds < 2:
            return operation, Shot(method, target, headers, body)
        if draw.random() < 0.02:
            method = draw.choice(("PUT", "PATCH", "HEAD", "OPTIONS", "TRACE", "CONNECT", "BREW", "get"))
        if draw.random() < 0.03:
            lengths = ("-1", "1e3", "99999999999999999999", "0", "5, 5", "+5", "", "0x10", str(len(body) + 5))
            framing = draw.choice(
                [
                    *(("content-length", length) for length in lengths),
                    ("transfer-encoding", "chunked"),
                    ("transfer-encoding", "gzip"),
                    ("expect", "100-continue"),
                ]
            )
            headers.append(framing)
            framed = False
            manner = "left" if manner == "twice" else manner
        return operation, Shot(method, target, headers, body, manner, framed)

    def _query(self, operation: Operation, draw: random.Random) -> str:
        names = [name for name in operation.queries if draw.random() < 0.4]
        if draw.random() < 0.05:
            names.append(draw.choice(("limit", "x", "%00", "a[]", "stream")))
        odd = ("0", "1", "-1", "9" * 30, "asc", "true", "", "NaN", "%ff", "a" * 200)
        text = "&".join(f"{name}={draw.choice([*odd, *map(quote, self._values_by_name['id'])])}" for name in names)
        return f"?{text}" if text else ""

    def _headers(self, operation: Operation, draw: random.Random, content_type: str) -> list[tuple[str, str]]:
        keys = list(self._secrets)
        key = (
            "admin"
            if "/admin" in operation.path and "admin" in keys and draw.random() < 0.8
            else draw.choice([keys[0]] * 8 + keys)
        )
        headers = [("host", f"{self._host}:{self._port}"), ("authorization", f"Bearer {self._secrets[key]}")]
        if content_type:
            headers.append(("content-type", content_type))
        if draw.random() < 0.1:
            headers.append(draw.choice(_ODD_HEADERS))
        if draw.random() < 0.03:
            headers[draw.randrange(2)] = draw.choice(_ODD_HEADS)
        return headers

    def _body(self, operation: Operation, draw: random.Random, spoilt: bool) -> tuple[bytes, str]:
        """What is sent, and what it says that it is."""
        if operation.form:
            return self._form(draw, spoilt)
        if operation.body is None:
            return (draw.randbytes(draw.choice((0, 0, 10))) if spoilt else b""), ""
        value = self._sampler.body(operation.body, draw)
        if spoilt:
            for _ in range(draw.choice((0, 1, 1, 2, 5))):
                value = spoil(value, draw)
        content = written(value, draw)
        if spoilt and draw.random() < 0.15:
            content = damaged(content, draw)
        if spoilt and draw.random() < 0.01:
            content += b" " * (BODY_BYTES + draw.choice((-len(content), 1, 5000)))
        content_types = (
            "text/plain",
            "application/x-www-form-urlencoded",
            "application/json; charset=utf-16",
            "\u00fc/*",
        )
        return content, draw.choice(content_types) if spoilt and draw.random() < 0.05 else "application/json"

    def _form(self, draw: random.Random, spoilt: bool) -> tuple[bytes, str]:
        """A file of a batch's rows."""
        rows: list[Any] = []
        chat = next(operation for operation in self._operations if operation.path == "/v1/chat/completions")
        for number in range(draw.randrange(1, 4)):
            row: Any = {
                "custom_id": str(number),
                "method": "POST",
                "url": chat.path,
                "body": self._sampler.body(chat.body, draw),
            }
            rows.append(spoil(row, draw) if spoilt and draw.random() < 0.3 else row)
        content = b"\n".join(written(row, draw).replace(b"\n", b" ") for row in rows)
        name = (
            draw.choice(("rows.jsonl", "../../x", "\u00fc" * 300, "a\x00b", 'q"; filename="r'))
            if spoilt
            else "rows.jsonl"
        )
        parts = [
            b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n',
            f'--b\r\ncontent-disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
            + content
            + b"\r\n",
            b"--b--\r\n",
        ]
        if spoilt and draw.random() < 0.3:
            draw.shuffle(parts)
        whole = b"".join(parts)
        return (damaged(whole, draw) if spoilt and draw.random() < 0.3 else whole), "multipart/form-data; boundary=b"


BODY_BYTES = 256 * 1024
SHORT = ("x-request-timeout-seconds", "0.05")
"""Who asks for so little time may well be told that it was over."""
SETTINGS: dict[str, Any] = {
    "limits": {
        "body_bytes": BODY_BYTES,
        "max_rows": 8,
        "max_waiting": 64,
        "adapters": 4,
        "prompt_skins": 4,
        "prefix_bytes": 4 * 2**20,
        "cache_bytes": 8 * 2**20,
        "timeout_seconds": 20,
    },
    "responses": {"bytes_per_tenant": 2**20, "bytes_in_all": 2**22},
    "batches": {"file_bytes": 2**20, "tenant_bytes": 2**23, "rows": 100},
}
"""Of the servers that are besieged: small bounds are reached soon."""
_ODD_HEADERS = (
    SHORT,
    ("x-request-timeout-seconds", "NaN"),
    ("x-request-timeout-seconds", "9" * 400),
    ("x-request-id", "\u00fc" * 50),
    ("x-request-id", "a b\tc"),
    ("traceparent", "00-" + "f" * 32 + "-zz"),
    ("origin", "http://["),
    ("origin", "null"),
    ("cookie", "a=" + "b" * 20_000),
    ("x-big", "c" * 40_000),
    ("accept", "text/event-stream;q=x"),
    ("accept-encoding", "\u00ff"),
    ("content-encoding", "gzip"),
    ("connection", "upgrade"),
    ("upgrade", "h2c"),
    ("range", "bytes=-1,5-2"),
    ("if-none-match", "*"),
)
_ODD_HEADS = (
    ("host", "["),
    ("host", ""),
    ("host", "evil.example"),
    ("host", "127.0.0.1:99999999"),
    ("authorization", "Bearer "),
    ("authorization", "Bearer \u00ff\u00fe"),
    ("authorization", "Basic bp_" + "a" * 9000),
    ("x-api-key", "bp_nobody"),
)


def _besiege(
    besieger: type[Besieger],
    url: str,
    secrets: dict[str, str],
    document: str,
    seed: int,
    limits: tuple[int, float, int, int],
    out: str,
) -> None:
    """In a process of its own: drawing takes the interpreter from whoever measures. It gives way to all others, since
    hostile clients compute on machines of their own: what counts is what their requests take of the server."""
    if sys.platform == "linux":
        os.setsid()  # processes are scheduled by session, where the system groups them so
        with contextlib.suppress(OSError):
            Path("/proc/self/autogroup").write_text("19")
    os.nice(19)
    report = asyncio.run(besieger(url, secrets, json.loads(document), seed).run(*limits))
    Path(out).write_text(json.dumps({**report.__dict__}))


class Siege:
    """A siege that runs; `end` waits for its report."""

    def __init__(
        self,
        url: str,
        secrets: Mapping[str, str],
        out: Path,
        *,
        seed: int,
        shots: int,
        seconds: float,
        workers: int = 8,
        first: int = 0,
        besieger: type[Besieger] = Besieger,
    ) -> None:
        document = httpx.get(f"{url}/openapi.json", trust_env=False, verify=False).text
        self._out, self._seconds = out, seconds
        arguments = (besieger, url, dict(secrets), document, seed, (shots, seconds, workers, first), str(out))
        self._process = CONTEXT.Process(target=_besiege, args=arguments)
        self._process.start()

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def end(self) -> Report:
        self._process.join(self._seconds + 120)
        assert self._process.exitcode == 0, self._process.exitcode
        self._process.close()
        read: dict[str, Any] = json.loads(self._out.read_text())
        counters = {name: Counter(cast("dict[str, int]", read.pop(name))) for name in ("statuses", "routes")}
        return Report(**read, **counters)
