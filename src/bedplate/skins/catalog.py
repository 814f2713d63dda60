"""The catalogue: which data, bases, skins, runs and reports there are, and which came from which.

An index in SQLite (WAL) under `BEDPLATE_HOME`; every fact in it stands in the directories too, so that it can be made
again from them. Any number of processes may write at once: each record is one transaction, so a writer that is killed
leaves all of it or none.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bedplate.core.closing import Closing
from bedplate.core.errors import BedplateError, DataError, UnknownItemError, UsageError
from bedplate.core.files import bedplate_home, file_lock
from bedplate.skins import records
from bedplate.skins.manifest import SKIN_FILE
from bedplate.skins.records import ArtifactType, CatalogRecord

TABLES: dict[ArtifactType, str] = {"base": "bases", "skin": "skins", "run": "runs", "report": "reports", "data": "data"}
WAIT_SECONDS = 60.0
_VERSION = 2

_SCHEMA = "".join(
    f"CREATE TABLE IF NOT EXISTS {table} (id TEXT PRIMARY KEY, name TEXT NOT NULL, path TEXT, details TEXT NOT NULL,"
    " recorded_at TEXT NOT NULL);"
    for table in TABLES.values()
) + (
    "CREATE TABLE IF NOT EXISTS parents (child TEXT NOT NULL, parent TEXT NOT NULL, PRIMARY KEY (child, parent));"
    "CREATE INDEX IF NOT EXISTS children ON parents (parent);"
)


@dataclass(frozen=True)
class Artifact:
    """One base, skin, run, report, or data (by its hash). path: where it lay when it was recorded."""

    artifact_type: ArtifactType
    id: str
    name: str
    path: str | None
    details: Mapping[str, Any]
    recorded_at: str

    def to_json(self) -> dict[str, Any]:
        """What it is, where it is, and its details beside."""
        return {"what": self.artifact_type, "id": self.id, "name": self.name, "path": self.path, **self.details}


@dataclass
class ScanResult:
    """What `add` recorded: counts by type, and the files that could not be read, with the reason."""

    counts: dict[str, int] = field(default_factory=dict[str, int])
    problems: list[str] = field(default_factory=list[str])


class Catalog(Closing):
    """An open catalogue. One object belongs to one thread; open another one for another thread or process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # only the first opening changes the journal mode, which SQLite cannot do under two writers at once
        with file_lock(path.with_name(path.name + ".lock")):
            try:
                self._connection = sqlite3.connect(path, timeout=WAIT_SECONDS, isolation_level=None)
            except sqlite3.Error as error:
                hint = "choose a BEDPLATE_HOME that can be written"
                raise UsageError(f"{path} cannot be opened: {error}; {hint}") from error
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self) -> None:
        try:
            version = self._connection.execute("PRAGMA user_version").fetchone()[0]
            if version > _VERSION:
                raise UsageError(f"{self.path} was written by a newer Bedplate (version {version}); update Bedplate")
            if version < _VERSION:
                self._connection.execute("PRAGMA journal_mode = WAL")
                script = f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;"
                self._connection.executescript(script)
        except sqlite3.DatabaseError as error:
            message = f"{self.path} cannot be used as a catalogue: {error}; it is only an index: move it away and run"
            raise DataError(f"{message} `bedplate skins list DIR …`, which records what it finds") from error

    @classmethod
    def open(cls, path: Path | None = None) -> Catalog:
        """Opens the catalogue, by default the one under `BEDPLATE_HOME`, making it when there is none.

        Raises DataError for a file that is no catalogue, UsageError where it cannot be written.
        """
        return Catalog(bedplate_home() / "catalog.sqlite" if path is None else path)

    def close(self) -> None:
        self._connection.close()

    # --- recording

    def record(self, new_records: Iterable[CatalogRecord]) -> str:
        """Records what `skins.records` reads in directories, all or nothing. Returns the id of the last."""
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")  # waits for other writers here, so that it fails nowhere else
            return self._record(new_records)

    def add(self, directories: Iterable[Path | str]) -> ScanResult:
        """Records every base, skin, run and report found below `directories`, besides what is known."""
        scan = ScanResult()
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            for root in map(Path, directories):
                if not root.is_dir():
                    raise UsageError(f"{root} is not a directory")
                for path in sorted([root, *(p for p in root.rglob("*") if p.is_dir() and not p.is_symlink())]):
                    if not (path.parent / SKIN_FILE).is_file():  # else it is part of a skin
                        self._scan(path, scan)
        return scan

    def _scan(self, directory: Path, scan: ScanResult) -> None:
        for file in records.files_of(directory):
            try:
                file_records = records.of_file(file)
            except (BedplateError, OSError, ValueError) as error:
                scan.problems.append(f"{file}: {error}")
            else:
                self._record(file_records)
                artifact_type = file_records[-1].artifact_type
                scan.counts[artifact_type] = scan.counts.get(artifact_type, 0) + 1

    def _record(self, new_records: Iterable[CatalogRecord]) -> str:
        recorded_at, last = datetime.now(UTC).isoformat(), ""
        for record in new_records:
            place = None if record.path is None else str(Path(record.path).absolute())
            details = json.dumps(dict(record.details), sort_keys=True, allow_nan=False)
            update = "UPDATE SET name = excluded.name, path = coalesce(excluded.path, path), details = excluded.details"
            self._connection.execute(
                f"INSERT INTO {TABLES[record.artifact_type]} (id, name, path, details, recorded_at) VALUES (?, ?, ?, "
                f"?, ?) ON CONFLICT (id) DO {'NOTHING' if record.hearsay else update}",
                (record.id, record.name, place, details, recorded_at),
            )
            rows = [(record.id, parent) for parent in record.parents]
            self._connection.executemany("INSERT OR IGNORE INTO parents (child, parent) VALUES (?, ?)", rows)
            last = record.id
        return last

    # --- asking

    def entries(self, artifact_type: ArtifactType) -> list[Artifact]:
        """Everything of one type, the oldest record first."""
        return self._select("ORDER BY recorded_at, id", artifact_types=(artifact_type,))

    def resolve(self, reference: str) -> Artifact:
        """The entry with this id, the beginning of one (at least 6 characters), or this name (the newest).

        UnknownItemError when there is none, UsageError when a beginning fits several.
        """
        matches = self._select(
            "WHERE id = ?1 OR name = ?1 OR (length(?1) >= 6 AND substr(id, 1, length(?1)) = ?1)"
            " ORDER BY recorded_at DESC, id",
            reference,
        )
        exact = [e for e in matches if e.id == reference] or [e for e in matches if e.name == reference]
        if not matches:
            raise UnknownItemError(f"the catalogue {self.path} knows nothing by the id or name {reference!r}")
        if len(matches) > 1 and not exact:
            ids = ", ".join(match.id[:12] for match in matches)
            raise UsageError(f"{reference!r} begins {len(matches)} ids: {ids}; write more")
        return (exact or matches)[0]

    def skin_directory(self, target: str | Path) -> Path:
        """Where a skin lies, given as its directory or by name or id. UnknownItemError, UsageError."""
        if Path(target).is_dir():
            return Path(target)
        artifact = self.resolve(str(target))
        if artifact.artifact_type != "skin" or artifact.path is None:
            raise UsageError(f"{str(target)!r} is a {artifact.artifact_type}, not a skin with a directory")
        return Path(artifact.path)

    def get(self, id_: str) -> Artifact | None:
        return next(iter(self._select("WHERE id = ?", id_)), None)

    def lying_at(self, path: Path | str) -> Artifact | None:
        """What lay there when it was recorded, the latest."""
        statement = "WHERE path = ? ORDER BY recorded_at DESC"
        return next(iter(self._select(statement, str(Path(path).absolute()))), None)

    def parents(self, id_: str) -> list[str]:
        """Ids of what this was made from, known or not."""
        rows = self._connection.execute("SELECT parent FROM parents WHERE child = ? ORDER BY 1", (id_,))
        return [linked_id for (linked_id,) in rows.fetchall()]

    def children(self, id_: str) -> list[str]:
        """Ids of what was made from this."""
        rows = self._connection.execute("SELECT child FROM parents WHERE parent = ? ORDER BY 1", (id_,))
        return [linked_id for (linked_id,) in rows.fetchall()]

    def _select(
        self, clauses: str, *values: str, artifact_types: Iterable[ArtifactType] = tuple(TABLES)
    ) -> list[Artifact]:
        artifacts: list[Artifact] = []
        for artifact_type in artifact_types:
            rows = self._connection.execute(f"SELECT * FROM {TABLES[artifact_type]} {clauses}", values)
            artifacts += [
                Artifact(artifact_type, id_, name, path, json.loads(details), recorded_at)
                for id_, name, path, details, recorded_at in rows.fetchall()
            ]
        return artifacts
