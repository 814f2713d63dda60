"""Spending of each key by day and month, kept across restarts in SQLite.

The totals are held in memory and written by a thread of their own, so that a slow disk holds up no reply. A process
that is killed loses what its last moments spent; one that is stopped loses nothing.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from bedplate.core.errors import UsageError
from bedplate.serving.callers.api_keys import Key
from bedplate.serving.schemas.http_errors import QuotaError

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


def _utc_now() -> datetime:
    return datetime.now(UTC)


def _periods(moment: datetime) -> tuple[str, str]:
    """The names of the day and the month, in UTC."""
    return moment.strftime("%Y-%m-%d"), moment.strftime("%Y-%m")


class SpendLedger:
    """The spending of one server. Open it once; close it at the end. `clock` gives the time in UTC."""

    def __init__(self, path: Path, clock: Callable[[], datetime] = _utc_now) -> None:
        self._path, self._clock = path, clock
        self._totals: dict[tuple[str, str], Spending] = {}
        self._queue: queue.SimpleQueue[tuple[str, str, int, float] | None] = queue.SimpleQueue()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(self._connect()) as connection, connection:
                connection.execute(_SCHEMA)
                rows = connection.execute("SELECT key, period, tokens, usd FROM spent").fetchall()
        except (OSError, sqlite3.Error) as error:
            raise UsageError(f"{path} cannot be opened: {error}; choose another state directory") from error
        current = set(_periods(clock()))
        self._totals = {(key, period): Spending(tokens, usd) for key, period, tokens, usd in rows if period in current}
        self._thread = threading.Thread(target=self._write, name="bedplate-spending", daemon=True)
        self._thread.start()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=30)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection

    def spent(self, id_: str) -> tuple[Spending, Spending]:
        """What a key has spent today and this month."""
        day, month = _periods(self._clock())
        return self._totals.get((id_, day), Spending()), self._totals.get((id_, month), Spending())

    def add(self, id_: str, tokens: int, usd: float) -> None:
        """Counts what a call cost."""
        day, month = _periods(self._clock())
        for period in (day, month):
            if (id_, period) not in self._totals:  # one has begun for this key; nobody asks for those before it
                for of in [of for of in self._totals if of[1] < (day if len(of[1]) == len(day) else month)]:
                    del self._totals[of]
            before = self._totals.get((id_, period), Spending())
            self._totals[id_, period] = Spending(before.tokens + tokens, before.usd + usd)
            self._queue.put((id_, period, tokens, usd))

    def need(self, key: Key) -> None:
        """QuotaError 429 for a key that has spent what it may."""
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
                message = (
                    f"this API key has spent its {allowed} {period}; it can be used again at {until:%Y-%m-%d} 00:00 UTC"
                )
                raise QuotaError(message, (until - current_time).total_seconds())

    def _write(self) -> None:
        waiting: dict[tuple[str, str], Spending] = {}
        """Sums: while a disk is full, they stay as many as there are keys."""
        ending = False
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
                log.error("what API keys spent cannot be written to %s: %s", self._path, error)
                if ending:
                    return

    def close(self) -> None:
        """Writes what is left."""
        self._queue.put(None)
        self._thread.join()
