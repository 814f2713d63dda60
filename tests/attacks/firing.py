"""Requests as bytes on a connection of their own, sent and read in ways that no client library would; and what came
back, read as strictly as HTTP is defined (RFC 9112)."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Manner = Literal["whole", "pieces", "cut", "left", "slow", "twice"]
"""whole: at once. pieces: with pauses. cut: the end is never sent. left: gone before the answer. slow: the answer is
read a little at a time, and never to its end. twice: two requests in one writing."""

ANSWER_SECONDS = 30.0
"""What was sent whole is answered by then."""
SLOW_SECONDS = 0.6
"""How long one that reads slowly does so."""
UNFRAMED_SECONDS = 0.5
"""For what says that more comes, and may well be waited for."""
MOST_READ = 64 * 1024 * 1024


@dataclass(frozen=True)
class Shot:
    """One request. headers: also those that nobody should send; `framed` says whether the body's length is told as it
    is."""

    method: str
    target: str
    headers: Sequence[tuple[str, str]]
    body: bytes
    manner: Manner = "whole"
    framed: bool = True

    @property
    def content(self) -> bytes:
        lines = [f"{self.method} {self.target} HTTP/1.1", *(f"{name}: {value}" for name, value in self.headers)]
        if self.framed and (self.body or self.method == "POST"):
            lines.append(f"content-length: {len(self.body)}")
        if self.manner != "twice":
            lines.append("connection: close")
        return "\r\n".join(lines).encode("utf-8", "surrogatepass") + b"\r\n\r\n" + self.body


@dataclass
class Outcome:
    """What came back: a status for each answer; none where the connection was closed without, or never read."""

    statuses: list[int] = field(default_factory=list[int])
    body: bytes = b""
    mistake: str = ""
    """What is not HTTP in it, or that nothing came."""


async def fire(host: str, port: int, shot: Shot, draw: random.Random) -> Outcome:
    """Sends it in its manner, and reads what comes back."""
    reader, writer = await asyncio.open_connection(host, port, limit=2**18)
    try:
        with contextlib.suppress(ConnectionError):
            return await _fired(reader, writer, shot, draw)
        return Outcome()
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(5):
                await writer.wait_closed()


async def _fired(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, shot: Shot, draw: random.Random
) -> Outcome:
    content = shot.content
    if shot.manner == "cut":
        writer.write(content[: draw.randrange(len(content))])
        await asyncio.sleep(draw.random() * 0.05)
        writer.transport.abort()
        return Outcome()
    if shot.manner == "pieces":
        for start in range(0, len(content), max(1, len(content) // 4)):
            writer.write(content[start : start + max(1, len(content) // 4)])
            await asyncio.sleep(draw.random() * 0.02)
    else:
        writer.write(content * (2 if shot.manner == "twice" else 1))
    if shot.manner == "left":
        await asyncio.sleep(draw.random() * 0.1)
        writer.transport.abort()
        return Outcome()
    if shot.manner == "slow":
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SLOW_SECONDS):
                while await reader.read(draw.choice((1, 20, 300))):
                    await asyncio.sleep(0.03)
        writer.transport.abort()
        return Outcome()
    outcome = Outcome()
    try:
        async with asyncio.timeout(ANSWER_SECONDS if shot.framed else UNFRAMED_SECONDS):
            for _ in range(2 if shot.manner == "twice" else 1):
                await _read_reply(reader, outcome, shot.method == "HEAD")
                if outcome.mistake or not outcome.statuses:
                    return outcome
            # What is not understood is answered as if it were no HEAD.
            if shot.manner != "twice" and shot.method != "HEAD" and await reader.read(1):
                outcome.mistake = "more than one answer"
    except TimeoutError:
        outcome.mistake = f"no whole answer in {ANSWER_SECONDS:g} s" if shot.framed else ""
    except ConnectionError:  # what is closed while we still write may lose its answer
        pass
    except asyncio.IncompleteReadError:
        outcome.mistake = "an answer without its end"
    return outcome


async def _read_reply(reader: asyncio.StreamReader, outcome: Outcome, headless: bool) -> None:
    """One answer, as long as its head says."""
    while True:
        line = await reader.readline()
        if not line:
            return
        version, _, status_text = line.decode("latin-1").partition(" ")
        if version != "HTTP/1.1" or not status_text[:3].isdigit():
            outcome.mistake = f"no status line: {line[:80]!r}"
            return
        status, fields = int(status_text[:3]), dict[str, str]()
        while (line := await reader.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode("latin-1").partition(":")
            fields[name.strip().lower()] = value.strip()
        if status != 100:
            break
    outcome.statuses.append(status)
    if headless or status in {204, 304}:
        return
    if fields.get("transfer-encoding") == "chunked":
        parts: list[bytes] = []
        while True:
            size = int((await reader.readuntil(b"\r\n")), 16)
            parts.append((await reader.readexactly(size + 2))[:-2])
            if not size:
                break
        outcome.body = b"".join(parts)
    elif "content-length" in fields:
        outcome.body = await reader.readexactly(int(fields["content-length"]))
    else:
        outcome.body = await reader.read(MOST_READ)
