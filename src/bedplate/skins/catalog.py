"""The catalogue: which data, bases, skins, runs and reports there are, and which came from which.

An index in SQLite (WAL) under `BEDPLATE_HOME`; every fact in it stands in the directories too, so that it can be
rebuilt from them. Any number of processes may write at once: each record is one transaction, so a writer that is
killed leaves all of it or none.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from bedplate.core.closing import Closing
from bedplate.core.errors import BedplateError, DataError, UnknownItemError, UsageError
from bedplate.core.files import bedplate_home, file_lock, sha256_file
from bedplate.models.checkpoints.identity import Identity
from bedplate.skins import records
from bedplate.skins.manifest import SKIN_FILE
from bedplate.skins.records import ArtifactType, CatalogRecord
from bedplate.skins.skin import Skin

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
    """One base, skin, run, report, or data (a file or a split, by its hash). `path` is where it lay when it was
    recorded."""

    artifact_type: ArtifactType
    id: str
    name: str
    path: str | None
    details: Mapping[str, Any]
    recorded_at: str

    def to_json(self) -> dict[str, Any]:
        """What it is, where it is, and its details beside."""
        return {"what": self.artifact_type, "id": self.id, "name": self.name, "path": self.path, **self.details}


@dataclass(frozen=True)
class CatalogLineage:
    """What something came from and what came from it, nearest first. Ids without an entry are in `unknown`."""

    artifact: Artifact
    ancestors: tuple[Artifact, ...]
    descendants: tuple[Artifact, ...]
    unknown: tuple[str, ...]


@dataclass
class Rebuilt:
    """What `rebuild` found: counts by kind, and the directories that could not be read, with the reason."""

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
                raise UsageError(
                    f"{path} cannot be opened: {error}; choose a BEDPLATE_HOME that can be written"
                ) from error
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self) -> None:
        """Make the tables of a new catalogue."""
        try:
            version = self._connection.execute("PRAGMA user_version").fetchone()[0]
            if version > _VERSION:
                raise UsageError(f"{self.path} was written by a newer Bedplate (version {version}); update Bedplate")
            if version < _VERSION:
                self._connection.execute("PRAGMA journal_mode = WAL")
                script = f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;"
                self._connection.executescript(script)
        except sqlite3.DatabaseError as error:
            raise DataError(
                f"{self.path} cannot be used as a catalogue: {error}; it is only an index: move it away and run "
                "`bedplate skins list DIR …`, which records what it finds"
            ) from error

    @classmethod
    def open(cls, path: Path | None = None) -> Catalog:
        """Open the catalogue, by default the one under `BEDPLATE_HOME`, making it when there is none.

        Raises DataError for a file that is no catalogue, UsageError where it cannot be written.
        """
        return cls(bedplate_home() / "catalog.sqlite" if path is None else path)

    def close(self) -> None:
        self._connection.close()

    # --- recording

    def record_base(
        self, name: str, identity: Identity, path: Path | str, *, family: str, parents: Iterable[str] = ()
    ) -> str:
        """Record a base under its weights_id, which is returned."""
        details = {
            "family": family,
            "tokenizer_id": identity.tokenizer_id,
            "template_id": identity.template_id,
            "equivalent_of": identity.equivalent_of,
        }
        with self._transaction():
            return self._record(CatalogRecord("base", identity.weights_id, name, path, details, tuple(parents)))

    def record_skin(self, skin: Skin, path: Path | str | None = None) -> str:
        """Record a skin, the data, bases, run and skins that it was made from, and its report. Returns its id."""
        with self._transaction():
            return self._record(*records.of_skin(skin, skin.directory if path is None else path))

    def record_run_of(self, directory: Path | str) -> str:
        """Record the run whose run.json lies there, and what it read. Returns its id."""
        with self._transaction():
            return self._record(*records.of_run(Path(directory)))

    def record_run(
        self,
        run_id: str,
        name: str,
        path: Path | str,
        details: Mapping[str, Any] | None = None,
        parents: Iterable[str] = (),
    ) -> str:
        """Record a run (adapting, training, evaluating) and what it read. Returns its id."""
        with self._transaction():
            return self._record(CatalogRecord("run", run_id, name, path, details or {}, tuple(parents)))

    def record_report(
        self, path: Path | str, name: str, details: Mapping[str, Any] | None = None, parents: Iterable[str] = ()
    ) -> str:
        """Record a report file under its sha256, which is returned."""
        with self._transaction():
            return self._record(CatalogRecord("report", sha256_file(path), name, path, details or {}, tuple(parents)))

    def rebuild(self, directories: Iterable[Path | str]) -> Rebuilt:
        """Forget everything, then record every base, skin and report found below `directories`, in one transaction."""
        rebuilt = Rebuilt()
        with self._transaction():
            for table in (*TABLES.values(), "parents"):
                self._connection.execute(f"DELETE FROM {table}")
            self._scan(directories, rebuilt)
        return rebuilt

    def add(self, directories: Iterable[Path | str]) -> Rebuilt:
        """Record every base, skin and report found below `directories`, besides what is known."""
        rebuilt = Rebuilt()
        with self._transaction():
            self._scan(directories, rebuilt)
        return rebuilt

    # --- asking

    def entries(self, artifact_type: ArtifactType) -> list[Artifact]:
        """Everything of one kind, the oldest record first."""
        rows = self._connection.execute(f"SELECT * FROM {TABLES[artifact_type]} ORDER BY recorded_at, id").fetchall()
        return [_artifact_of(artifact_type, row) for row in rows]

    def resolve(self, reference: str) -> Artifact:
        """The entry with this id, the beginning of one (at least 6 characters), or this name (the newest).

        UnknownItemError when there is none, UsageError when a beginning fits several.
        """
        matches: list[Artifact] = []
        for artifact_type, table in TABLES.items():
            rows = self._connection.execute(
                f"SELECT * FROM {table} WHERE id = ?1 OR name = ?1"
                " OR (length(?1) >= 6 AND substr(id, 1, length(?1)) = ?1) ORDER BY recorded_at DESC, id",
                (reference,),
            )
            matches += [_artifact_of(artifact_type, row) for row in rows.fetchall()]
        exact = [e for e in matches if e.id == reference] or [e for e in matches if e.name == reference]
        if exact:
            return exact[0]
        if not matches:
            raise UnknownItemError(f"the catalogue {self.path} knows nothing by the id or name {reference!r}")
        if len(matches) > 1:
            raise UsageError(
                f"{reference!r} begins {len(matches)} ids: {', '.join(e.id[:12] for e in matches)}; write more"
            )
        return matches[0]

    def skin_directory(self, target: str | Path) -> Path:
        """Where a skin lies, given as its directory or by name or id. UnknownItemError, UsageError."""
        if Path(target).is_dir():
            return Path(target)
        artifact = self.resolve(str(target))
        if artifact.artifact_type != "skin" or artifact.path is None:
            raise UsageError(f"{str(target)!r} is a {artifact.artifact_type}, not a skin with a directory")
        return Path(artifact.path)

    def lineage(self, reference: str) -> CatalogLineage:
        """Everything that an entry came from, and everything that came from it."""
        with self._transaction("DEFERRED"):
            artifact = self.resolve(reference)
            ancestors, below = self._walk(artifact.id, "child", "parent"), self._walk(artifact.id, "parent", "child")
            artifacts_by_id = {i: self.get(i) for i in (*ancestors, *below)}
        return CatalogLineage(
            artifact,
            tuple(e for i in ancestors if (e := artifacts_by_id[i]) is not None),
            tuple(e for i in below if (e := artifacts_by_id[i]) is not None),
            tuple(i for i, e in artifacts_by_id.items() if e is None),
        )

    def get(self, id_: str) -> Artifact | None:
        """The entry with exactly this id."""
        for artifact_type, table in TABLES.items():
            row = self._connection.execute(f"SELECT * FROM {table} WHERE id = ?", (id_,)).fetchone()
            if row is not None:
                return _artifact_of(artifact_type, row)
        return None

    def lying_at(self, path: Path | str) -> Artifact | None:
        """What lay there when it was recorded, the latest."""
        for artifact_type, table in TABLES.items():
            statement = f"SELECT * FROM {table} WHERE path = ? ORDER BY recorded_at DESC"
            row = self._connection.execute(statement, (str(Path(path).absolute()),)).fetchone()
            if row is not None:
                return _artifact_of(artifact_type, row)
        return None

    def parents(self, id_: str) -> list[str]:
        """Ids of what this was made from, known or not."""
        return self._next(id_, "child", "parent")

    def children(self, id_: str) -> list[str]:
        """Ids of what was made from this."""
        return self._next(id_, "parent", "child")

    # --- inside

    @contextmanager
    def _transaction(self, mode: Literal["IMMEDIATE", "DEFERRED"] = "IMMEDIATE") -> Generator[None]:
        """IMMEDIATE waits for other writers at its start, so that it never fails half way."""
        self._connection.execute(f"BEGIN {mode}")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def _record(self, *new_records: CatalogRecord) -> str:
        """Record them; returns the id of the last."""
        recorded_at = datetime.now(UTC).isoformat()
        for record in new_records:
            place = None if record.path is None else str(Path(record.path).absolute())
            text = json.dumps(dict(record.details), sort_keys=True, allow_nan=False)
            conflict_action = (
                "NOTHING"
                if record.hearsay
                else "UPDATE SET name = excluded.name, path = coalesce(excluded.path, path), details = excluded.details"
            )
            self._connection.execute(
                f"INSERT INTO {TABLES[record.artifact_type]} (id, name, path, details, recorded_at) VALUES (?, ?, ?, "
                f"?, ?) ON CONFLICT (id) DO {conflict_action}",
                (record.id, record.name, place, text, recorded_at),
            )
            rows = [(record.id, parent) for parent in record.parents]
            self._connection.executemany("INSERT OR IGNORE INTO parents (child, parent) VALUES (?, ?)", rows)
        return new_records[-1].id

    def _scan(self, directories: Iterable[Path | str], rebuilt: Rebuilt) -> None:
        for directory in directories:
            root = Path(directory)
            if not root.is_dir():
                raise UsageError(f"{root} is not a directory")
            for path in sorted([root, *(p for p in root.rglob("*") if p.is_dir() and not p.is_symlink())]):
                if (path.parent / SKIN_FILE).is_file():  # part of a skin
                    continue
                for file in records.files_of(path):
                    try:
                        file_records = records.of_file(file)
                    except (BedplateError, OSError, ValueError) as error:
                        rebuilt.problems.append(f"{file}: {error}")
                    else:
                        self._record(*file_records)
                        artifact_type = file_records[-1].artifact_type
                        rebuilt.counts[artifact_type] = rebuilt.counts.get(artifact_type, 0) + 1

    def _next(self, id_: str, from_column: str, to_column: str) -> list[str]:
        rows = self._connection.execute(f"SELECT {to_column} FROM parents WHERE {from_column} = ? ORDER BY 1", (id_,))
        return [linked_id for (linked_id,) in rows.fetchall()]

    def _walk(self, start: str, from_column: str, to_column: str) -> list[str]:
        """Ids reached by edges from `from_column` to `to_column`, breadth first; a cycle ends where it closes."""
        visited, order = {start}, [start]
        for id_ in order:
            for following in self._next(id_, from_column, to_column):
                if following not in visited:
                    visited.add(following)
                    order.append(following)
        return order[1:]


def _artifact_of(artifact_type: ArtifactType, row: tuple[Any, ...]) -> Artifact:
    id_, name, path, details, recorded_at = row
    return Artifact(artifact_type, id_, name, path, json.loads(details), recorded_at)
