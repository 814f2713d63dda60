"""Limits of a key: requests and tokens a minute, concurrent calls, and what it spends by day and month."""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter, SlidingWindowCounterRateLimiter

from bedplate.core.errors import UsageError
from bedplate.core.files import file_lock
from bedplate.serving.callers.api_keys import Key
from bedplate.serving.schemas.http_errors import DiskOutage, LimitError

_MINUTE = 60.0


class KeyWindows:
    """The windows of all keys, in memory: a restart forgets them. Used from the event loop only."""

    def __init__(self) -> None:
        self._storage = MemoryStorage()
        self._requests = MovingWindowRateLimiter(self._storage)
        self._tokens = SlidingWindowCounterRateLimiter(self._storage)
        self._running: Counter[str] = Counter()

    def begin(self, key: Key) -> None:
        """Counts a call of this key. LimitError 429 when it is one too many; then nothing is counted."""
        max_concurrent = key.limits.concurrent
        if max_concurrent is not None and self._running[key.id] >= max_concurrent:
            raise LimitError(f"this API key may run {max_concurrent} calls at once; wait for one to end", 1.0)
        per_minute = key.limits.requests_per_minute
        if per_minute is not None:
            rate_limit = RateLimitItemPerMinute(per_minute)
            if not self._requests.hit(rate_limit, "requests", key.id):
                reset = self._requests.get_window_stats(rate_limit, "requests", key.id).reset_time
                raise _too_fast(f"ask {per_minute} times", reset - time.time())
        self._running[key.id] += 1

    def end(self, id_: str) -> None:
        self._running[id_] -= 1
        if self._running[id_] <= 0:
            del self._running[id_]

    def need_tokens(self, key: Key, count: int) -> None:
        """LimitError 429 when `count` more tokens do not fit into this minute."""
        token_limit = key.limits.tokens_per_minute
        if token_limit is None:
            return
        rate_limit = RateLimitItemPerMinute(token_limit)
        if count > token_limit:
            message = f"the prompt has {count} tokens, and this API key may use {token_limit} a minute"
            raise LimitError(f"{message}; send a shorter one", _MINUTE)
        if not self._tokens.test(rate_limit, "tokens", key.id, cost=max(count, 1)):
            # The window lets go evenly: what is missing frees at the rate at which it was used, at most in a minute.
            raise _too_fast(f"use {token_limit} tokens", _MINUTE * min(1.0, count / token_limit))

    def use_tokens(self, key: Key, count: int) -> None:
        """Counts tokens that were computed, also those over the limit: a long answer is a debt of the next calls. Below
        nought they are given back, as many as this minute still has."""
        token_limit = key.limits.tokens_per_minute
        if token_limit is None or not count:
            return
        rate_limit = RateLimitItemPerMinute(token_limit)
        name, expiry = rate_limit.key_for("tokens", key.id), rate_limit.get_expiry()
        if count < 0:
            count = -min(-count, self._storage.get_sliding_window(name, expiry)[2])
        self._storage.acquire_sliding_window_entry(name, limit=2**62, expiry=expiry, amount=count)

    def headers(self, key: Key) -> dict[str, str]:
        """x-ratelimit-*, as the OpenAI API names them, for the limits that the key has."""
        headers: dict[str, str] = {}
        windows = (
            ("requests", self._requests, key.limits.requests_per_minute),
            ("tokens", self._tokens, key.limits.tokens_per_minute),
        )
        for resource, limiter, limit in windows:
            if limit is not None:
                stats = limiter.get_window_stats(RateLimitItemPerMinute(limit), resource, key.id)
                seconds = max(0.0, stats.reset_time - time.time())
                reset = f"{seconds:.3f}s" if seconds < _MINUTE else f"{int(seconds // 60)}m{seconds % 60:.0f}s"
                values = {"limit": str(limit), "remaining": str(stats.remaining), "reset": reset}
                headers |= {f"x-ratelimit-{name}-{resource}": value for name, value in values.items()}
        return headers


def _too_fast(allowance: str, seconds: float) -> LimitError:
    wait = max(1.0, seconds)
    return LimitError(f"this API key may {allowance} a minute; try again in {math.ceil(wait)} s", wait)


log = logging.getLogger("bedplate.serving")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS spent (
    key TEXT NOT NULL, period TEXT NOT NULL, tokens INTEGER NOT NULL, usd REAL NOT NULL, PRIMARY KEY (key, period)
) WITHOUT ROWID
"""
_ADD = """
INSERT INTO spent VALUES (?, ?, ?, ?)
ON CONFLICT (key, period) DO UPDATE SET tokens = tokens + excluded.tokens, usd = usd + excluded.usd
"""


@dataclass(frozen=True)
class Spending:
    tokens: int = 0
    usd: float = 0.0


def _periods(moment: datetime) -> tuple[str, str]:
    """The names of the day and the month, in UTC."""
    return moment.strftime("%Y-%m-%d"), moment.strftime("%Y-%m")


class SpendLedger:
    """The spending of one server. Open it once; close it at the end. `clock` gives the time in UTC."""

    def __init__(self, path: Path, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._path, self._clock = path, clock
        self._held: contextlib.ExitStack | None = None
        self._totals: dict[tuple[str, str], Spending] = {}
        self._adding = threading.Lock()
        self._queue: queue.SimpleQueue[tuple[str, str, int, float] | None] = queue.SimpleQueue()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(self._connect()) as connection, connection:
                connection.execute(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise self._unreadable(error) from error
        self._read()
        self._thread = threading.Thread(target=self._write, name="bedplate-spending", daemon=True)
        self._thread.start()

    def _unreadable(self, error: Exception) -> UsageError:
        return UsageError(f"{self._path} cannot be opened: {error}; choose another state directory")

    def _read(self) -> None:
        """Takes in what is written: of each sum the larger one, since some of it may not be written yet."""
        try:
            with contextlib.closing(self._connect()) as connection:
                rows = connection.execute("SELECT key, period, tokens, usd FROM spent").fetchall()
        except sqlite3.Error as error:
            raise self._unreadable(error) from error
        current = set(_periods(self._clock()))
        with self._adding:
            for key, period, tokens, usd in rows:
                if period in current:
                    before = self._totals.get((key, period), Spending())
                    self._totals[key, period] = Spending(max(tokens, before.tokens), max(usd, before.usd))

    def hold(self) -> None:
        """From now on this server's alone: two that count a key's quota apart would both grant it. UsageError where
        another server holds it."""
        if self._held is not None:
            return
        lock = contextlib.ExitStack()
        try:
            lock.enter_context(file_lock(self._path.with_suffix(".lock"), wait=False))
        except UsageError as error:
            message = f"{self._path.parent}: another server counts the quotas of keys here, and each would grant them"
            raise UsageError(f"{message}; give each server its own `state`") from error
        try:
            self._read()  # what the server before has counted since this ledger was opened
        except UsageError:
            lock.close()
            raise
        self._held = lock

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=30)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection

    def spent(self, id_: str) -> tuple[Spending, Spending]:
        day, month = _periods(self._clock())
        return self._totals.get((id_, day), Spending()), self._totals.get((id_, month), Spending())

    def add(self, id_: str, tokens: int, usd: float) -> None:
        day, month = _periods(self._clock())
        with self._adding:
            for period in (day, month):
                if (id_, period) not in self._totals:  # one has begun for this key; nobody asks for those before it
                    for of in [of for of in self._totals if of[1] < (day if len(of[1]) == len(day) else month)]:
                        del self._totals[of]
                before = self._totals.get((id_, period), Spending())
                self._totals[id_, period] = Spending(before.tokens + tokens, before.usd + usd)
                self._queue.put((id_, period, tokens, usd))

    def need(self, key: Key) -> None:
        """LimitError 429 for a key that has spent what it may."""
        quota = key.quota
        if quota.unlimited:
            return
        day, month = self.spent(key.id)
        current_time = self._clock()
        midnight = current_time.replace(hour=0, minute=0, second=0, microsecond=0)
        tomorrow = midnight + timedelta(days=1)
        next_month = (midnight.replace(day=1) + timedelta(days=32)).replace(day=1)
        for used, limit, period, until in (
            (day.usd, quota.usd_per_day, "a day", tomorrow),
            (day.tokens, quota.tokens_per_day, "a day", tomorrow),
            (month.usd, quota.usd_per_month, "a month", next_month),
            (month.tokens, quota.tokens_per_month, "a month", next_month),
        ):
            if limit is not None and used >= limit:
                allowed = f"{limit:g} USD" if isinstance(limit, float) else f"{limit} tokens"
                message = f"this API key has spent its {allowed} {period}"
                message += f"; it can be used again at {until:%Y-%m-%d} 00:00 UTC"
                raise LimitError(message, (until - current_time).total_seconds(), "insufficient_quota")

    def _write(self) -> None:
        waiting: dict[tuple[str, str], Spending] = {}
        """Sums: while a disk is full, they stay as many as there are keys."""
        ending, outage = False, DiskOutage()
        while not ending or waiting:
            if not ending:
                with contextlib.suppress(queue.Empty):
                    # What could not be written is tried again after a while.
                    row = self._queue.get(timeout=5.0 if waiting else None)
                    while True:
                        ending |= row is None
                        if row is not None:
                            id_, period, tokens, usd = row
                            before = waiting.get((id_, period), Spending())
                            waiting[id_, period] = Spending(before.tokens + tokens, before.usd + usd)
                        row = self._queue.get_nowait()
            try:
                with contextlib.closing(self._connect()) as connection, connection:
                    connection.executemany(_ADD, [(*of, spent.tokens, spent.usd) for of, spent in waiting.items()])
                waiting.clear()
            except sqlite3.Error as error:
                if not outage.covers(error):
                    log.error("what API keys spent cannot be written to %s: %s", self._path, error)
                if ending:
                    return

    def close(self) -> None:
        """Writes what is left."""
        self._queue.put(None)
        self._thread.join()
        if self._held is not None:
            self._held.close()
