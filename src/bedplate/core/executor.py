"""Run jobs: here, one after the other. Other executors run the same jobs elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Job(Generic[T]):
    """A named piece of work."""

    name: str
    call: Callable[[], T]


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What became of a job: its value, or the exception that ended it; wall time in seconds."""

    name: str
    value: T | None
    error: Exception | None
    seconds: float


class Executor(Protocol):
    """Runs jobs and yields their outcomes; the failure of one does not stop the others."""

    def run(self, jobs: Iterable[Job[T]]) -> Iterator[Outcome[T]]: ...


class LocalExecutor:
    """Runs jobs in order in this process; each outcome is yielded before the next job starts."""

    def run(self, jobs: Iterable[Job[T]]) -> Iterator[Outcome[T]]:
        """An exception becomes the outcome's error; KeyboardInterrupt and SystemExit pass through."""
        for job in jobs:
            start = time.perf_counter()
            value, error = None, None
            try:
                value = job.call()
            except Exception as caught:
                error = caught
            yield Outcome(job.name, value, error, time.perf_counter() - start)
