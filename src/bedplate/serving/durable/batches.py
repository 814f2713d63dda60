"""Batches, answered beside everything else and kept through kills of the server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from starlette.types import ASGIApp

from bedplate.serving.durable.batch_store import BatchStore
from bedplate.serving.durable.batch_worker import BatchWorker
from bedplate.serving.durable.state_directory import STATE_BUSY, StateDirectory
from bedplate.serving.request.state import ServerState
from bedplate.serving.schemas.errors import StatusError


class Batches:
    """The service behind the routes of batches and files: the store, opened when it is first needed, and its worker."""

    def __init__(self, state: ServerState) -> None:
        self._state, self._directory = state, state.part(StateDirectory)
        self._app: ASGIApp | None = None
        self._store: BatchStore | None = None
        self._worker: BatchWorker | None = None
        self._running: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def running(self, app: ASGIApp) -> AsyncGenerator[None]:
        """Goes on with what an earlier server left; at the end the worker stops within the grace period."""
        self._app = app
        if self._directory.is_needed and self._directory.begin():
            self._open()
        try:
            yield
        finally:
            self._app = None
            if self._running is not None:
                if not self._state.stopping:  # nobody said when to stop, so there is no grace
                    self._running.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await self._running
            if self._store is not None:
                self._store.close()

    @property
    def store(self) -> BatchStore:
        """StatusError 503 where the state directory cannot be had."""
        return self._open()[0]

    def wake(self) -> None:
        """Tells the worker that something has changed."""
        self._open()[1].wake()

    def _open(self) -> tuple[BatchStore, BatchWorker]:
        if self._app is None:
            raise StatusError(503, "batches are not running on this server", STATE_BUSY)
        if self._store is None or self._worker is None:
            self._store = BatchStore(self._directory.acquire(), self._state.config.batches)
            self._worker = BatchWorker(self._state, self._store, self._app)
            self._running = asyncio.create_task(self._worker.run())
        return self._store, self._worker
