"""Storage of files and batches: SQLite for the records, plain files for contents.

SQLite (write-ahead log, synchronous=FULL) rather than JSON lines, because a row's output, its being done and the
batch's counts must become true together or not at all, and because what a client deletes must be gone. A row is done
when its output is committed; what a killed server had not committed is computed again, and never stands twice.

All that a tenant's files, uploads and batches take counts against its part of the disk. For a moment more is there: an
upload beside what is kept of it, the rows of a batch that ends beside its output files.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from bedplate.serving.callers.caller_guard import Caller
from bedplate.serving.durable.upload_quota import Arriving, full
from bedplate.serving.schemas.http_errors import LimitError, StatusError, is_full
from bedplate.serving.settings.server_config import BatchesConfig

SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, tenant TEXT NOT NULL, name TEXT NOT NULL,
    purpose TEXT NOT NULL, bytes INTEGER NOT NULL, created INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS batches (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, tenant TEXT NOT NULL, caller TEXT NOT NULL,
    endpoint TEXT NOT NULL, input_file TEXT NOT NULL, status TEXT NOT NULL, expires INTEGER NOT NULL,
    times TEXT NOT NULL, metadata TEXT, errors TEXT, output_file TEXT, error_file TEXT,
    total INTEGER NOT NULL DEFAULT 0, completed INTEGER NOT NULL DEFAULT 0, failed INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS rows (
    batch INTEGER NOT NULL, number INTEGER NOT NULL, custom_id TEXT NOT NULL, body TEXT NOT NULL,
    ok INTEGER, output TEXT, PRIMARY KEY (batch, number));
CREATE INDEX IF NOT EXISTS files_of ON files (tenant, bytes);
CREATE INDEX IF NOT EXISTS batches_of ON batches (tenant, status, bytes);
CREATE INDEX IF NOT EXISTS batches_by_status ON batches (status);
"""
ROW_BYTES = 300
"""What a row takes beside its texts; the line that says why it was not done is no longer."""
UNFINISHED = ("validating", "in_progress", "cancelling", "finalizing")
_WITH_ROWS = ("in_progress", "cancelling", "finalizing")


@dataclass(frozen=True)
class StoredFile:
    id: str
    tenant: str
    name: str
    purpose: str
    bytes: int
    created: int


@dataclass(frozen=True)
class StoredBatch:
    """One batch as it stands. times: when it came into each status; expires: Unix seconds."""

    seq: int
    id: str
    tenant: str
    caller: Caller
    endpoint: str
    input_file: str
    status: str
    expires: int
    times: dict[str, int]
    metadata: dict[str, str] | None
    errors: list[dict[str, Any]] | None
    output_file: str | None
    error_file: str | None
    total: int
    completed: int
    failed: int


@dataclass(frozen=True)
class DoneRow:
    batch: int
    number: int
    ok: bool
    output: str


def file_of(row: sqlite3.Row) -> StoredFile:
    return StoredFile(*tuple(row)[1:])


def batch_of(row: sqlite3.Row) -> StoredBatch:
    values: dict[str, Any] = dict(row)
    for name in ("times", "metadata", "errors"):
        values[name] = json.loads(values[name] or "null")
    del values["bytes"]
    caller: dict[str, Any] = json.loads(values["caller"])
    models = caller.pop("models")
    values["caller"] = Caller(**caller, models=None if models is None else frozenset(models))
    return StoredBatch(**values)


def dump_caller(caller: Caller) -> str:
    return json.dumps({**asdict(caller), "models": None if caller.models is None else sorted(caller.models)})


_READ_AT_ONCE = 500
MAX_ENDED_BATCHES, ENDED_SHARE = 1_000, 1 / 16
"""Batches of a tenant that are remembered after their end, and the part of its bytes that their errors may take; the
oldest are forgotten, but not their files."""
RESERVE_BYTES = 1024 * 1024
"""What the database may need to write before it has deleted something."""
PAGE_BYTES = 4 * 1024 * 1024
"""A page of a list ends early once it has so many."""
BATCH_OUTPUT = "batch_output"


class BatchStore:
    """Used from several threads; every method is one transaction."""

    def __init__(self, directory: Path, limits: BatchesConfig | None = None) -> None:
        self._limits = limits or BatchesConfig()
        self._arriving: Counter[str] = Counter()
        self._counting, self._deleting = threading.Lock(), threading.Lock()
        self._reserve = directory / "reserve"
        self._contents = directory / "files"
        self._contents.mkdir(mode=0o700, exist_ok=True)
        path = directory / "batches.sqlite"
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        for setting in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON"):
            self._db.execute(f"PRAGMA {setting}").fetchall()
        self._db.executescript(SCHEMA)
        self._remove_orphans()
        self._fill_reserve()

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection]:
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db

    def _all(self, query: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    def _remove_orphans(self) -> None:
        """Contents that a killed server had written, but not yet entered, and rows that it had not yet forgotten."""
        unfinished = f"SELECT seq FROM batches WHERE status IN ({_marks(_WITH_ROWS)})"
        with self._transaction() as db:
            db.execute(f"DELETE FROM rows WHERE batch NOT IN ({unfinished})", _WITH_ROWS)
        file_ids = {row["id"] for row in self._all("SELECT id FROM files")}
        for path in self._contents.iterdir():
            if path.name not in file_ids:
                path.unlink()

    # --- files

    def arriving(self, tenant: str) -> Arriving:
        return Arriving(tenant, self._stored_bytes(tenant), self._limits.tenant_bytes, self._arriving, self._counting)

    def is_full(self, tenant: str) -> bool:
        return self._stored_bytes(tenant) >= self._limits.tenant_bytes

    def _stored_bytes(self, tenant: str) -> int:
        with self._lock:
            return _used(self._db, tenant)

    def add_file(self, tenant: str, name: str, purpose: str, source: BinaryIO) -> StoredFile:
        """StatusError 413 where the tenant would keep more bytes or files than it may; then nothing of it is kept."""
        stored_bytes = self._stored_bytes(tenant)
        with self._writing() as (id_, file):
            while chunk := source.read(1 << 20):
                file.write(chunk)
                if stored_bytes + file.tell() > self._limits.tenant_bytes:
                    raise full(self._limits.tenant_bytes)
            size = file.tell()
        stored = StoredFile(id_, tenant, name, purpose, size, int(time.time()))
        try:
            with self._transaction() as db:
                self._need_room(db, tenant, size)
                count = db.execute("SELECT count(*) FROM files WHERE tenant = ?", (tenant,)).fetchone()[0]
                if count >= self._limits.files:
                    message = f"you keep {count:,} files here, which is the most; delete some"
                    raise StatusError(413, message, "storage_full")
                _insert_file(db, stored)
        except BaseException:
            self.content(stored).unlink()
            raise
        return stored

    def _need_room(self, db: sqlite3.Connection, tenant: str, size: int) -> None:
        """StatusError 413 where so many bytes more are too many."""
        if _used(db, tenant) + size > self._limits.tenant_bytes:
            raise full(self._limits.tenant_bytes)

    @contextmanager
    def _writing(self) -> Generator[tuple[str, BinaryIO]]:
        """A new file's id, and its content to be written; it is on the disk at the end, or not there at all."""
        id_ = f"file-{uuid.uuid4().hex}"
        path = self._contents / id_
        with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            try:
                yield id_, file
                file.flush()
                os.fsync(file.fileno())
            except BaseException:
                path.unlink()
                raise
        descriptor = os.open(self._contents, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def file(self, id_: str, tenant: str) -> StoredFile:
        """StatusError 404 also for another tenant's file."""
        rows = self._all("SELECT * FROM files WHERE id = ? AND tenant = ?", (id_, tenant))
        if not rows:
            raise StatusError(404, f"there is no file {id_[:80]!r}", "file_not_found", "file_id")
        return file_of(rows[0])

    def content(self, file: StoredFile) -> Path:
        return self._contents / file.id

    def files(
        self, tenant: str, purpose: str | None, after: str | None, limit: int, order: str
    ) -> tuple[list[StoredFile], bool]:
        """A page, and whether there are more."""
        condition, values = ("AND purpose = ?", [purpose]) if purpose is not None else ("", [])
        rows, has_more = self._page("files", tenant, condition, values, after, limit, order)
        return [file_of(row) for row in rows], has_more

    def delete_file(self, id_: str, tenant: str) -> None:
        """StatusError 404. The entry goes first: a kill between leaves bytes that the next start removes."""
        stored = self.file(id_, tenant)
        with self._deleting:  # or another deletion takes the room that this one has just freed for the reserve
            try:
                self._forget_file(stored)
            except sqlite3.OperationalError as error:
                if not is_full(error):
                    raise
                self.content(stored).unlink(missing_ok=True)
                self._reserve.unlink(missing_ok=True)
                self._all("PRAGMA wal_checkpoint(RESTART)")
                self._forget_file(stored)
            self.content(stored).unlink(missing_ok=True)
            self._fill_reserve()

    def _forget_file(self, file: StoredFile) -> None:
        with self._transaction() as db:
            db.execute("DELETE FROM files WHERE id = ?", (file.id,))

    def _fill_reserve(self) -> None:
        """Keeps room for deleting on a full disk, where there is some."""
        if not self._reserve.exists():
            try:
                with self._reserve.open("wb") as file:
                    file.write(os.urandom(RESERVE_BYTES))  # macOS has no posix_fallocate
            except OSError:
                self._reserve.unlink(missing_ok=True)

    # --- batches

    def add_batch(
        self, caller: Caller, endpoint: str, input_file: str, window: int, metadata: dict[str, str] | None
    ) -> StoredBatch:
        """LimitError where too many of the tenant's have not ended."""
        created_at, id_ = int(time.time()), f"batch_{uuid.uuid4().hex}"
        values = (id_, caller.tenant, dump_caller(caller), endpoint, input_file, "validating", created_at + window)
        with self._transaction() as db:
            query = f"SELECT count(*) FROM batches WHERE tenant = ? AND status IN ({_marks(UNFINISHED)})"
            pending = db.execute(query, (caller.tenant, *UNFINISHED)).fetchone()[0]
            if pending >= self._limits.pending:
                raise LimitError(f"{pending} of your batches are waiting or under way; wait for one to end", 60.0)
            self._forget_oldest(db, caller.tenant)
            db.execute(
                "INSERT INTO batches (id, tenant, caller, endpoint, input_file, status, expires, times, metadata) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*values, json.dumps({"created_at": created_at}), None if metadata is None else json.dumps(metadata)),
            )
        return self.batch(id_, caller.tenant)

    def batch(self, id_: str, tenant: str) -> StoredBatch:
        """StatusError 404 also for another tenant's batch."""
        rows = self._all("SELECT * FROM batches WHERE id = ? AND tenant = ?", (id_, tenant))
        if not rows:
            raise StatusError(404, f"there is no batch {id_[:80]!r}", "batch_not_found", "batch_id")
        return batch_of(rows[0])

    def batches(self, tenant: str, after: str | None, limit: int) -> tuple[list[StoredBatch], bool]:
        """A page, and whether there are more."""
        rows, has_more = self._page("batches", tenant, "", [], after, limit, "desc")
        return [batch_of(row) for row in rows], has_more

    def _forget_oldest(self, db: sqlite3.Connection, tenant: str) -> None:
        """Forgets a tenant's oldest ended batches: those that are too many, or whose errors take too much."""
        ended = "SELECT seq, row_number() OVER latest AS place, sum(bytes) OVER latest AS total FROM batches "
        ended += f"WHERE tenant = ? AND status NOT IN ({_marks(UNFINISHED)}) WINDOW latest AS (ORDER BY seq DESC)"
        oldest = f"SELECT seq FROM ({ended}) WHERE place > ? OR place > 1 AND total > ?"
        values = (tenant, *UNFINISHED, MAX_ENDED_BATCHES, self._limits.tenant_bytes * ENDED_SHARE)
        db.execute(f"DELETE FROM batches WHERE seq IN ({oldest})", values)

    def unfinished(self) -> list[StoredBatch]:
        """All tenants', oldest first."""
        query = f"SELECT * FROM batches WHERE status IN ({_marks(UNFINISHED)}) ORDER BY seq"
        return [batch_of(row) for row in self._all(query, UNFINISHED)]

    def fail(self, batch: StoredBatch, errors: list[dict[str, Any]], stages: Sequence[str] = ("validating",)) -> None:
        """The input cannot be used; or, of a batch in other `stages`, it cannot be brought to its end."""
        texts = json.dumps(errors)
        with self._transaction() as db:
            if _move(db, batch.seq, stages, "failed", errors=texts, bytes=len(texts)):
                self._forget_oldest(db, batch.tenant)
        for _ in self.forget_rows(batch):
            pass

    def enter(self, batch: StoredBatch, rows: Sequence[tuple[int, str, str]]) -> bool:
        """Enters checked rows (number, custom_id, body). False where the batch was cancelled meanwhile. StatusError 413
        where they would take more than is left of the tenant's part."""
        size = sum(len(custom_id.encode()) + len(body.encode()) + ROW_BYTES for _, custom_id, body in rows)
        with self._transaction() as db:
            if rows:
                self._need_room(db, batch.tenant, size)
            query = "UPDATE batches SET total = total + ?, bytes = bytes + ? WHERE seq = ? AND status = 'validating'"
            if not db.execute(query, (len(rows), size, batch.seq)).rowcount:
                return False
            query = "INSERT INTO rows (batch, number, custom_id, body) VALUES (?, ?, ?, ?)"
            db.executemany(query, ((batch.seq, *row) for row in rows))
            return True

    def start(self, batch: StoredBatch) -> bool:
        """All rows are entered. False where the batch was cancelled meanwhile."""
        with self._transaction() as db:
            return _move(db, batch.seq, ("validating",), "in_progress")

    def forget_rows(self, batch: StoredBatch) -> Iterator[None]:
        """Deletes, some at a time, the rows of a batch that is being validated, or has ended."""
        with self._transaction() as db:
            query = "UPDATE batches SET total = 0, bytes = 0 WHERE seq = ? AND status = 'validating'"
            db.execute(query, (batch.seq,))
        needed = f"SELECT 1 FROM batches WHERE seq = ? AND status IN ({_marks(_WITH_ROWS)})"
        numbers = f"SELECT number FROM rows WHERE batch = ? AND NOT EXISTS ({needed}) LIMIT ?"
        query, values = f"DELETE FROM rows WHERE batch = ? AND number IN ({numbers})", [batch.seq] * 3
        deleted = True
        while deleted:
            with self._transaction() as db:
                deleted = db.execute(query, (*values, *_WITH_ROWS, _READ_AT_ONCE)).rowcount > 0
            yield

    def cancel(self, id_: str, tenant: str) -> StoredBatch:
        """StatusError 409 for a batch that has ended."""
        batch = self.batch(id_, tenant)
        if batch.status not in ("cancelling", "cancelled"):
            with self._transaction() as db:
                moved = _move(db, batch.seq, ("validating", "in_progress"), "cancelling")
            if not moved:
                status = self.batch(id_, tenant).status
                raise StatusError(409, f"the batch is {status} and cannot be cancelled", "batch_ended", "batch_id")
        return self.batch(id_, tenant)

    def waiting(self, batch: StoredBatch) -> list[int]:
        query = "SELECT number FROM rows WHERE batch = ? AND ok IS NULL ORDER BY number"
        return [row["number"] for row in self._all(query, (batch.seq,))]

    def row(self, batch: StoredBatch, number: int) -> tuple[str, str]:
        query = "SELECT custom_id, body FROM rows WHERE batch = ? AND number = ?"
        row = self._all(query, (batch.seq, number))[0]
        return row["custom_id"], row["body"]

    def record(self, rows: Sequence[DoneRow]) -> None:
        """Commits outputs and counts in one transaction. An output takes the place of the body that it answers."""
        with self._transaction() as db:
            for row in rows:
                row_key = (row.batch, row.number)
                query = "SELECT length(CAST(body AS BLOB)) FROM rows WHERE batch = ? AND number = ? AND ok IS NULL"
                body = db.execute(query, row_key).fetchone()
                if body is None:
                    continue
                query = "UPDATE rows SET ok = ?, output = ?, body = '' WHERE batch = ? AND number = ?"
                db.execute(query, (row.ok, row.output, *row_key))
                counted, added_bytes = "completed" if row.ok else "failed", len(row.output.encode()) - body[0]
                counts = f"{counted} = {counted} + 1, bytes = bytes + ?"
                db.execute(f"UPDATE batches SET {counts} WHERE seq = ?", (added_bytes, row.batch))

    def finish(self, batch: StoredBatch, status: str, unfinished_line: Callable[[str], str]) -> Iterator[None]:
        """Writes the output files and ends the batch, a piece with each `next`; the rows are gone then.

        unfinished_line: the line in the error file for a row that was not done, by its custom_id. A kill anywhere here
        leaves the batch unfinished, and files without an entry, which the next start removes.
        """
        files: dict[str, StoredFile | None] = {}
        if "in_progress_at" in batch.times:  # one that was cancelled before it started has no rows
            with self._transaction() as db:
                _move(db, batch.seq, ("in_progress",), "finalizing")
            outputs = (row["output"] for row in self._rows(batch, "ok = 1"))
            failures = (row["output"] or unfinished_line(row["custom_id"]) for row in self._rows(batch, "ok IS NOT 1"))
            files["output_file"] = yield from self._write_lines(batch, "output", outputs)
            files["error_file"] = yield from self._write_lines(batch, "error", failures)
        with self._transaction() as db:
            for file in filter(None, files.values()):
                _insert_file(db, file)
            total = "SELECT total, total - completed AS failed FROM batches WHERE seq = ?"
            counts: dict[str, int] = dict(db.execute(total, (batch.seq,)).fetchone()) if files else {"total": 0}
            ids = {name: file and file.id for name, file in files.items()}
            _move(db, batch.seq, ("finalizing", "cancelling"), status, **ids, **counts, bytes=0)
        yield from self.forget_rows(batch)

    def _rows(self, batch: StoredBatch, condition: str) -> Iterator[sqlite3.Row]:
        last = -1
        while True:
            query = f"SELECT * FROM rows WHERE batch = ? AND number > ? AND {condition}"
            query += f" ORDER BY number LIMIT {_READ_AT_ONCE}"
            rows = self._all(query, (batch.seq, last))
            yield from rows
            if len(rows) < _READ_AT_ONCE:
                return
            last = rows[-1]["number"]

    def _write_lines(
        self, batch: StoredBatch, suffix: str, lines: Iterator[str]
    ) -> Generator[None, None, StoredFile | None]:
        """Returns a file of the lines, None where there is none."""
        first = next(lines, None)
        if first is None:
            return None
        with self._writing() as (id_, file):
            for number, line in enumerate(chain((first,), lines), start=1):
                file.write(line.encode() + b"\n")
                if number % _READ_AT_ONCE == 0:
                    yield
            size = file.tell()
        return StoredFile(id_, batch.tenant, f"{batch.id}_{suffix}.jsonl", BATCH_OUTPUT, size, int(time.time()))

    def _page(
        self, table: str, tenant: str, condition: str, values: Sequence[Any], after: str | None, limit: int, order: str
    ) -> tuple[list[sqlite3.Row], bool]:
        """At most `limit` rows, and whether there are more. StatusError where `after` is nothing of theirs."""
        sign, seq = ("<", 1 << 62) if order == "desc" else (">", 0)
        if after is not None:
            rows = self._all(f"SELECT seq FROM {table} WHERE id = ? AND tenant = ?", (after, tenant))
            if not rows:
                message = f"after: there is no {after[:80]!r}; give the last id of a page"
                raise StatusError(400, message, "invalid_value", "after")
            seq = rows[0]["seq"]
        query = f"SELECT * FROM {table} WHERE tenant = ? {condition} AND seq {sign} ? ORDER BY seq {order} LIMIT ?"
        page, size = list[sqlite3.Row](), 0
        with self._lock, closing(self._db.execute(query, (tenant, *values, seq, limit + 1))) as rows:
            for row in rows:
                if len(page) == limit or size > PAGE_BYTES:
                    return page, True
                page.append(row)
                size += sum(len(value) for value in row if isinstance(value, str))
        return page, False


def _marks(values: Sequence[object]) -> str:
    """A question mark for each, as SQL has them."""
    return ", ".join("?" * len(values))


def _used(db: sqlite3.Connection, tenant: str) -> int:
    """Bytes of a tenant's files, and of its batches' rows and errors."""
    query = "SELECT (SELECT coalesce(sum(bytes), 0) FROM files WHERE tenant = ?) + (SELECT coalesce(sum(bytes), 0) "
    return db.execute(query + "FROM batches WHERE tenant = ?)", (tenant, tenant)).fetchone()[0]


def _insert_file(db: sqlite3.Connection, file: StoredFile) -> None:
    db.execute(
        "INSERT INTO files (id, tenant, name, purpose, bytes, created) VALUES (?, ?, ?, ?, ?, ?)",
        (file.id, file.tenant, file.name, file.purpose, file.bytes, file.created),
    )


def _move(db: sqlite3.Connection, seq: int, sources: Sequence[str], status: str, **values: Any) -> bool:
    """Brings a batch from one of the `sources` to a status, and notes when. False where it was in none of them."""
    query = f"SELECT times FROM batches WHERE seq = ? AND status IN ({_marks(sources)})"
    row = db.execute(query, (seq, *sources)).fetchone()
    if row is None:
        return False
    times = {**json.loads(row["times"]), f"{status}_at": int(time.time())}
    values |= {"status": status, "times": json.dumps(times)}
    assigned = ", ".join(f"{name} = ?" for name in values)
    db.execute(f"UPDATE batches SET {assigned} WHERE seq = ?", (*values.values(), seq))
    return True
