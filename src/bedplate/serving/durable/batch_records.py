"""SQLite tables of files and batches, and their rows as dataclasses."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import Any

from bedplate.serving.callers.caller_guard import Caller

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
"""
ROW_BYTES = 300
"""What a row takes beside its texts; the line that says why it was not done is no longer."""
_COUNT_BYTES = f"""
ALTER TABLE batches ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;
UPDATE rows SET body = '' WHERE ok IS NOT NULL;
UPDATE batches SET bytes = (
    SELECT coalesce(sum(length(CAST(body AS BLOB)) + length(CAST(custom_id AS BLOB))
        + coalesce(length(CAST(output AS BLOB)), 0) + {ROW_BYTES}), 0) FROM rows WHERE batch = seq);
"""
UNFINISHED = ("validating", "in_progress", "cancelling", "finalizing")


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


def open_tables(db: sqlite3.Connection) -> None:
    """Makes the tables that are missing, and what is missing in those of earlier versions: all of it or, where that is
    interrupted, nothing."""
    column_names = {row["name"] for row in db.execute("PRAGMA table_info(batches)")}
    if column_names and "bytes" not in column_names:
        try:
            db.executescript(f"BEGIN IMMEDIATE; {_COUNT_BYTES} COMMIT;")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
    db.executescript(SCHEMA)


def file_of(row: sqlite3.Row) -> StoredFile:
    return StoredFile(row["id"], row["tenant"], row["name"], row["purpose"], row["bytes"], row["created"])


def batch_of(row: sqlite3.Row) -> StoredBatch:
    values: dict[str, Any] = dict(row)
    for name in ("times", "metadata", "errors"):
        values[name] = None if values[name] is None else json.loads(values[name])
    del values["bytes"]
    values["caller"] = _read_caller(values["caller"])
    return StoredBatch(**values)


def dump_caller(caller: Caller) -> str:
    models = None if caller.models is None else sorted(caller.models)
    return json.dumps({"key": caller.key, "tenant": caller.tenant, "admin": caller.admin, "models": models})


def _read_caller(text: str) -> Caller:
    fields = json.loads(text)
    models = None if fields["models"] is None else frozenset(fields["models"])
    return Caller(fields["key"], fields["tenant"], fields["admin"], models)
