"""Shadow traffic: copies of clients' calls to another model, sent only while no client waits."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from starlette.types import ASGIApp

from bedplate.serving.callers.caller_guard import Caller
from bedplate.serving.request.observers import FinishedCall
from bedplate.serving.request.self_calls import SilentObserver, self_call
from bedplate.serving.request.server_state import ServerState
from bedplate.serving.rollout.shadow_comparison import AnsweredCall, ShadowPair, answer_digest

log = logging.getLogger("bedplate.serving")

MOST_WAITING = 32
"""Copies that wait to be sent; more are dropped."""
WAIT_SECONDS = 5.0
"""A copy that has waited longer for an idle engine is dropped."""
CALL_SECONDS = 60.0
_POLL_SECONDS = 0.005


class ShadowCall(SilentObserver):
    """The origin of a copy; it is told what came of it."""

    def __init__(self) -> None:
        self.answered: AnsweredCall | None = None

    def __str__(self) -> str:
        return "shadow"


@dataclass(frozen=True)
class Copy:
    """What is to be sent: the request as it came, for another model; and what became of the original."""

    id: str
    path: str
    body: dict[str, Any]
    caller: Caller
    model: str
    version: str
    ours: AnsweredCall
    on_outcome: Callable[[ShadowPair | None, str], None]
    """Gets the pair, or None and why there is none."""


def answered(call: FinishedCall) -> AnsweredCall:
    """What is remembered of an answered call."""
    digests = tuple(answer_digest(answer.text) for answer in call.answers)
    return AnsweredCall(digests, call.seconds, sum(result.timing.compute for result in call.results))


class Shadows:
    """The queue of copies, and who sends them."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._waiting: deque[tuple[float, Copy]] = deque()
        self._wake = asyncio.Event()
        self._preempted = asyncio.Event()

    def add(self, copy: Copy) -> None:
        """Queues a copy, or drops it where too many wait."""
        if len(self._waiting) >= MOST_WAITING:
            copy.on_outcome(None, "queue_full")
            return
        self._waiting.append((time.monotonic(), copy))
        self._wake.set()

    async def run(self, app: ASGIApp) -> None:
        """Sends copies, one after the other, until it is cancelled."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._waiting:
                    since, copy = self._waiting.popleft()
                    try:
                        await self._send(app, since, copy)
                    except Exception as error:
                        log.exception("a shadow call failed: %s", error)
                        copy.on_outcome(None, "failed")
        finally:
            self._preempted.set()

    async def _send(self, app: ASGIApp, since: float, copy: Copy) -> None:
        while not self._state.has_free_rows:
            if time.monotonic() - since > WAIT_SECONDS:
                copy.on_outcome(None, "busy")
                return
            await asyncio.sleep(_POLL_SECONDS)
        origin = ShadowCall()
        fields = {name: value for name, value in copy.body.items() if name not in ("stream", "stream_options")}
        content = json.dumps({**fields, "model": copy.model}).encode()
        # Nobody pays for a copy, and it may use the shadow whatever its caller may.
        caller = replace(copy.caller, key="", admin=False, models=frozenset((copy.model,)))
        self._preempted = asyncio.Event()
        watching = asyncio.create_task(self._watch(len(copy.ours.answers)))
        try:
            reply = await self_call(app, copy.path, content, caller, origin, self._preempted)
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
        if reply.status == 200 and origin.answered is not None:
            pair = ShadowPair(copy.id, copy.caller.tenant, copy.version, copy.ours, origin.answered)
            copy.on_outcome(pair, "compared")
        else:
            copy.on_outcome(None, "preempted" if self._preempted.is_set() else "failed")

    async def _watch(self, copy_requests: int) -> None:
        """Gives the copy up when clients wait (more than its `copy_requests` requests do), or when it takes too
        long."""
        ends = time.monotonic() + CALL_SECONDS
        while time.monotonic() < ends:
            if any(engine.waiting > copy_requests for engine in self._state.registry.engines):
                break
            await asyncio.sleep(_POLL_SECONDS)
        self._preempted.set()
