"""/health and /ready for probes, and the watchdog of the event loop, which every request and probe waits for.

The watchdog's beat in the loop says when it should have come and when it did; a thread beside it looks whether one is
missing, and logs what the loop is doing instead, while it is still doing it. On a machine that is too busy every beat
may be late: the histogram counts each of them, the log tells of one in a while.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import logging
import sys
import threading
import time
import traceback
from collections.abc import AsyncGenerator, Iterable

from fastapi import APIRouter, Request
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.responses import Response
from starlette.types import ASGIApp

from bedplate.serving.request.server_state import ServerState
from bedplate.serving.schemas.strict_json import json_response

router = APIRouter()


@router.get("/health")
async def health(request: Request) -> Response:
    """200 while every engine works; 503 when one's thread has ended, or its step takes longer than `stall_seconds`."""
    return _reply(request, ("failed", "stalled"))


@router.get("/ready")
async def ready(request: Request) -> Response:
    """200 while requests are taken: not while loading, stopping, or with an engine that does not work."""
    return _reply(request, ("failed", "stalled", "stopping"))


def _reply(request: Request, bad: tuple[str, ...]) -> Response:
    status = _status(request.app.state.server)
    return json_response({"status": status}, 503 if status in bad else 200)


def _status(state: ServerState) -> str:
    engines = state.registry.engines
    if not all(engine.alive for engine in engines):
        return "failed"
    if any(engine.stalled(state.config.stall_seconds) for engine in engines):
        return "stalled"
    return "stopping" if state.stopping else "ok"


log = logging.getLogger("bedplate.serving")

BEAT_SECONDS = 0.05
LATE_SECONDS = 0.25
"""A beat that is later than this is written to the log, once for each."""
QUIET_SECONDS = 10.0
"""After one that was written, others are only counted for so long."""
NAME = "bedplate_event_loop_lag_seconds"
_BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Watchdog(Collector):
    """Measures one server's event loop while that runs, and gives what it measured to /metrics."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_BOUNDS) + 1)
        self._sum = 0.0
        self._due = 0.0
        self._reported_due = 0.0
        self._quiet_until = 0.0
        self._untold = 0
        self._over = threading.Event()

    @contextlib.asynccontextmanager
    async def running(self, app: ASGIApp) -> AsyncGenerator[None]:
        """Watches the loop that this runs in."""
        self._due = time.monotonic() + BEAT_SECONDS
        beating = asyncio.create_task(self._beat())
        watching = threading.Thread(
            target=self._watch, args=(threading.get_ident(),), name="bedplate-watchdog", daemon=True
        )
        watching.start()
        try:
            yield
        finally:
            self._over.set()
            beating.cancel()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(max(0.0, self._due - time.monotonic()))
            current_time = time.monotonic()
            self.observe(max(0.0, current_time - self._due))
            self._due = current_time + BEAT_SECONDS

    def observe(self, lag: float) -> None:
        """Counts one beat that came so many seconds late."""
        self._counts[bisect.bisect_left(_BOUNDS, lag)] += 1
        self._sum += lag

    def _watch(self, loop_thread: int) -> None:
        while not self._over.wait(BEAT_SECONDS):
            due, current_time = self._due, time.monotonic()
            late = current_time - due
            if late <= LATE_SECONDS or due == self._reported_due:
                continue
            self._reported_due = due
            if current_time < self._quiet_until:
                self._untold += 1
                continue
            suppressed = f" ({self._untold} more times since the last such message)" if self._untold else ""
            self._quiet_until, self._untold = current_time + QUIET_SECONDS, 0
            log.warning("the event loop is %.2f s late%s; it is at:\n%s", late, suppressed, _stack_of(loop_thread))

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(NAME, "How late the server's event loop came to what was due.")
        buckets: list[tuple[str, float]] = []
        total = 0
        for bound, count in zip((*map(str, _BOUNDS), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, total))
        family.add_metric((), buckets, self._sum)
        yield family


def _stack_of(thread: int) -> str:
    """Where a thread is now, outermost first, without the values that its variables have."""
    frame = sys._current_frames().get(thread)  # pyright: ignore[reportPrivateUsage] (the documented way)
    return "(its thread has ended)" if frame is None else "".join(traceback.format_stack(frame)).rstrip()
