"""HTTP connections with time limits: idle, slow or unread ones are closed, and their number is bounded.

A client that is answered while it still sends is told that this was all, and has a while to see it (RFC 9112, 9.6: the
write side is closed first). Were the connection closed at once, what it still sends would be answered by a reset, which
may take the answer from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import time
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 20.0
"""How long a client may take to send a request's head."""
UNREAD_SECONDS = 10.0
"""How long it may go on sending a body that was answered unread. Closed at once, it would not see the answer."""
TAKE_SECONDS = 60.0
"""In this time, a client takes at least something of a reply that waits for it."""
_INCOMPLETE_BYTES = 64 * 1024
"""Largest part of a head, or of a chunk's line, that is read before it is whole, unless the server says otherwise."""
MOST_CONNECTIONS = 4096
"""At once, where the process may open so many files."""
OTHER_FILES = 512
"""What the process may have open beside them."""
FEW_CHUNKS, CHUNK_BYTES = 1000, 64
"""A body may come in so many chunks of any size, and in more where they have so many bytes on average. Reading a chunk
costs the event loop as much as reading some hundred bytes."""


def allow_connections() -> None:
    """Lets this process open as many files as the connections and the rest may need, as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    file_limit = MOST_CONNECTIONS + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < file_limit:
        file_limit = file_limit if hard == resource.RLIM_INFINITY else min(file_limit, hard)
        with contextlib.suppress(OSError, ValueError):  # then there are fewer connections
            resource.setrlimit(resource.RLIMIT_NOFILE, (file_limit, hard))


def most_connections() -> int:
    """How many this process may have at once."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS if soft == resource.RLIM_INFINITY else max(1, min(MOST_CONNECTIONS, soft - OTHER_FILES))


class TimedConnection(H11Protocol):
    """uvicorn's, for clients that do not end what they send, or do not take what they asked for, as well."""

    _head: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _untaken: asyncio.TimerHandle | None = None
    _since = 0.0
    """When it was opened, or last answered (time.monotonic)."""

    def __init__(self, *arguments: Any, **kwargs: Any) -> None:
        super().__init__(*arguments, **kwargs)
        self.conn = _Frugal(h11.SERVER, self.config.h11_max_incomplete_event_size or _INCOMPLETE_BYTES)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._since = time.monotonic()
        self._head = self.loop.call_later(HEAD_SECONDS, self.transport.close)
        if len(self.connections) > most_connections():
            self._make_room()

    def _make_room(self) -> None:
        """Closes those that have waited longest for their client, a sixteenth of all at once: to look for them takes
        its time. Where all others are being answered, it is this one that is closed."""
        peers = cast("set[TimedConnection]", self.connections - {self})
        waiting = sorted((peer for peer in peers if peer.waits), key=lambda peer: peer._since)
        for connection in waiting[: max(1, len(peers) // 16)] or [self]:
            self.connections.discard(connection)
            connection.transport.abort()

    @property
    def waits(self) -> bool:
        """Whether it is its client's turn: no request has come, or not all of one, or it has been answered."""
        cycle: Any = self.cycle
        return cycle is None or cycle.response_complete or self.conn.their_state is h11.SEND_BODY

    def handle_events(self) -> None:
        super().handle_events()
        cycle: Any = self.cycle  # None before the first request
        if cycle is not None and cycle.transport is self.transport:
            cycle.transport = _Answering(self.transport, self.conn)

    def data_received(self, data: bytes) -> None:
        if self.conn.our_state is h11.CLOSED:  # it was answered, and this was the last answer
            self._unset_keepalive_if_required()
            return
        super().data_received(data)
        waits = self.conn.their_state is h11.IDLE
        if waits and self._head is None:
            self._head = self.loop.call_later(HEAD_SECONDS, self.transport.close)
        elif not waits:
            self._head = _stopped(self._head)
        if self.conn.their_state is not h11.SEND_BODY:
            self._unread = _stopped(self._unread)

    def on_response_complete(self) -> None:
        self._since = time.monotonic()
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY and self._unread is None:
            self._unread = self.loop.call_later(UNREAD_SECONDS, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        """Answers bytes that are not HTTP. A request that has begun already is not answered any more."""
        cycle: Any = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:  # its answer has begun
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch(self.transport.get_write_buffer_size())

    def _watch(self, before: int) -> None:
        def look() -> None:
            buffered = self.transport.get_write_buffer_size()
            if buffered >= before:
                self.transport.abort()  # closing would wait for what nobody takes
            else:
                self._watch(buffered)

        self._untaken = self.loop.call_later(TAKE_SECONDS, look)

    def resume_writing(self) -> None:
        self._untaken = _stopped(self._untaken)
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head, self._unread, self._untaken = map(_stopped, (self._head, self._unread, self._untaken))
        super().connection_lost(exc)


class _Frugal(h11.Connection):
    """One that takes no body in crumbs."""

    _chunks = _bytes = 0

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._bytes += len(event.data)
            if self._chunks > FEW_CHUNKS and self._bytes < CHUNK_BYTES * self._chunks:
                raise h11.RemoteProtocolError("the body comes in too many small chunks")
        elif isinstance(event, h11.Request):
            self._chunks = self._bytes = 0
        return event


class _Answering(asyncio.Transport):
    """A connection as one exchange sees it, which may close it when it has been answered."""

    def __init__(self, transport: asyncio.Transport, conn: h11.Connection) -> None:
        super().__init__()
        self._transport, self._conn = transport, conn

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._transport.write(data)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        """Closes the connection; while the client still sends, only the writing side: timers close the other."""
        answered = self._conn.our_state is h11.CLOSED and self._conn.their_state is h11.SEND_BODY
        if answered and self._transport.can_write_eof() and not self._transport.is_closing():
            with contextlib.suppress(OSError):  # the client has gone
                self._transport.write_eof()
                return
        self._transport.close()


def _stopped(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
