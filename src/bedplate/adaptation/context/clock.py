"""The time and money that the ladder may still spend, and what is kept of them for what comes after the search."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from bedplate.adaptation.context.outcome import RungResult
from bedplate.core.measurements import Allowance
from bedplate.core.progress import Progress

MEASURING = 0.1
"""The share of the time that may go to measuring how fast things are."""


class Clock:
    """Wall-clock seconds since the start and what they cost, with what endpoints charged; time that finished rungs took
    before counts. `seconds`, `usd`: the limits, None for no limit; usd_per_hour: what this machine costs. parent: a
    clock that time reused from an earlier run, and money, count on as well."""

    def __init__(
        self, seconds: float | None, parent: Clock | None = None, *, usd: float | None = None, usd_per_hour: float = 0.0
    ) -> None:
        self.seconds, self.usd = seconds, usd
        self.measuring = Allowance(MEASURING * self.limit)
        """What planning may take of it to learn how fast things are here."""
        self._per_second = usd_per_hour / 3600
        self._start = time.monotonic()
        self._before = 0.0
        self.outside = 0.0
        """Seconds that were taken beside the limit."""
        self.slowdown = 0.0
        """Times what it was expected to take that a fit needs which the limit ended, the most of them."""
        self._charged = 0.0
        self._parent = parent

    def add(self, seconds: float) -> None:
        """Count the time that a reused rung had taken in an earlier run."""
        self._before += seconds
        if self._parent is not None:
            self._parent.add(seconds)

    @contextmanager
    def paused(self) -> Generator[None]:
        """What is done inside takes none of the time: the set-up of a machine, which is not done again."""
        start = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - start
            self._before -= seconds
            self.outside += seconds

    def charge(self, usd: float) -> None:
        """Count what an endpoint charged."""
        self._charged += usd
        if self._parent is not None:
            self._parent.charge(usd)

    @property
    def limit(self) -> float:
        """Seconds in all; infinite without a limit."""
        return math.inf if self.seconds is None else self.seconds

    @property
    def used(self) -> float:
        """Seconds."""
        return time.monotonic() - self._start + self._before

    @property
    def spent(self) -> float:
        """US dollars: this machine's time and what endpoints charged."""
        return self.used * self._per_second + self._charged

    @property
    def usd_left(self) -> float:
        """US dollars until the money is spent; infinite without a limit."""
        return math.inf if self.usd is None else self.usd - self.spent

    @property
    def seconds_left(self) -> float:
        """Seconds until the time is spent, or the money that the machine's time takes; infinite without limits."""
        remaining = self.limit - self.used
        if self.usd is None:
            return remaining
        if self.usd_left <= 0:
            return min(remaining, 0.0)
        return remaining if self._per_second == 0 else min(remaining, self.usd_left / self._per_second)


class Stopwatch:
    """Wall-clock seconds by what they went to, and the processor's of this process (all its threads)."""

    def __init__(self) -> None:
        self.parts: dict[str, dict[str, float]] = {}
        self._processor = time.process_time()

    @contextmanager
    def timed(self, phase: str, part: str) -> Generator[None]:
        """Counts what is done inside under `phase` and `part`."""
        start = time.perf_counter()
        try:
            with Progress(f"{phase}: {part}", unit=""):
                yield
        finally:
            parts = self.parts.setdefault(phase, {})
            parts[part] = parts.get(part, 0.0) + time.perf_counter() - start

    def of(self, phase: str) -> dict[str, float]:
        """Part → seconds, to a hundredth."""
        return {name: round(seconds, 2) for name, seconds in self.parts.get(phase, {}).items()}

    @property
    def processor(self) -> float:
        """Seconds of processors, summed over threads."""
        return time.process_time() - self._processor


JUDGED = 3
"""Skins that test is expected to be asked of at most: two nominees, and the base as it is."""


def seconds_on_test(results: Sequence[RungResult], rows: int, alone: int, plain: float | None) -> float:
    """Expected seconds of test: of skins that there are as they were measured on valid, `alone` of the rows one call at
    a time; and `plain` for the next one, which is planned beside them (None where nothing follows)."""
    total = plain if plain is not None and len(results) < JUDGED else 0.0
    for result in results:
        shares = [row.seconds for row in result.evaluation.rows if row.seconds is not None]
        share = min(sum(shares) / len(shares), result.latency.mean) if shares else result.latency.mean
        total += (alone + 1) * result.latency.mean + max(0, rows - alone) * share
    return total
