"""Keeps answered calls and users' feedback on them, as far as the server's file consents."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.types import ASGIApp

from bedplate.core.errors import RequestError
from bedplate.inference.engine.scheduler import may_queue
from bedplate.serving.durable.feedback_store import DIRECTORY, GOOD, FeedbackStore, Owner, Place, Row, plain_id
from bedplate.serving.durable.state_directory import StateDirectory
from bedplate.serving.models.served import Served
from bedplate.serving.request.server_state import FinishedCall, SilentObserver
from bedplate.serving.schemas.http_errors import DiskOutage, StatusError, is_full
from bedplate.serving.schemas.strict_json import parse_json
from bedplate.serving.settings.redaction import RedactionTimeout, Redactor
from bedplate.serving.settings.server_config import JUDGED_WRONG, FeedbackConfig, KeepRule

log = logging.getLogger("bedplate.serving")
T = TypeVar("T")
OwnerFields = tuple[str, str, int | None]
"""The fields of an `Owner`, as a plain tuple (see `Place`)."""

MAX_OWNERS = 500_000
"""Replies, the latest ones, of which feedback is taken."""
MAX_FEEDBACK_PER_REPLY = 16
"""Times that something is said of one reply: each is a line on the disk, which is in no tenant's part of it."""
SAID_CHARACTERS = 64 * 1024 * 1024
"""Size of the corrections held in memory for the comparison of routes; the files have all of them."""
MAX_PENDING, PENDING_BYTES = 10_000, 64 * 1024 * 1024
"""Replies that wait to be written, and bytes of them and their requests; more are counted and not kept."""
GATHER_SECONDS = 0.02
"""Time in which the replies that are written at once come together: each writing locks and opens their files."""
SWEEP_SECONDS = 3600.0


class Feedback:
    """Keeps what consent allows of every answered call, in a thread of its own; replies do not wait for it."""

    def __init__(self, directory: StateDirectory, config: FeedbackConfig, outage: DiskOutage) -> None:
        self._directory, self._config, self._outage = directory, config, outage
        self._store: FeedbackStore | None = None
        self._writer: ThreadPoolExecutor | None = None
        self._reader: ThreadPoolExecutor | None = None
        self._redactors: dict[tuple[Any, ...], Redactor] = {}
        self._pending: deque[tuple[FinishedCall, KeepRule]] = deque()
        self._bytes: Counter[str] = Counter()
        """Bytes that wait or are being written, by tenant."""
        self._counting = threading.Lock()
        self._owners: Latest[OwnerFields] = Latest(MAX_OWNERS)
        self._since: Latest[OwnerFields] | None = None
        """Replies since the reading of the files began that is under way."""
        self._reading = asyncio.Lock()
        self._generation = ""
        self.targets: Latest[str | None] = Latest(MAX_OWNERS, SAID_CHARACTERS)
        """Reply id → what its first choice should have been; None: it was called good as it is; `JUDGED_WRONG`: bad."""
        self._places: Latest[Place] = Latest(MAX_OWNERS)
        self._feedback_places: Latest[tuple[Place, ...]] = Latest(MAX_OWNERS)
        """Reply id → where it is written, and what was said of it. Both are used by the writer's thread only."""
        self.counts: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def running(self, app: ASGIApp) -> AsyncGenerator[None]:
        """Reads whose replies there are, and forgets what is too old, then and every hour."""
        self._store = FeedbackStore(self._directory.acquire() / DIRECTORY)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="bedplate-feedback")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="bedplate-feedback-reader")
        await self.run_in_writer(self._store.finish_erasures)
        await self._read()
        sweeping = asyncio.create_task(self._sweep())
        try:
            yield
        finally:
            sweeping.cancel()
            self._writer.shutdown()
            self._reader.shutdown()

    @property
    def store(self) -> FeedbackStore:
        """StatusError 404 where nothing is kept."""
        if self._store is None:
            raise StatusError(404, "this server keeps no feedback", "feedback_not_kept")
        return self._store

    async def run_in_writer(self, call: Callable[[], T]) -> T:
        """Runs in the writer's thread, after what waits there."""
        assert self._writer is not None
        return await asyncio.wrap_future(self._writer.submit(call))

    async def run_in_reader(self, call: Callable[[], T]) -> T:
        """Runs in a thread in which no feedback waits, after the calls that have ended are written."""
        assert self._reader is not None
        await self.run_in_writer(lambda: None)
        return await asyncio.wrap_future(self._reader.submit(call))

    # --- calls

    def finished(self, call: FinishedCall) -> None:
        """An observer's part: notes whose reply it is, and queues what may be kept."""
        rule = self._config.rule(call.served.name)
        if self._writer is None or rule is None or not call.answers or isinstance(call.origin, SilentObserver):
            return
        if len(self._pending) >= MAX_PENDING or not self._reserve_memory(call):
            self.counts["dropped"] += 1
            return
        owner = (call.caller.tenant, call.served.name, len(call.answers))
        self._owners.note(call.id, owner)
        if self._since is not None:
            self._since.note(call.id, owner)
        self._pending.append((call, rule))
        if len(self._pending) == 1:
            self._writer.submit(self._write).add_done_callback(_log_failure)

    def _reserve_memory(self, call: FinishedCall) -> bool:
        """Counts what a call takes of memory until it is written, where there is room for it."""
        tenant, size = call.caller.tenant, _bytes_of(call)
        with self._counting:
            crowded = self._bytes.total() > 0 and self._bytes.total() + size > PENDING_BYTES
            if crowded and not may_queue(PENDING_BYTES, self._bytes, tenant, size):
                return False
            self._bytes[tenant] += size
            return True

    def _write(self) -> None:
        time.sleep(GATHER_SECONDS)
        waiting: list[tuple[FinishedCall, KeepRule]] = []
        while self._pending:
            waiting.append(self._pending.popleft())
        try:
            self._write_down(waiting)
        finally:
            with self._counting:
                for call, _ in waiting:
                    self._bytes[call.caller.tenant] -= _bytes_of(call)
                self._bytes += Counter()  # in place: those that have nothing left are gone

    def _write_down(self, waiting: Sequence[tuple[FinishedCall, KeepRule]]) -> None:
        by_model: dict[str, list[Row]] = {}
        for call, rule in waiting:
            try:
                by_model.setdefault(call.served.name, []).append(self._row(call, rule))
            except Exception as error:
                self._lose(1, error)
        for model, rows in by_model.items():
            self._append(model, rows)

    def _append(self, model: str, rows: Sequence[Row]) -> None:
        try:
            for row, place in zip(rows, self.store.append(model, rows), strict=True):
                self._places.note(row["id"], place)
            self.counts["kept"] += len(rows)
        except Exception as error:
            if is_full(error) or len(rows) == 1:  # a full disk takes none of them
                self._lose(len(rows), error)
            else:  # one row that cannot be written keeps no other from being kept
                for row in rows:
                    self._append(model, [row])

    def _lose(self, replies: int, error: Exception) -> None:
        self.counts["dropped"] += replies
        if not self._outage.covers(error):
            log.error("%d replies could not be kept: %s", replies, error, exc_info=error)

    def _row(self, call: FinishedCall, rule: KeepRule) -> Row:
        row: Row = {"kind": "reply", "id": call.id, "tenant": call.caller.tenant, "endpoint": call.endpoint}
        row["choices"] = len(call.answers)
        if not sampled(call.id, rule.sample):
            return row
        texts: Row = {}
        if rule.requests:
            inputs = inputs_of(call.served, call.request.skin_inputs, len(call.answers))
            request = call.request.model_dump(mode="json", exclude_none=True) if inputs is None else {}
            texts |= {"request": request} if inputs is None else {"inputs": inputs}
        if rule.replies:
            texts["replies"] = [answer.text for answer in call.answers]
        try:
            return {**row, **_cleaned(texts, self.redactor(rule))}
        except RedactionTimeout:
            self.counts["redaction_timeouts"] += 1
            return row

    def redactor(self, rule: KeepRule) -> Redactor:
        if rule.redact not in self._redactors:
            self._redactors[rule.redact] = Redactor(rule.redact)
        return self._redactors[rule.redact]

    # --- feedback

    async def owned(self, id_: str, tenant: str) -> tuple[str, Owner]:
        """A reply's plain id, and what is known of it. StatusError 404 also for another tenant's."""
        store, plain = self.store, plain_id(id_)
        if store.generation != self._generation:
            await self._read()
        fields = None if plain is None else self._owners.get(plain)
        if plain is None or fields is None or (owner := Owner(*fields)).tenant != tenant:
            raise _unknown(id_)
        return plain, owner

    async def record(self, id_: str, model: str, tenant: str, feedback: Row) -> None:
        """Keeps what was said, on the disk. StatusError 409 where enough was said of this reply."""
        rule = self._config.rule(model)
        redactor = self.redactor(rule or KeepRule())
        try:
            cleaned = {name: _cleaned(feedback[name], redactor) for name in ("correction", "comment")}
        except RedactionTimeout:
            raise RequestError("the text cannot be searched for what must not be kept; send a shorter one") from None
        row: Row = {"kind": "feedback", "id": id_, "tenant": tenant, **feedback, **cleaned}

        def write() -> None:
            if id_ not in self._owners:
                raise _unknown(id_)
            places = self._feedback_places.get(id_, ())
            if len(places) >= MAX_FEEDBACK_PER_REPLY:
                message = f"feedback was given {MAX_FEEDBACK_PER_REPLY} times to this reply, which is the most"
                raise StatusError(409, message, "too_much_feedback", "id")
            self._feedback_places.note(id_, (*places, *self.store.append(model, [row])))

        await self.run_in_writer(write)
        _note(self.targets, row)
        self.counts["feedback"] += 1

    async def forget(self, id_: str) -> int:
        """Writes a reply out of the files. Returns how many lines are gone."""

        def erase() -> int:
            reply = [self._places[id_]] if id_ in self._places else []
            erased_count = self.store.erase(id_, (*reply, *self._feedback_places.get(id_, ())))
            for latest in (self._places, self._feedback_places, self._owners, self._since):
                if latest is not None:  # before feedback that waits for this thread is written
                    latest.forget(id_)
            return erased_count

        erased_count = await self.run_in_writer(erase)
        self._owners.forget(id_)  # in case the files were read again meanwhile
        self.targets.forget(id_)
        return erased_count

    async def _read(self) -> None:
        """Whose replies are kept, and what was said of them, from the files."""
        async with self._reading:
            self._since = Latest(MAX_OWNERS)
            self._generation = self.store.generation

            def read() -> tuple[Latest[OwnerFields], Latest[str | None]]:
                owners, targets, self._places, self._feedback_places = _remembered(self.store)
                return owners, targets

            # What waits to be written comes before this in the writer's thread.
            owners, self.targets = await self.run_in_writer(read)
            for id_, owner in list(self._since.items()):  # the writer's thread may erase one meanwhile
                owners.note(id_, owner)
            self._owners, self._since = owners, None

    async def _sweep(self) -> None:
        def days(model: str) -> int | None:
            rule = self._config.rule(model)
            return None if rule is None else rule.days

        while True:
            deleted_files = await self.run_in_writer(lambda: self.store.sweep(days))
            if deleted_files:
                async with self._reading:
                    await self._forget_files(deleted_files)
            await asyncio.sleep(SWEEP_SECONDS)

    async def _forget_files(self, deleted: Collection[str]) -> None:
        """Forgets the replies whose lines were in these files; what is said of a reply is never older than it."""

        def forget() -> list[str]:
            ids = [id_ for id_, (file, _) in self._places.items() if file in deleted]
            for id_ in ids:
                self._places.forget(id_)
                self._feedback_places.forget(id_)
            return ids

        for id_ in await self.run_in_writer(forget):
            self._owners.forget(id_)
            self.targets.forget(id_)


def _unknown(id_: str) -> StatusError:
    message = (
        f"no reply {id_[:80]!r} of this tenant is known; those of models that `feedback.keep` names are, for its `days`"
    )
    return StatusError(404, message, "reply_not_found", "id")


def _bytes_of(call: FinishedCall) -> int:
    """About as many as its request and its answers have."""
    return call.size + sum(len(answer.text) for answer in call.answers)


def sampled(id_: str, share: float) -> bool:
    """Whether a call's texts are kept: its id is random, so this is too, and the same for whoever asks."""
    return int(id_[:13], 16) < share * 16**13


def inputs_of(
    served: Served, raw_inputs: Sequence[str | dict[str, str]], answers: int
) -> list[dict[str, str] | None] | None:
    """A skin's inputs for each of the answers; None for what is no skin's, or has no inputs of its own."""
    names = served.describe().get("inputs")
    if not names or not raw_inputs or answers % len(raw_inputs):
        return None
    return [fields for raw_input in raw_inputs for fields in [_fields(raw_input, names)] * (answers // len(raw_inputs))]


def _fields(raw_input: str | dict[str, str], names: list[str]) -> dict[str, str] | None:
    """One input by name: a text stands for the only one, or is the JSON object of several."""
    if isinstance(raw_input, str) and len(names) == 1:
        return {names[0]: raw_input}
    fields = parse_json(raw_input) if isinstance(raw_input, str) else raw_input
    if not isinstance(fields, dict) or not all(isinstance(value, str) for value in fields.values()):
        return None
    return fields


def _cleaned(value: Any, redactor: Redactor) -> Any:
    """Every text in a JSON value, keys apart."""
    if isinstance(value, str):
        return redactor.clean(value)
    if isinstance(value, dict):
        return {key: _cleaned(child, redactor) for key, child in value.items()}
    if isinstance(value, list):
        return [_cleaned(child, redactor) for child in value]
    return value


def _remembered(
    store: FeedbackStore,
) -> tuple[Latest[OwnerFields], Latest[str | None], Latest[Place], Latest[tuple[Place, ...]]]:
    """Owners of the latest replies in the files, what they should have been, and where each and its feedback are."""
    owners, targets = Latest[OwnerFields](MAX_OWNERS), Latest[str | None](MAX_OWNERS, SAID_CHARACTERS)
    places, feedback_places = Latest[Place](MAX_OWNERS), Latest[tuple[Place, ...]](MAX_OWNERS)
    for model, place, row in store.lines():
        if row["kind"] == "reply":
            owners.note(row["id"], (sys.intern(row["tenant"]), model, row.get("choices")))
            places.note(row["id"], place)
        else:
            _note(targets, row)
            feedback_places.note(row["id"], (*feedback_places.get(row["id"], ()), place))
    return owners, targets, places, feedback_places


def _note(targets: Latest[str | None], row: Row) -> None:
    if row["index"] == 0 and (row["correction"] is not None or row["rating"] is not None):
        called_bad = row["correction"] is None and row["rating"] != GOOD
        if not (called_bad and targets.get(row["id"]) is not None):  # a correction says more
            targets.note(row["id"], JUDGED_WRONG if called_bad else row["correction"])


def _log_failure(written: Future[None]) -> None:
    error = written.exception()
    if error is not None:
        log.error("replies could not be kept: %s", error, exc_info=error)


V = TypeVar("V")


class Latest(OrderedDict[str, V]):
    """Values by id, bounded in number and characters; the oldest go first. Change it by `note` and `forget` only."""

    def __init__(self, max_entries: int, characters: int | None = None) -> None:
        super().__init__()
        self._max_entries, self._characters, self._size = max_entries, characters, 0

    def note(self, id_: str, value: V) -> None:
        """Enters a value; one that is there already keeps its place."""
        self._size += _size(value) - _size(self.get(id_))
        self[id_] = value
        while len(self) > self._max_entries or (self._characters is not None and self._size > self._characters):
            self._size -= _size(self.popitem(last=False)[1])

    def forget(self, id_: str) -> None:
        self._size -= _size(self.pop(id_, None))


def _size(value: object) -> int:
    return len(value) if isinstance(value, str) else 0
