"""An ASGI application behind a real socket, in a thread. It ends at once, not at one of the ten looks that uvicorn has
a second and a tenth of a second later: hundreds of tests end a server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Generator
from typing import Any

import uvicorn


class _Server(uvicorn.Server):
    _end: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    async def main_loop(self) -> None:
        await self.on_tick(0)
        ended = asyncio.Event()
        self._end = asyncio.get_running_loop(), ended
        if not self.should_exit:
            await ended.wait()

    def end(self, force: bool) -> None:
        """To be called from another thread."""
        self.should_exit, self.force_exit = True, force
        if self._end is not None:
            loop, ended = self._end
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(ended.set)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if not self.force_exit:
            await super().shutdown(sockets)
            return
        for opened in (*self.servers, *(sockets or ())):
            opened.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        end = time.monotonic() + 0.1
        while self.server_state.tasks and time.monotonic() < end:
            await asyncio.sleep(0.005)


@contextlib.contextmanager
def served(app: Any, grace: int | None = None, buffer: int | None = None, **settings: Any) -> Generator[int]:
    """The port. At the end requests have `grace` seconds to end, or none. buffer: bytes of its sockets' send buffers;
    `settings`: uvicorn's."""
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=grace, **settings)
    server = _Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.end(force=grace is None)
            thread.join()
