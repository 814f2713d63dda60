"""Which waiting requests run together in the next step, and which token prefixes they share.

Requests keep their arrival order; a batch takes from the front those that can run in one forward pass, up to a budget
of new tokens. Only one prefix decision is made per request, when it first comes to the front.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from bedplate.core.errors import BedplateError
from bedplate.inference.kv_cache import Prefix
from bedplate.inference.requests import Classify, Embed, Generate, Request, Result, Score, Step
from bedplate.inference.sampler import RowState
from bedplate.inference.stopping import TextStream

# Shorter common beginnings are not worth a forward pass of their own.
MIN_SHARED = 16


class Stream:
    """One request's answer as it comes: iterate it for steps (generation), or ask `result()` for the whole."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._steps: queue.SimpleQueue[Step | None] = queue.SimpleQueue()
        self._done = threading.Event()
        self._result: Result | None = None
        self._error: BaseException | None = None
        self._listener: Callable[[], None] | None = None
        self.cancelled = False

    def __iter__(self) -> Iterator[Step]:
        """Steps until the request ends; raises its error if it failed. To be iterated once."""
        while (step := self._steps.get()) is not None:
            yield step
        if self._error is not None:
            raise self._error

    def result(self, timeout: float | None = None) -> Result:
        """The finished result; waits at most `timeout` seconds (TimeoutError)."""
        if not self._done.wait(timeout):
            raise TimeoutError("the request has not finished yet")
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    def listen(self, listener: Callable[[], None]) -> None:
        """Calls `listener` now, and in the engine's thread at each step and the end. It must be quick and not raise."""
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
        """Ends the request at the engine's next step; a generation keeps what it has, reason "cancelled"."""
        self.cancelled = True

    @property
    def done(self) -> bool:
        return self._done.is_set()

    def push(self, step: Step) -> None:
        self._steps.put(step)
        self._notify()

    def finish(self, result: Result) -> None:
        self._result = result
        self._end()

    def fail(self, error: BaseException) -> None:
        if not self._done.is_set():
            self._error = error
            self._end()

    def _end(self) -> None:
        self._done.set()
        self._steps.put(None)
        self._notify()

    def _notify(self) -> None:
        if self._listener is not None:
            self._listener()


@dataclass(eq=False)
class Job:
    """A request on its way through the engine; the fields below `prefix` belong to running generations."""

    request: Request
    stream: Stream
    limit: int = 0
    planned: bool = False
    prefix: Prefix | None = None
    state: RowState | None = None
    text: TextStream | None = None
    length: int = 0
    logprobs: list[float] = field(default_factory=list[float])
    top_logprobs: list[tuple[tuple[int, float], ...]] = field(default_factory=list[tuple[tuple[int, float], ...]])
    prompt_logprobs: tuple[float | None, ...] | None = None
    prompt_top_logprobs: tuple[tuple[tuple[int, float], ...], ...] = ()

    @property
    def cached(self) -> int:
        return 0 if self.prefix is None else len(self.prefix)

    @property
    def new_tokens(self) -> int:
        """Tokens that the first forward pass of this request computes."""
        own = len(self.request.tokens) - self.cached
        if isinstance(self.request, Score):
            own += sum(len(continuation) - 1 for continuation in self.request.continuations)
        return own


def depth_of(request: Request) -> int | None:
    """How many blocks the request needs; None is all of them and the last norm."""
    return request.depth if isinstance(request, Classify | Embed) else None


def can_share(request: Request) -> bool:
    """Whether a cached prefix can stand in for the request's first tokens: not where each token's state is wanted."""
    if isinstance(request, Generate):
        return request.sampling.prompt_logprobs is None
    if isinstance(request, Classify | Embed):
        return request.pooling == "last"
    return True


class Scheduler:
    """Chooses batches. `build` computes a prefix (tokens, adapter, what of it is there already) → Prefix."""

    def __init__(
        self,
        max_batch_tokens: int,
        build: Callable[[tuple[int, ...], str | None, Prefix | None], Prefix],
        shares: bool,
    ) -> None:
        self._budget = max_batch_tokens
        self._build = build
        self._shares = shares
        self.pinned: dict[str | None, list[Prefix]] = {}

    def take(self, waiting: list[Job], free_rows: int) -> list[Job]:
        """Removes from `waiting` and returns the jobs of the next prefill; empty when none can start now."""
        batch: list[Job] = []
        tokens = 0
        for job in waiting:
            if batch and depth_of(job.request) != depth_of(batch[0].request):
                continue
            if isinstance(job.request, Generate) and free_rows == 0:
                continue
            if not job.planned:
                self._plan(job, waiting)
            if batch and tokens + job.new_tokens > self._budget:
                break
            batch.append(job)
            tokens += job.new_tokens
            free_rows -= isinstance(job.request, Generate)
        taken = {id(job) for job in batch}
        waiting[:] = [job for job in waiting if id(job) not in taken]
        return batch

    def _plan(self, job: Job, waiting: Sequence[Job]) -> None:
        """Gives the job, and those waiting that begin alike, their prefix."""
        job.planned = True
        if not self._shares or not can_share(job.request):
            return
        job.prefix = self._pinned_for(job.request)
        start = job.cached
        tokens = job.request.tokens
        key = (job.request.adapter, job.request.tenant)
        alike = [
            other
            for other in waiting
            if not other.planned
            and (other.request.adapter, other.request.tenant) == key
            and can_share(other.request)
            and other.request.tokens[: start + MIN_SHARED] == tokens[: start + MIN_SHARED]
        ]
        if not alike:
            return
        # At least one token must be left to compute, or there is no state to predict from.
        sequences = [tokens, *(other.request.tokens for other in alike)]
        shared = tokens[: min(common_length(sequences), min(map(len, sequences)) - 1)]
        if len(shared) - start >= MIN_SHARED:
            job.prefix = self._build(shared, job.request.adapter, job.prefix)
        for other in alike:
            other.planned, other.prefix = True, job.prefix

    def _pinned_for(self, request: Request) -> Prefix | None:
        fitting = [
            prefix
            for prefix in self.pinned.get(request.adapter, ())
            if len(prefix) < len(request.tokens) and request.tokens[: len(prefix)] == prefix.tokens
        ]
        return max(fitting, key=len, default=None)


def common_length(sequences: Sequence[tuple[int, ...]]) -> int:
    """How many first tokens all sequences share: those that the smallest and the largest do."""
    first, last = min(sequences), max(sequences)
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


def fail_all(jobs: Sequence[Job], error: BaseException) -> None:
    """Ends jobs with an error of their own kind."""
    for job in jobs:
        wrapped = error if isinstance(error, BedplateError) else RuntimeError(f"the engine failed on a step: {error!r}")
        if wrapped is not error:
            wrapped.__cause__ = error
        job.stream.fail(wrapped)
