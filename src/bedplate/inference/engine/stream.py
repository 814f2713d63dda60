"""One request's answer, from the thread that computes it to whoever asked."""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator

from bedplate.core.errors import UsageError
from bedplate.inference.engine.kinds.request import Request, RequestUsage, Result, Step

log = logging.getLogger("bedplate.inference")


class Stream:
    """One request's answer as it comes: iterate it for steps (generation), or ask `result()` for the whole."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._steps: queue.SimpleQueue[Step | None] = queue.SimpleQueue()
        self._finished = threading.Event()
        self._result: Result | None = None
        self._error: BaseException | None = None
        self._listener: Callable[[], None] | None = None
        self._process = os.getpid()
        self.cancelled = False
        self.spent = RequestUsage()
        """What was computed for the request; known once it has ended."""
        self.on_cancel: Callable[[], None] | None = None

    def __iter__(self) -> Iterator[Step]:
        """Steps until the request ends; raises its error if it failed. To be iterated once."""
        self._check_process()
        while (step := self._steps.get()) is not None:
            yield step
        if self._error is not None:
            raise self._error

    def result(self, timeout: float | None = None) -> Result:
        """The finished result; waits at most `timeout` seconds (TimeoutError)."""
        self._check_process()
        if not self._finished.wait(timeout):
            raise TimeoutError("the request has not finished yet")
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    def _check_process(self) -> None:
        """UsageError where nothing will come any more: the thread that computes it is in another process."""
        if not self._finished.is_set() and os.getpid() != self._process:
            raise UsageError("this request runs in the process that this one was forked from; ask for its answer there")

    def listen(self, listener: Callable[[], None]) -> None:
        """Calls `listener` now, and in the engine's thread once per engine step that brought something, and at the end.
        It must be quick and not raise."""
        self._listener = listener
        listener()

    def drain(self) -> tuple[list[Step], bool]:
        """The steps that have come since, without waiting, and whether the request has ended. Not beside iteration."""
        steps: list[Step] = []
        while True:
            try:
                step = self._steps.get_nowait()
            except queue.Empty:
                return steps, False
            if step is None:
                return steps, True
            steps.append(step)

    def cancel(self) -> None:
        """Ends the request at the engine's next step, also while it waits; a generation that has begun keeps what it
        has, reason "cancelled". Where it has ended, or is cancelled already, nothing changes."""
        self.cancelled = True
        on_cancel = self.on_cancel
        if on_cancel is not None:
            on_cancel()

    @property
    def finished(self) -> bool:
        return self._finished.is_set()

    @property
    def failure(self) -> BaseException | None:
        """What the request failed with."""
        return self._error

    def push(self, step: Step) -> None:
        """Adds a step; `notify` tells the listener."""
        self._steps.put(step)

    def notify(self) -> None:
        """Tells the listener; one that raises is told no more, and what it was told of goes on."""
        listener = self._listener
        if listener is not None:
            try:
                listener()
            except Exception:
                self._listener = None
                log.exception("a listener to a request's answer failed; it is told no more of it")

    def finish(self, result: Result) -> None:
        self._result = result
        self.spent = RequestUsage(result.usage, result.timing.compute)
        self._end()

    def fail(self, error: BaseException, spent: RequestUsage | None = None) -> None:
        if not self._finished.is_set():
            self._error = error
            self.spent = spent or self.spent
            self._end()

    def _end(self) -> None:
        self.on_cancel = None  # whoever keeps the answer does not keep what computed it
        self._finished.set()
        self._steps.put(None)
        self.notify()
