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
from bedplate.skins.records import Record, What
from bedplate.skins.skin import Skin

TABLES: dict[What, str] = {"base": "bases", "skin": "skins", "run": "runs", "report": "reports", "data": "data"}
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
class Entry:
    """One base, skin, run, report, or data (a file or a split, by its hash). `path` is where it lay when it was
    recorded."""

    what: What
    id: str
    name: str
    path: str | None
    details: Mapping[str, Any]
    recorded_at: str

    def to_json(self) -> dict[str, Any]:
        """What it is, where it is, and its details beside."""
        return {"what": self.what, "id": self.id, "name": self.name, "path": self.path, **self.details}


@dataclass(frozen=True)
class Lineage:
    """What something came from and what came from it, nearest first. Ids without an entry are in `unknown`."""

    entry: Entry
    ancestors: tuple[Entry, ...]
    descendants: tuple[Entry, ...]
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
            return self._put(Record("base", identity.weights_id, name, path, details, tuple(parents)))

    def record_skin(self, skin: Skin, path: Path | str | None = None) -> str:
        """Record a skin, the data, bases, run and skins that it was made from, and its report. Returns its id."""
        with self._transaction():
            return self._put(*records.of_skin(skin, skin.directory if path is None else path))

    def record_run_of(self, directory: Path | str) -> str:
        """Record the run whose run.json lies there, and what it read. Returns its id."""
        with self._transaction():
            return self._put(*records.of_run(Path(directory)))

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
            return self._put(Record("run", run_id, name, path, details or {}, tuple(parents)))

    def record_report(
        self, path: Path | str, name: str, details: Mapping[str, Any] | None = None, parents: Iterable[str] = ()
    ) -> str:
        """Record a report file under its sha256, which is returned."""
        with self._transaction():
            return self._put(Record("report", sha256_file(path), name, path, details or {}, tuple(parents)))

    def rebuild(self, directories: Iterable[Path | str]) -> Rebuilt:
        """Forget everything, then record every base, skin and report found below `directories`, in one transaction."""
        found = Rebuilt()
        with self._transaction():
            for table in (*TABLES.values(), "parents"):
                self._connection.execute(f"DELETE FROM {table}")
            self._scan(directories, found)
        return found

    def add(self, directories: Iterable[Path | str]) -> Rebuilt:
        """Record every base, skin and report found below `directories`, besides what is known."""
        found = Rebuilt()
        with self._transaction():
            self._scan(directories, found)
        return found

    # --- asking

    def entries(self, what: What) -> list[Entry]:
        """Everything of one kind, the oldest record first."""
        rows = self._connection.execute(f"SELECT * FROM {TABLES[what]} ORDER BY recorded_at, id").fetchall()
        return [_entry(what, row) for row in rows]

    def find(self, wanted: str) -> Entry:
        """The entry with this id, the beginning of one (at least 6 characters), or this name (the newest).

        UnknownItemError when there is none, UsageError when a beginning fits several.
        """
        found: list[Entry] = []
        for what, table in TABLES.items():
            rows = self._connection.execute(
                f"SELECT * FROM {table} WHERE id = ?1 OR name = ?1"
                " OR (length(?1) >= 6 AND substr(id, 1, length(?1)) = ?1) ORDER BY recorded_at DESC, id",
                (wanted,),
            )
            found += [_entry(what, row) for row in rows.fetchall()]
        exact = [e for e in found if e.id == wanted] or [e for e in found if e.name == wanted]
        if exact:
            return exact[0]
        if not found:
            raise UnknownItemError(f"the catalogue {self.path} knows nothing by the id or name {wanted!r}")
        if len(found) > 1:
            raise UsageError(f"{wanted!r} begins {len(found)} ids: {', '.join(e.id[:12] for e in found)}; write more")
        return found[0]

    def skin_directory(self, target: str | Path) -> Path:
        """Where a skin lies, given as its directory or by name or id. UnknownItemError, UsageError."""
        if Path(target).is_dir():
            return Path(target)
        entry = self.find(str(target))
        if entry.what != "skin" or entry.path is None:
            raise UsageError(f"{str(target)!r} is a {entry.what}, not a skin with a directory")
        return Path(entry.path)

    def lineage(self, wanted: str) -> Lineage:
        """Everything that an entry came from, and everything that came from it."""
        with self._transaction("DEFERRED"):
            entry = self.find(wanted)
            above, below = self._walk(entry.id, "child", "parent"), self._walk(entry.id, "parent", "child")
            known = {i: self.get(i) for i in (*above, *below)}
        return Lineage(
            entry,
            tuple(e for i in above if (e := known[i]) is not None),
            tuple(e for i in below if (e := known[i]) is not None),
            tuple(i for i, e in known.items() if e is None),
        )

    def get(self, id_: str) -> Entry | None:
        """The entry with exactly this id."""
        for what, table in TABLES.items():
            row = self._connection.execute(f"SELECT * FROM {table} WHERE id = ?", (id_,)).fetchone()
            if row is not None:
                return _entry(what, row)
        return None

    def lying_at(self, path: Path | str) -> Entry | None:
        """What lay there when it was recorded, the latest."""
        for what, table in TABLES.items():
            statement = f"SELECT * FROM {table} WHERE path = ? ORDER BY recorded_at DESC"
            row = self._connection.execute(statement, (str(Path(path).absolute()),)).fetchone()
            if row is not None:
                return _entry(what, row)
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

    def _put(self, *made: Record) -> str:
        """Record them; returns the id of the last."""
        now = datetime.now(UTC).isoformat()
        for one in made:
            place = None if one.path is None else str(Path(one.path).absolute())
            text = json.dumps(dict(one.details), sort_keys=True, allow_nan=False)
            known = (
                "NOTHING"
                if one.hearsay
                else "UPDATE SET name = excluded.name, path = coalesce(excluded.path, path), details = excluded.details"
            )
            self._connection.execute(
                f"INSERT INTO {TABLES[one.what]} (id, name, path, details, recorded_at) VALUES (?, ?, ?, ?, ?)"
                f" ON CONFLICT (id) DO {known}",
                (one.id, one.name, place, text, now),
            )
            rows = [(one.id, parent) for parent in one.parents]
            self._connection.executemany("INSERT OR IGNORE INTO parents (child, parent) VALUES (?, ?)", rows)
        return made[-1].id

    def _scan(self, directories: Iterable[Path | str], found: Rebuilt) -> None:
        for given in directories:
            root = Path(given)
            if not root.is_dir():
                raise UsageError(f"{root} is not a directory")
            for path in sorted([root, *(p for p in root.rglob("*") if p.is_dir() and not p.is_symlink())]):
                if (path.parent / SKIN_FILE).is_file():  # part of a skin
                    continue
                for file in records.files_of(path):
                    try:
                        made = records.of_file(file)
                    except (BedplateError, OSError, ValueError) as error:
                        found.problems.append(f"{file}: {error}")
                    else:
                        self._put(*made)
                        what = made[-1].what
                        found.counts[what] = found.counts.get(what, 0) + 1

    def _next(self, id_: str, here: str, there: str) -> list[str]:
        rows = self._connection.execute(f"SELECT {there} FROM parents WHERE {here} = ? ORDER BY 1", (id_,))
        return [found for (found,) in rows.fetchall()]

    def _walk(self, start: str, here: str, there: str) -> list[str]:
        """Ids reached by edges from `here` to `there`, breadth first; a cycle ends where it closes."""
        seen, order = {start}, [start]
        for id_ in order:
            for following in self._next(id_, here, there):
                if following not in seen:
                    seen.add(following)
                    order.append(following)
        return order[1:]


def _entry(what: What, row: tuple[Any, ...]) -> Entry:
    id_, name, path, details, recorded_at = row
    return Entry(what, id_, name, path, json.loads(details), recorded_at)
