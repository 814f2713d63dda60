"""Runs the engine's steps: arrivals, cancellations and deadlines, the schedule, the forward pass, departures.

Called by one thread at a time; only `add`, `open` and the cancellation of a stream are safe from other threads.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from functools import partial

from bedplate.core.errors import DeadlineError, UsageError, need_failure
from bedplate.inference.engine.adapter_table import Adapters
from bedplate.inference.engine.requests.job import RequestJob
from bedplate.inference.engine.runner import Runner
from bedplate.inference.engine.scheduled_tokens import ScheduledTokens
from bedplate.inference.engine.scheduler import Scheduler, fair_shares, weigh
from bedplate.inference.engine.stats import Counters, OnStep, StepRecord
from bedplate.inference.engine.step_budget import RecentCompute, StepBudget

log = logging.getLogger("bedplate.inference")


class Steps:
    """Takes requests from arrival to departure, step by step. on_step: called after every step."""

    def __init__(
        self,
        scheduler: Scheduler[RequestJob],
        runner: Runner,
        adapters: Adapters,
        counters: Counters,
        on_step: OnStep | None,
    ) -> None:
        self._scheduler, self._runner, self._adapters = scheduler, runner, adapters
        self._counters, self._on_step = counters, on_step
        self._arrivals: deque[RequestJob] = deque()
        self._cancelled: deque[RequestJob] = deque()
        self._deadlines: list[tuple[float, int]] = []
        self._timed: dict[int, RequestJob] = {}
        """Jobs that have a deadline, by number."""
        self._number = 0
        self._open: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._step_budget, self._recent = StepBudget(), RecentCompute()
        self.began: float | None = None
        """The start time of the running step; None between steps."""
        runner.put_back = lambda job: self._scheduler.put_back(_queue(job), job)

    def add(self, jobs: Sequence[RequestJob]) -> None:
        """Queues new jobs, in order; from one caller at a time."""
        for job in jobs:
            self._number += 1
            job.number = self._number
            job.stream.on_cancel = partial(self._cancelled.append, job)
            with self._counting:
                self._open[job.request.tenant] += 1
        self._arrivals += jobs

    @property
    def waiting(self) -> int:
        return len(self._arrivals) + self._scheduler.waiting

    def open(self) -> Counter[str]:
        """The number of waiting and running requests of each tenant. Safe from any thread."""
        with self._counting:
            return self._open.copy()

    @property
    def busy(self) -> bool:
        return bool(self._arrivals or self._runner.active or self._scheduler.waiting or self._adapters.leaving)

    def step(self) -> None:
        """Runs one step. An error in it fails the requests that were running."""
        began = self.began = time.monotonic()
        try:
            self._arrive()
            self._expire()
            self._compute(began)
        except BaseException as error:
            need_failure(error)
            # After an error outside of any request's own work, running requests cannot continue; later ones can.
            self._fail(list(self._runner.active), error)
        try:
            self._adapters.sweep()
        except Exception:
            log.exception("an unused adapter could not be freed")
        self._counters.steps += 1
        self._counters.step_seconds += time.monotonic() - began
        self.began = None

    def _compute(self, began: float) -> None:
        self._runner.tenants = len(self._open)
        self._share_rows()
        decodes = self._runner.decoding()
        reserved = sum(work.count + len(work.draft) for work in decodes)
        for work in decodes:
            self._scheduler.charge(_queue(work.job), 1)
        limit = self._step_budget.tokens(self._runner.tenants, len(decodes))
        part = None if limit is None else self._step_budget.part(limit, len(decodes))
        paused = self._recent.excessive(self.open())  # a copy: other threads add tenants meanwhile
        chunks = self._scheduler.plan(reserved, self._runner.admit, limit, part, paused)
        weighed = sum(weigh(job, count) for job, count in chunks)
        work = [*decodes, *(ScheduledTokens(job, count) for job, count in chunks)]
        before = [share.job.computed_tokens for share in work]
        ended = self._runner.execute(work)
        for job, _ in chunks:
            if job.decoding:
                self._scheduler.started(_queue(job), job)
        self._end(ended)
        seconds, weights = time.monotonic() - began, Counter[str]()
        for share in work:
            weights[share.job.request.tenant] += weigh(share.job, share.count)
        self._recent.add(seconds, weights)
        self._step_budget.record(len(decodes), weighed, seconds)
        if self._on_step is not None:
            record = _record(work, before, len(decodes), len(ended), time.monotonic() - began)
            try:
                self._on_step(record)
            except Exception:
                self._on_step = None
                log.exception("the callback on_step failed; it is not called again")

    def _share_rows(self) -> None:
        """Limits the rows of each tenant to its fair share while others wait, and preempts the youngest generations
        beyond it."""
        rows_by_tenant = Counter(job.request.tenant for job in self._runner.active if job.holds_row)
        demand = rows_by_tenant.copy()
        if self._scheduler.waiting and len(self.open()) > 1:
            demand += Counter(job.request.tenant for job in self._scheduler.pending() if job.holds_row)
        if len(demand) < 2 or demand.total() <= self._runner.max_rows:
            self._runner.shares = None
            return
        self._runner.shares = shares = fair_shares(self._runner.max_rows, demand)
        for tenant, count in rows_by_tenant.items():
            self._runner.preempt_youngest(tenant, count - shares[tenant])

    def _arrive(self) -> None:
        while self._arrivals:
            job = self._arrivals.popleft()
            if job.request.deadline is not None:
                heapq.heappush(self._deadlines, (job.request.deadline, job.number))
                self._timed[job.number] = job
            self._scheduler.add(_queue(job), job)

    def _expire(self) -> None:
        """Ends cancelled requests and those past their deadline, running or waiting."""
        ending: list[RequestJob] = []
        while self._cancelled:
            job = self._cancelled.popleft()
            if not job.over:
                try:
                    job.cancel()
                except BaseException as error:
                    need_failure(error)
                    job.failed = error
                ending.append(job)
        current_time = time.monotonic()
        while self._deadlines and (self._deadlines[0][0] <= current_time or self._deadlines[0][1] not in self._timed):
            job = self._timed.get(heapq.heappop(self._deadlines)[1])
            if job is not None and not job.over:
                job.failed = DeadlineError("the request missed its deadline; allow more time or ask for less")
                ending.append(job)
        if ending:
            self._end(ending)

    def _end(self, jobs: list[RequestJob]) -> None:
        self._runner.leave(jobs)
        self._release(jobs)

    def _release(self, jobs: Sequence[RequestJob]) -> None:
        for job in jobs:
            if not job.released:
                job.released = True
                with self._counting:
                    self._open[job.request.tenant] -= 1
                    self._open += Counter()  # removes tenants without requests
                self._timed.pop(job.number, None)
                self._scheduler.remove(_queue(job), [job])
                self._adapters.release(job.adapter)

    def _fail(self, jobs: list[RequestJob], error: BaseException) -> None:
        for job in jobs:
            job.failed = job.failed or error
        self._end(jobs)

    def abandon(self, error: BaseException) -> None:
        """Fails all running requests after an interrupt in the middle of a step, which leaves their state undefined."""
        self.began = None
        running = list(self._runner.active)
        self._runner.abandon(UsageError(f"the engine was interrupted ({type(error).__name__})"))
        self._release(running)

    def close(self, error: BaseException) -> None:
        """Fails all requests that have not ended."""
        self._arrive()
        self._fail([*self._scheduler.pending(), *self._runner.active], error)
        self._adapters.sweep()


def _record(
    work: Sequence[ScheduledTokens], before: Sequence[int], decodes: int, ended: int, seconds: float
) -> StepRecord:
    spans = tuple(
        (begin, share.count + len(share.draft), share.job.begun) for share, begin in zip(work, before, strict=True)
    )
    adapters = {id(share.job.adapter) for share in work if share.job.adapter.key is not None}
    copied = sum(begin for share, begin in zip(work, before, strict=True) if begin == share.job.cached)
    return StepRecord(spans, decodes, len(adapters), copied, ended, seconds)


def _queue(job: RequestJob) -> tuple[str, str]:
    return (job.request.skin, job.request.tenant)
