"""Requests, results and streams: the fields and behavior that all request types share."""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from bedplate.core.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from bedplate.skins.prompt import Passage

log = logging.getLogger("bedplate.inference")

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Retrieval:
    """What was retrieved for a request. passages: those in its prompt, by number. compute: seconds that
    the lookup took."""

    passages: tuple[Passage, ...] = ()
    compute: float = 0.0


@dataclass(frozen=True)
class LookupContext:
    """The tenant and deadline of a lookup that precedes a request, as in `Request`."""

    tenant: str = ""
    deadline: float | None = None


NO_TERMS = LookupContext()


@dataclass(frozen=True)
class PromptVectors:
    """Features [P, D] in the place of the embeddings of P prompt tokens from position `start` on, whose ids are only
    placeholders. sha256: hash of the media file and its encoding, which names these tokens in prefix-cache keys."""

    start: int
    vectors_PD: Tensor = field(compare=False)
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Request:
    """The fields that every request has.

    tokens: the prompt. adapter: a key given to Engine.load_adapter or load_soft_prompt; None: the base itself. skin:
    the skin it runs for; fair scheduling and counters use it. Cached tokens are shared by all requests of one adapter
    within the first `shared_tokens` (the skin's own prompt), and after them by requests of one `tenant` only. deadline:
    in `time.monotonic()` seconds; a request that has not ended by then fails with DeadlineError. retrieval: returned
    with the result. vectors: media features that replace parts of the prompt's embeddings, for a decoder.
    """

    tokens: tuple[int, ...] = field(kw_only=False)
    adapter: str | None = None
    skin: str = ""
    tenant: str = ""
    shared_tokens: int = 0
    deadline: float | None = None
    retrieval: Retrieval | None = None
    vectors: tuple[PromptVectors, ...] = ()


@dataclass(frozen=True)
class Step:
    """One increment of a stream. `token_id` is None where buffered text is released without a new token."""

    token_id: int | None
    text: str
    logprob: float | None = None
    top_logprobs: Sequence[tuple[int, float]] = ()
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class Usage:
    """Token counts of one request; `cached_tokens` of the prompt were not computed again."""

    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True)
class RequestUsage:
    """Compute spent on a request, whether it finished, failed or was cancelled. usage: counts the prompt tokens that
    were read. compute: as in `RequestTiming`."""

    usage: Usage = Usage(0)
    compute: float = 0.0


@dataclass(frozen=True)
class RequestTiming:
    """Seconds of one request since it was queued: until its first forward pass, its first output, and its end. compute:
    its share of the seconds of its steps, in proportion to its tokens in each."""

    queued: float = 0.0
    first: float = 0.0
    total: float = 0.0
    compute: float = 0.0


NO_TIMING = RequestTiming()


@dataclass(frozen=True, kw_only=True)
class Result:
    """The fields that every result has; each type adds its own."""

    usage: Usage
    timing: RequestTiming = NO_TIMING
    retrieval: Retrieval | None = None


class Stream:
    """The answer to one request as it is computed: iterate over its steps (generation), or call `result()` for the
    whole."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._steps: queue.SimpleQueue[Step | None] = queue.SimpleQueue()
        self._finished = threading.Event()
        self._result: Result | None = None
        self._error: BaseException | None = None
        self._listener: Callable[[], None] | None = None
        self._process = os.getpid()
        self.cancelled = False
        self.weights_version = 1
        """The version of the adapter, or of the base, with which the request was queued (`Engine.update`)."""
        self.spent = RequestUsage()
        """Compute spent on the request, known once it has ended."""
        self.on_cancel: Callable[[], None] | None = None

    def __iter__(self) -> Iterator[Step]:
        """Yields steps until the request ends; raises its error if it failed. Iterate only once."""
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
        """UsageError in a forked process, where no results arrive: the computing thread is in the parent."""
        if not self._finished.is_set() and os.getpid() != self._process:
            raise UsageError("this request runs in the process that this one was forked from; ask for its answer there")

    def listen(self, listener: Callable[[], None]) -> None:
        """Calls `listener` now, then in the engine's thread after every engine step that added output, and at the end.
        It must be quick and must not raise."""
        self._listener = listener
        listener()

    def drain(self) -> tuple[list[Step], bool]:
        """Returns the steps since the last call, without waiting, and whether the request has ended. Do not combine
        with iteration."""
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
        """Ends the request at the engine's next step, also while it is queued; a generation that has begun returns its
        text so far, with reason "cancelled". Has no effect on a request that has ended."""
        self.cancelled = True
        on_cancel = self.on_cancel
        if on_cancel is not None:
            on_cancel()

    @property
    def finished(self) -> bool:
        return self._finished.is_set()

    @property
    def failure(self) -> BaseException | None:
        return self._error

    def push(self, step: Step) -> None:
        """Adds a step; `notify` tells the listener."""
        self._steps.put(step)

    def notify(self) -> None:
        """Calls the listener; one that raises is not called again, and the request continues."""
        listener = self._listener
        if listener is not None:
            try:
                listener()
            except Exception:
                self._listener = None
                log.exception("the listener of a request failed; it is not called again")

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
        self.on_cancel = None  # so that a kept answer does not keep the engine's objects alive
        self._finished.set()
        self._steps.put(None)
        self.notify()
