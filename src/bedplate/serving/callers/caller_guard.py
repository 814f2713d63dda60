"""Authenticates callers and admits their calls within the limits of their keys: requests and tokens a minute, calls at
once, and what they spend by day and month."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import queue
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter, SlidingWindowCounterRateLimiter

from bedplate.core.endpoint_spec import is_loopback
from bedplate.core.errors import ConfigError, UsageError
from bedplate.core.files import file_lock
from bedplate.serving.callers.api_keys import Key, KeysFile, KeyStore
from bedplate.serving.schemas.http_errors import DiskOutage, LimitError, StatusError
from bedplate.serving.settings.server_config import ServerConfig, state_directory

_MINUTE = 60.0
GATHER_SECONDS = 0.1
"""Time in which the calls that one transaction counts come together: each opens the file and writes its journal."""


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
        self._lock: contextlib.ExitStack | None = None
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

    def acquire(self) -> None:
        """From now on this server's alone: two that count a key's quota apart would both grant it. UsageError where
        another server holds it."""
        if self._lock is not None:
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
        self._lock = lock

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
        """LimitError 429 for a key that has used up its quota."""
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
                    time.sleep(0.0 if row is None else GATHER_SECONDS)
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
        if self._lock is not None:
            self._lock.close()


_CHALLENGE = {"www-authenticate": "Bearer"}


@dataclass(frozen=True)
class Caller:
    """The caller of a request. key: the id of its API key, "" on a server without keys. tenant: callers of one tenant
    share cached prompts. models: the names it may use, None all."""

    key: str = ""
    tenant: str = ""
    admin: bool = True
    models: frozenset[str] | None = None

    def may_use(self, name: str) -> bool:
        return self.models is None or name in self.models

    def need_admin(self) -> None:
        """StatusError 403 for a caller that may not change or watch the server."""
        if not self.admin:
            raise StatusError(403, "this needs an API key with admin rights", "admin_required")


class AdmittedCall:
    """A call within the limits of its key; `end` it when the call is over."""

    def __init__(self, guard: CallerGuard, key: Key | None, counted: bool) -> None:
        self._guard, self._key, self._counted = guard, key, counted
        self._running = key is not None and counted
        self._prompt_tokens = 0

    def ask_tokens(self, count: int) -> None:
        """LimitError when a prompt of this many tokens exceeds the key's limit."""
        if self._key is not None and self._counted:
            self._guard.windows.need_tokens(self._key, count)

    def take_tokens(self, count: int) -> None:
        """Counts a prompt's tokens as soon as it is queued."""
        self._prompt_tokens += count
        if self._key is not None and self._counted:
            self._guard.windows.use_tokens(self._key, count)

    def settle(self, tokens: int, usd: float) -> None:
        """What was computed in the end, the prompt's tokens included, and its price. Of a prompt that was counted and
        not computed (its request was refused, or its client left before) the tokens are given back."""
        if self._key is None:
            return
        if self._counted:
            self._guard.windows.use_tokens(self._key, tokens - self._prompt_tokens)
        self._prompt_tokens = 0
        if self._guard.ledger is not None and (tokens or usd):
            self._guard.ledger.add(self._key.id, tokens, usd)

    def headers(self) -> dict[str, str]:
        """Rate-limit headers of the reply."""
        return self._guard.windows.headers(self._key) if self._key is not None and self._counted else {}

    def end(self) -> None:
        """The call is over; a second time does nothing. What was computed may still be settled."""
        if self._key is not None and self._running:
            self._guard.windows.end(self._key.id)
            self._running = False


class CallerGuard:
    """Identifies callers by their keys and counts their usage. Without keys every caller is `anybody`."""

    def __init__(
        self, store: KeyStore | None = None, ledger: SpendLedger | None = None, anybody: Caller | None = None
    ) -> None:
        self._store, self._anybody = store, anybody or Caller()
        self.ledger = ledger
        self.windows = KeyWindows()
        self._refreshing: asyncio.Future[None] | None = None

    @property
    def has_keys(self) -> bool:
        return self._store is not None

    def compare(self, served: Callable[[], Iterable[str]]) -> None:
        """Logs which keys name a model that is not `served`, now and whenever the keys change."""
        if self._store is not None:
            self._store.compare(served)

    async def refresh(self) -> None:
        """Waits, where the keys file has changed, until it is read, which is done beside the loop. What a key may do is
        then what the file says."""
        if self._store is None or self._store.is_current:
            return
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.ensure_future(self._read_again(self._store))
        await asyncio.shield(self._refreshing)

    async def _read_again(self, store: KeyStore) -> None:
        if await asyncio.to_thread(store.refresh):
            asyncio.get_running_loop().run_in_executor(None, store.warn_of_names)  # no request waits for it

    def identify(self, headers: Mapping[str, str]) -> Caller:
        """The caller of a request with these headers. StatusError 401 without a right key."""
        if self._store is None:
            return self._anybody
        api_key = _key_of(headers)
        key = self._store.recognise(api_key)
        if key is None:
            raise _refused("the API key is not one of this server's")
        if (state := key.state(datetime.now(UTC))) != "active":
            refusal = _refused(f"the API key {key.id} is {state}")
            refusal.facts["key"] = key.id
            raise refusal
        return _caller(key, key.tenant or f"key:{key.id}")

    def with_rights_of_now(self, caller: Caller) -> Caller:
        """The same caller with what its key may do now; what becomes of a key that is gone is `admit`'s to say."""
        key = None if self._store is None else self._store.get(caller.key)
        return caller if key is None else _caller(key, caller.tenant)

    def admit(self, caller: Caller, counted: bool = True) -> AdmittedCall:
        """Lets a call in, or raises LimitError. counted: False for a call that the server makes in the caller's name,
        which has a quota but no rate."""
        if self._store is None or not caller.key:
            return AdmittedCall(self, None, False)
        key = self._store.get(caller.key)
        if key is None or key.state(datetime.now(UTC)) != "active":
            raise _refused("the API key is no longer one of this server's")
        if self.ledger is not None:
            self.ledger.need(key)
        if counted:
            self.windows.begin(key)
        return AdmittedCall(self, key, counted)

    def headers(self, caller: Caller) -> dict[str, str]:
        """Rate-limit headers of the reply to a call that was not admitted."""
        key = None if self._store is None else self._store.get(caller.key)
        return {} if key is None else self.windows.headers(key)

    def close(self) -> None:
        if self.ledger is not None:
            self.ledger.close()


def _caller(key: Key, tenant: str) -> Caller:
    """The caller that a key identifies, with its rights."""
    return Caller(key.id, tenant, key.admin, None if key.models == "all" else frozenset(key.models))


def _refused(message: str) -> StatusError:
    return StatusError(401, message, "invalid_api_key", headers=_CHALLENGE)


def _key_of(headers: Mapping[str, str]) -> str:
    """The key in `Authorization: Bearer`, or in x-api-key."""
    authorization = headers.get("authorization")
    if authorization is None:
        api_key = headers.get("x-api-key")
        if api_key is None:
            raise _refused("an API key is needed: send the header `Authorization: Bearer bp_…` or `x-api-key: bp_…`")
        return api_key.strip()
    scheme, _, api_key = authorization.partition(" ")
    if scheme.lower() != "bearer":
        raise _refused("the Authorization header must be `Bearer` and an API key")
    return api_key.strip()


def check_open(config: ServerConfig) -> None:
    """UsageError for a server that would be open to other machines without saying so."""
    if config.keys is None and not config.open and not is_loopback(config.host):
        raise UsageError(
            f"{config.host} can be reached from other machines, and there are no API keys; give a keys file "
            "(`bedplate keys create`, then --keys or `keys:` in the server's file), or say --open"
        )


def guard_for(config: ServerConfig) -> CallerGuard:
    """The guard of a server. UsageError for one that would be open to other machines without saying so."""
    check_open(config)
    if config.keys is None:
        local = is_loopback(config.host)
        if not local:
            log.warning("open to every machine that reaches %s: there are no API keys", config.host)
        # Whoever reaches an open server may use its models; changing it stays with this machine's users.
        return CallerGuard(anybody=Caller(admin=local))

    ledger = SpendLedger(state_directory(config.state) / "spending.sqlite")

    def check(file: KeysFile) -> None:
        dear = next((key for key in file.keys if key.quota.in_dollars), None)
        if dear is not None and config.price is None:
            message = f"{config.keys}: the key {dear.id} has a quota in dollars, but the server has no `price`"
            raise ConfigError(f"{message}; add it")
        if not all(key.quota.unlimited for key in file.keys):
            ledger.acquire()

    try:
        return CallerGuard(KeyStore(config.keys, check), ledger)
    except BaseException:
        ledger.close()
        raise
