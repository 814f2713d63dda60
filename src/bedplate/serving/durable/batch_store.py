"""Files and batches on disk: SQLite for what is known of them, plain files for contents.

SQLite (write-ahead log, synchronous=FULL) rather than JSON lines, because a row's output, its being done and the
batch's counts must become true together or not at all, and because what a client deletes must be gone. A row is done
when its output is committed; what a killed server had not committed is computed again, and never stands twice.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from bedplate.serving.callers.guard import Caller
from bedplate.serving.wire.errors import StatusError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, tenant TEXT NOT NULL, name TEXT NOT NULL,
    purpose TEXT NOT NULL, bytes INTEGER NOT NULL, created INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS batches (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, tenant TEXT NOT NULL, caller TEXT NOT NULL,
    endpoint TEXT NOT NULL, input_file TEXT NOT NULL, status TEXT NOT NULL, expires INTEGER NOT NULL,
    times TEXT NOT NULL, metadata TEXT, errors TEXT, output_file TEXT, error_file TEXT,
    total INTEGER NOT NULL DEFAULT 0, completed INTEGER NOT NULL DEFAULT 0, failed INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS rows (
    batch INTEGER NOT NULL, number INTEGER NOT NULL, custom_id TEXT NOT NULL, body TEXT NOT NULL,
    ok INTEGER, output TEXT, PRIMARY KEY (batch, number));
"""
_READ_AT_ONCE = 500
UNFINISHED = ("validating", "in_progress", "cancelling", "finalizing")
BATCH_OUTPUT = "batch_output"


@dataclass(frozen=True)
class StoredFile:
    """One file of one tenant."""

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
    """A row's output, to be committed."""

    batch: int
    number: int
    ok: bool
    output: str


class BatchStore:
    """Used from several threads; every method is one transaction."""

    def __init__(self, directory: Path) -> None:
        self._contents = directory / "files"
        self._contents.mkdir(mode=0o700, exist_ok=True)
        path = directory / "batches.sqlite"
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        for setting in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON"):
            self._db.execute(f"PRAGMA {setting}").fetchall()
        self._db.executescript(_SCHEMA)
        self._remove_orphans()

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _all(self, query: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    def _remove_orphans(self) -> None:
        """Contents that a killed server had written, but not yet entered."""
        known = {row["id"] for row in self._all("SELECT id FROM files")}
        for path in self._contents.iterdir():
            if path.name not in known:
                path.unlink()

    # --- files

    def add_file(self, tenant: str, name: str, purpose: str, source: BinaryIO, quota: int) -> StoredFile:
        """Keeps the content of `source`. StatusError 413 where the tenant would keep more than `quota` bytes."""
        used = self._all("SELECT coalesce(sum(bytes), 0) AS n FROM files WHERE tenant = ?", (tenant,))[0]["n"]
        with self._writing() as (id_, file):
            while chunk := source.read(1 << 20):
                file.write(chunk)
                if used + file.tell() > quota:
                    message = f"your files would take more than {quota:,} bytes here; delete some"
                    raise StatusError(413, message, "storage_full")
            size = file.tell()
        stored = StoredFile(id_, tenant, name, purpose, size, int(time.time()))
        with self._transaction() as db:
            _insert_file(db, stored)
        return stored

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
        found = self._all("SELECT * FROM files WHERE id = ? AND tenant = ?", (id_, tenant))
        if not found:
            raise StatusError(404, f"there is no file {id_[:80]!r}", "file_not_found", "file_id")
        return _file(found[0])

    def content(self, file: StoredFile) -> Path:
        """Where the file's bytes lie."""
        return self._contents / file.id

    def files(self, tenant: str, purpose: str | None, after: str | None, limit: int, order: str) -> list[StoredFile]:
        where, values = ("AND purpose = ?", [purpose]) if purpose is not None else ("", [])
        return [_file(row) for row in self._page("files", tenant, where, values, after, limit, order)]

    def delete_file(self, id_: str, tenant: str) -> None:
        """StatusError 404. The entry goes first: a kill between leaves bytes that the next start removes."""
        stored = self.file(id_, tenant)
        with self._transaction() as db:
            db.execute("DELETE FROM files WHERE id = ?", (stored.id,))
        self.content(stored).unlink(missing_ok=True)

    # --- batches

    def add_batch(
        self, caller: Caller, endpoint: str, input_file: str, window: int, metadata: dict[str, str] | None
    ) -> StoredBatch:
        now, id_ = int(time.time()), f"batch_{uuid.uuid4().hex}"
        values = (id_, caller.tenant, _dump_caller(caller), endpoint, input_file, "validating", now + window)
        with self._transaction() as db:
            db.execute(
                "INSERT INTO batches (id, tenant, caller, endpoint, input_file, status, expires, times, metadata) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*values, json.dumps({"created_at": now}), None if metadata is None else json.dumps(metadata)),
            )
        return self.batch(id_, caller.tenant)

    def batch(self, id_: str, tenant: str) -> StoredBatch:
        """StatusError 404 also for another tenant's batch."""
        found = self._all("SELECT * FROM batches WHERE id = ? AND tenant = ?", (id_, tenant))
        if not found:
            raise StatusError(404, f"there is no batch {id_[:80]!r}", "batch_not_found", "batch_id")
        return _batch(found[0])

    def batches(self, tenant: str, after: str | None, limit: int) -> list[StoredBatch]:
        return [_batch(row) for row in self._page("batches", tenant, "", [], after, limit, "desc")]

    def unfinished(self) -> list[StoredBatch]:
        """All tenants', oldest first."""
        marks = ", ".join("?" * len(UNFINISHED))
        return [
            _batch(row)
            for row in self._all(f"SELECT * FROM batches WHERE status IN ({marks}) ORDER BY seq", UNFINISHED)
        ]

    def fail(self, batch: StoredBatch, errors: list[dict[str, Any]], stages: Sequence[str] = ("validating",)) -> None:
        """The input cannot be used; or, of a batch in other `stages`, it cannot be brought to its end."""
        with self._transaction() as db:
            if _move(db, batch.seq, stages, "failed", errors=json.dumps(errors)):
                db.execute("DELETE FROM rows WHERE batch = ?", (batch.seq,))

    def start(self, batch: StoredBatch, rows: Iterable[tuple[int, str, str]]) -> bool:
        """Enters the checked rows (number, custom_id, body). False where the batch was cancelled meanwhile."""
        with self._transaction() as db:
            db.execute("DELETE FROM rows WHERE batch = ?", (batch.seq,))
            db.executemany(
                "INSERT INTO rows (batch, number, custom_id, body) VALUES (?, ?, ?, ?)",
                ((batch.seq, *row) for row in rows),
            )
            total = db.execute("SELECT count(*) FROM rows WHERE batch = ?", (batch.seq,)).fetchone()[0]
            moved = _move(db, batch.seq, ("validating",), "in_progress", total=total)
            if not moved:
                db.execute("DELETE FROM rows WHERE batch = ?", (batch.seq,))
            return moved

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
        """Numbers of the rows that are not done."""
        query = "SELECT number FROM rows WHERE batch = ? AND ok IS NULL ORDER BY number"
        return [row["number"] for row in self._all(query, (batch.seq,))]

    def row(self, batch: StoredBatch, number: int) -> tuple[str, str]:
        """(custom_id, body)."""
        query = "SELECT custom_id, body FROM rows WHERE batch = ? AND number = ?"
        found = self._all(query, (batch.seq, number))[0]
        return found["custom_id"], found["body"]

    def record(self, done: Sequence[DoneRow]) -> None:
        """Commits outputs, what they say of their rows, and the counts, in one transaction."""
        with self._transaction() as db:
            for row in done:
                changed = db.execute(
                    "UPDATE rows SET ok = ?, output = ? WHERE batch = ? AND number = ? AND ok IS NULL",
                    (row.ok, row.output, row.batch, row.number),
                ).rowcount
                counted = "completed" if row.ok else "failed"
                db.execute(f"UPDATE batches SET {counted} = {counted} + ? WHERE seq = ?", (changed, row.batch))

    def finish(self, batch: StoredBatch, status: str, left: Callable[[str], str]) -> None:
        """Writes the output files and ends the batch; the rows are gone with it.

        left: the line in the error file for a row that was not done, by its custom_id. A kill anywhere here leaves the
        batch unfinished, and files without an entry, which the next start removes.
        """
        with self._transaction() as db:
            _move(db, batch.seq, ("in_progress",), "finalizing")
        made = [
            self._write_lines(batch, "output", (row["output"] for row in self._rows(batch, "ok = 1"))),
            self._write_lines(
                batch, "error", (row["output"] or left(row["custom_id"]) for row in self._rows(batch, "ok IS NOT 1"))
            ),
        ]
        with self._transaction() as db:
            for file in made:
                if file is not None:
                    _insert_file(db, file)
            output, error = (None if file is None else file.id for file in made)
            failed = db.execute("SELECT total - completed FROM batches WHERE seq = ?", (batch.seq,)).fetchone()[0]
            _move(
                db, batch.seq, ("finalizing", "cancelling"), status, output_file=output, error_file=error, failed=failed
            )
            db.execute("DELETE FROM rows WHERE batch = ?", (batch.seq,))

    def _rows(self, batch: StoredBatch, which: str) -> Iterator[sqlite3.Row]:
        last = -1
        while True:
            query = (
                f"SELECT * FROM rows WHERE batch = ? AND number > ? AND {which} ORDER BY number LIMIT {_READ_AT_ONCE}"
            )
            found = self._all(query, (batch.seq, last))
            yield from found
            if len(found) < _READ_AT_ONCE:
                return
            last = found[-1]["number"]

    def _write_lines(self, batch: StoredBatch, what: str, lines: Iterator[str]) -> StoredFile | None:
        """A file of the lines; None where there is none."""
        first = next(lines, None)
        if first is None:
            return None
        with self._writing() as (id_, file):
            file.write(first.encode() + b"\n")
            for line in lines:
                file.write(line.encode() + b"\n")
            size = file.tell()
        return StoredFile(id_, batch.tenant, f"{batch.id}_{what}.jsonl", BATCH_OUTPUT, size, int(time.time()))

    def _page(
        self, table: str, tenant: str, where: str, values: Sequence[Any], after: str | None, limit: int, order: str
    ) -> list[sqlite3.Row]:
        """One more than `limit`, which says whether there are more. StatusError where `after` is nothing of theirs."""
        sign, seq = ("<", 1 << 62) if order == "desc" else (">", 0)
        if after is not None:
            found = self._all(f"SELECT seq FROM {table} WHERE id = ? AND tenant = ?", (after, tenant))
            if not found:
                raise StatusError(400, f"after: there is no {after[:80]!r} to go on after", "invalid_value", "after")
            seq = found[0]["seq"]
        query = f"SELECT * FROM {table} WHERE tenant = ? {where} AND seq {sign} ? ORDER BY seq {order} LIMIT ?"
        return self._all(query, (tenant, *values, seq, limit + 1))


def _insert_file(db: sqlite3.Connection, file: StoredFile) -> None:
    db.execute(
        "INSERT INTO files (id, tenant, name, purpose, bytes, created) VALUES (?, ?, ?, ?, ?, ?)",
        (file.id, file.tenant, file.name, file.purpose, file.bytes, file.created),
    )


def _move(db: sqlite3.Connection, seq: int, sources: Sequence[str], status: str, **values: Any) -> bool:
    """Brings a batch from one of the `sources` to a status, and notes when. False where it was in none of them."""
    marks = ", ".join("?" * len(sources))
    found = db.execute(f"SELECT times FROM batches WHERE seq = ? AND status IN ({marks})", (seq, *sources)).fetchone()
    if found is None:
        return False
    times = {**json.loads(found["times"]), f"{status}_at": int(time.time())}
    values |= {"status": status, "times": json.dumps(times)}
    assigned = ", ".join(f"{name} = ?" for name in values)
    db.execute(f"UPDATE batches SET {assigned} WHERE seq = ?", (*values.values(), seq))
    return True


def _file(row: sqlite3.Row) -> StoredFile:
    return StoredFile(row["id"], row["tenant"], row["name"], row["purpose"], row["bytes"], row["created"])


def _batch(row: sqlite3.Row) -> StoredBatch:
    values: dict[str, Any] = dict(row)
    for name in ("times", "metadata", "errors"):
        values[name] = None if values[name] is None else json.loads(values[name])
    values["caller"] = _read_caller(values["caller"])
    return StoredBatch(**values)


def _dump_caller(caller: Caller) -> str:
    models = None if caller.models is None else sorted(caller.models)
    return json.dumps({"key": caller.key, "tenant": caller.tenant, "admin": caller.admin, "models": models})


def _read_caller(text: str) -> Caller:
    fields = json.loads(text)
    models = None if fields["models"] is None else frozenset(fields["models"])
    return Caller(fields["key"], fields["tenant"], fields["admin"], models)
