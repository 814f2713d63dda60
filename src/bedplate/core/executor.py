"""Runs jobs here, one after the other, or in processes. A job names its function and holds plain values, so that other
executors can run the same jobs on other machines."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib import import_module
from multiprocessing import active_children, get_context
from typing import Any, Protocol

from bedplate.core.errors import UsageError, is_interrupt
from bedplate.core.progress import Progress, silent


@dataclass(frozen=True)
class Job:
    """A named piece of work. function: "module:function"; arguments: what it is called with, as JSON. needs: further
    arguments that cannot travel, such as a loaded base: whoever runs the job has them."""

    name: str
    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    needs: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Job:
        return cls(values["name"], values["function"], values["arguments"], tuple(values["needs"]))

    def call(self, resources: Mapping[str, Any]) -> Any:
        """What the function returns. UsageError where something that it needs is not here."""
        missing = [name for name in self.needs if name not in resources]
        if missing:
            raise UsageError(f"the job {self.name} cannot run here: it needs {', '.join(missing)}")
        module, _, function = self.function.partition(":")
        needed = {name: resources[name] for name in self.needs}
        return getattr(import_module(module), function)(**self.arguments, **needed)


@dataclass(frozen=True)
class Outcome:
    """What became of a job: its value, or the exception that ended it; wall time in seconds."""

    name: str
    value: Any
    error: Exception | None
    seconds: float


class Executor(Protocol):
    """Runs jobs and yields their outcomes in order; the failure of one does not stop the others."""

    def run(self, jobs: Iterable[Job]) -> Iterator[Outcome]: ...


class LocalExecutor:
    """Runs jobs in this process; each outcome is yielded before the next job starts. resources: what jobs may need."""

    def __init__(self, resources: Mapping[str, Any] | None = None) -> None:
        self.resources = resources or {}

    def run(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """An exception becomes the outcome's error; KeyboardInterrupt and SystemExit pass through."""
        for job in jobs:
            start = time.perf_counter()
            value, error = None, None
            try:
                with Progress(job.name, unit=""):
                    value = job.call(self.resources)
            except Exception as caught:
                if is_interrupt(caught):
                    raise KeyboardInterrupt from caught
                error = caught
            yield Outcome(job.name, value, error, time.perf_counter() - start)


class ProcessExecutor:
    """Runs jobs in new processes, so many at once. What a job needs beside its arguments is not there; what it returns
    or raises must be such that it can be pickled."""

    def __init__(self, processes: int = 1) -> None:
        self.processes = processes

    def run(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """As `LocalExecutor.run`, in each process. Whoever stops asking (an interrupt, an error) ends the processes."""
        before = set(active_children())
        # Ctrl-C reaches every process of a terminal; the one that gave the jobs ends the others.
        ignored = signal.signal, (signal.SIGINT, signal.SIG_IGN)
        with ProcessPoolExecutor(self.processes, get_context("spawn"), *ignored) as pool:
            try:
                yield from pool.map(_outcome, [json.dumps(job.to_json()) for job in jobs])
            except BaseException:
                for process in set(active_children()) - before:
                    process.terminate()
                raise


def _outcome(job: str) -> Outcome:
    with silent():  # the terminal is that of whoever gave the jobs
        return next(LocalExecutor().run([Job.from_json(json.loads(job))]))
