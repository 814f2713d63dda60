"""Storage of replies and feedback: JSON lines by model and day, append-only except for what is purged.

A line is a `reply` (an answered call, with as much of it as consent allows) or `feedback` (what was said of one). A
torn last line is cut off by the next append, and ignored until then. A line that begins with a space is erased.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import sys
from collections import Counter, deque
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from bedplate.core.errors import DataError, UsageError
from bedplate.core.files import append_jsonl, file_lock
from bedplate.core.json import load_json

Row = dict[str, Any]
DIRECTORY = "feedback"
GOOD = "good"
_ID = re.compile(r"(?:[a-z]+[-_])?([0-9a-f]{32})(?:_\d+)?")


def plain_id(reply_id: str) -> str | None:
    """The id in what a reply calls itself (chatcmpl-…, resp_…, msg_…_0); None where there is none."""
    match = _ID.fullmatch(reply_id)
    return None if match is None else match[1]


Place = tuple[str, int]
"""Where a line is: its file and the byte at which it begins. The garbage collector does not go through plain tuples."""


class Owner(NamedTuple):
    """Whose reply it is, which model's, and how many choices it has, None where that was not kept."""

    tenant: str
    model: str
    choices: int | None


@dataclass
class Exported:
    """Rows of a task's data, and why other replies of the model are none."""

    rows: list[Row] = field(default_factory=list[Row])
    skipped: Counter[str] = field(default_factory=Counter[str])


COUNTS = ("replies", "with_texts", "feedback", "corrections")


class FeedbackStore:
    """The lines below one directory. Several processes may use it: every change is made under one lock. One process
    appends; the others read and purge."""

    def __init__(self, root: Path, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.root, self._clock = root, clock
        self._counts: dict[str, Counter[str]] = {}
        """File → how many of its lines are what (`COUNTS`), so that a summary reads no file."""
        self._counted_generation: str | None = None
        """The `generation` that `_counts` belongs to; None: a pass over all lines must count them."""
        self._changes = 0

    # --- writing

    def append(self, model: str, rows: Sequence[Row]) -> list[Place]:
        """Rows of a model, on the disk when this returns; where each is. `time` is added."""
        timestamp = self._clock()
        time = timestamp.isoformat(timespec="seconds")
        with self._changing():
            directory = self.root / _directory_name(model)
            directory.mkdir(mode=0o700, exist_ok=True)
            path = directory / f"{timestamp.date().isoformat()}.jsonl"
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
            file = sys.intern(str(path))
            offsets = append_jsonl(path, [{**row, "time": time} for row in rows])
            counts = self._counts.setdefault(file, Counter())
            for row in rows:
                counts.update(_counted_as(row))
            return [(file, offset) for offset in offsets]

    def erase(self, id_: str, places: Sequence[Place]) -> int:
        """Overwrites the lines of a reply, which are at `places`, with spaces; no other lines are read. Returns how
        many are gone. Where somebody else has rewritten the files, the lines are looked for (`purge`)."""
        try:
            with self._changing():
                lines = [_line_of(place, id_) for place in places]
                # First a mark, so that what a power failure leaves of a line is an erased one too.
                for erased_bytes in (lambda _: 1, len):
                    for place, (line, _) in zip(places, lines, strict=True):
                        _blank(place, erased_bytes(line))
                for (file, _), (line, row) in zip(places, lines, strict=True):
                    if not line.startswith(b" "):
                        self._counts.get(file, Counter[str]()).subtract(_counted_as(row))
                return len(places)
        except (FileNotFoundError, ValueError):
            return self.purge(ids={id_})

    def purge(
        self,
        ids: Collection[str] = (),
        tenants: Collection[str] = (),
        models: Collection[str] = (),
        *,
        everything: bool = False,
    ) -> int:
        """Writes every line of these replies, or of these tenants, or every line, out of the files: those of the models
        that are named, or of all. Returns how many are gone. What the disk itself remembers is not this function's."""
        removed_count = 0
        with self._locked():
            for path in self._paths(models):
                _finish_erasures(path)
                rows = [row for _, row in _lines(path)]
                others = [row for row in rows if row["id"] not in ids and row["tenant"] not in tenants]
                remaining = [] if everything else others
                if len(remaining) < len(rows):
                    removed_count += len(rows) - len(remaining)
                    _rewrite(path, remaining)
            if removed_count:
                (self.root / ".purged").write_text(secrets.token_hex(8))
        return removed_count

    def finish_erasures(self) -> None:
        """Overwrites what a kill or a failing disk has left of lines that were being erased."""
        if self._paths(()):
            with self._locked():
                for path in self._paths(()):
                    _finish_erasures(path)

    def sweep(self, days: Callable[[str], int | None]) -> set[str]:
        """Deletes whole days that are older than a model's `days`; None keeps them. Returns the files that are gone."""
        today, deleted_files = self._clock().date(), set[str]()
        with self._locked():
            for path in self._paths(()):
                max_days = days(_model_name(path.parent.name))
                if max_days is not None and datetime.fromisoformat(path.stem).date() < today - timedelta(days=max_days):
                    path.unlink()
                    deleted_files.add(str(path))
                    self._counts.pop(str(path), None)
        return deleted_files

    def _locked(self) -> AbstractContextManager[None]:
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        return file_lock(self.root / ".lock")

    @contextmanager
    def _changing(self) -> Generator[None]:
        """Locks the files for a change that keeps `_counts`; after one that fails the lines are counted anew."""
        with self._locked():
            generation, self._counted_generation = self._counted_generation, None
            self._changes += 1
            yield
            self._counted_generation = generation

    # --- reading

    @property
    def generation(self) -> str:
        """Changes when somebody has purged, perhaps from another process."""
        marker = self.root / ".purged"
        return marker.read_text() if marker.exists() else ""

    def models(self) -> list[str]:
        return sorted({_model_name(path.parent.name) for path in self._paths(())})

    def rows(self, models: Collection[str] = ()) -> Iterator[tuple[str, Row]]:
        """Every line with its model, a day of all models after the other."""
        for model, _, row in self.lines(models):
            yield model, row

    def lines(self, models: Collection[str] = ()) -> Iterator[tuple[str, Place, Row]]:
        """As `rows`, with the place of each line. A pass over all of them counts them for `summary`."""
        generation, changes, counts_by_file = self.generation, self._changes, dict[str, Counter[str]]()
        for path in self._paths(models):
            model, file = _model_name(path.parent.name), sys.intern(str(path))
            counts = counts_by_file[file] = Counter()
            for offset, row in _lines(path):
                counts.update(_counted_as(row))
                yield model, (file, offset), row
        if not models and changes == self._changes:
            self._counts, self._counted_generation = counts_by_file, generation

    def summary(self) -> list[Row]:
        """Per model: how many replies, with texts or without, and how many were judged. Reads no lines where a pass
        over all of them came before. No other thread may append or erase meanwhile."""
        if self._counted_generation != self.generation:
            deque(self.lines(), maxlen=0)
        by_model: dict[str, Counter[str]] = {}
        for file, counts in self._counts.items():
            by_model.setdefault(_model_name(Path(file).parent.name), Counter()).update(counts)
        return [
            {"model": model, **{name: counts[name] for name in COUNTS}}
            for model, counts in sorted(by_model.items())
            if any(counts.values())
        ]

    def export(
        self, model: str, columns: Mapping[str, str] | None = None, target: str = "target", group: str | None = None
    ) -> Exported:
        """Corrected replies with the correction as `target`, and replies called good with themselves.

        columns: input name → column (default: the same). group: a column for a digest of the tenant, since one tenant's
        rows are not independent. The last feedback on a reply counts. UsageError for columns that collide.
        """
        exported = Exported()
        exported.rows.extend(self.examples(model, columns, target, group, exported.skipped))
        return exported

    def examples(
        self,
        model: str,
        columns: Mapping[str, str] | None = None,
        target: str = "target",
        group: str | None = None,
        skipped: Counter[str] | None = None,
    ) -> Iterator[Row]:
        """The rows of `export`, one at a time, with feedback in memory and no reply but one. skipped: counts, by the
        reason, replies that are no row."""
        replies: dict[str, Place] = {}
        feedback_by_key: dict[tuple[str, int], Row] = {}
        for _, place, row in self.lines((model,)):
            if row["kind"] == "reply":
                replies[row["id"]] = place
            else:
                fields = {name: value for name, value in row.items() if value is not None}
                feedback_by_key.setdefault((row["id"], row["index"]), {}).update(fields)
        skipped = Counter() if skipped is None else skipped
        skipped["no feedback"] = len(replies.keys() - {id_ for id_, _ in feedback_by_key})
        for (id_, index), feedback in feedback_by_key.items():
            place = replies.get(id_)
            example, why = _example(None if place is None else _reply_at(place, id_), index, feedback)
            if example is None:
                skipped[why] += 1
                continue
            inputs, answer = example
            named = {name: name for name in inputs} if columns is None else columns
            if named.keys() != inputs.keys():
                message = f"the inputs of {model} are {', '.join(inputs)}, those of the task {', '.join(named)}"
                raise UsageError(f"{message}; export with the task of this skin")
            column_names = ["id", *(named[name] for name in inputs), target, *([group] if group else [])]
            if len(set(column_names)) < len(column_names):
                raise UsageError(f"two columns have one name ({', '.join(column_names)}); choose another target")
            row = {"id": f"{id_}-{index}", **{named[name]: text for name, text in inputs.items()}, target: answer}
            if group:
                row[group] = hashlib.sha256(feedback["tenant"].encode()).hexdigest()[:12]
            yield row

    def _paths(self, models: Collection[str]) -> Sequence[Path]:
        names = {_directory_name(model) for model in models}
        paths = (path for path in self.root.glob("*/*.jsonl") if not names or path.parent.name in names)
        return sorted(paths, key=lambda path: (path.name, path.parent.name))


def _example(reply: Row | None, index: int, feedback: Row) -> tuple[tuple[dict[str, str], str] | None, str]:
    if reply is None:
        return None, "the reply is no longer kept"
    inputs = reply.get("inputs")
    if not inputs or index >= len(inputs) or inputs[index] is None:
        return None, "the request was not kept, or has no inputs of a skin"
    if feedback.get("correction") is not None:
        return (inputs[index], feedback["correction"]), ""
    if feedback.get("rating") != GOOD:
        return None, "neither corrected nor called good"
    replies = reply.get("replies")
    if not replies:
        return None, "called good, but the reply was not kept"
    return (inputs[index], replies[index]), ""


def _counted_as(row: Row) -> list[str]:
    """Which of `COUNTS` a line belongs to."""
    if row["kind"] == "reply":
        return ["replies", "with_texts"] if "inputs" in row or "replies" in row else ["replies"]
    return ["feedback"] if row.get("correction") is None else ["feedback", "corrections"]


def _lines(path: Path) -> Iterator[tuple[int, Row]]:
    """The lines of a file with the byte at which each begins, without erased ones and a torn last one; none of a file
    that was deleted since it was listed. DataError."""
    offset = 0
    with ExitStack() as opened:
        try:
            file = opened.enter_context(path.open("rb"))
        except FileNotFoundError:
            return
        for line in file:
            if line.strip() and not line.startswith(b" "):
                try:
                    row = load_json(line)
                except ValueError as error:
                    erased_meanwhile = _line_at((str(path), offset)).startswith(b" ")
                    if line.endswith(b"\n") and not erased_meanwhile:
                        raise DataError(f"{path}, byte {offset}: not valid JSON: {error}; remove the line") from error
                else:
                    yield offset, row
            offset += len(line)


def _line_at(place: Place) -> bytes:
    with open(place[0], "rb") as file:
        file.seek(place[1])
        return file.readline().removesuffix(b"\n")


def _line_of(place: Place, id_: str) -> tuple[bytes, Row]:
    """The line there, without its end, and what it says. ValueError where it is none of this reply."""
    line = _line_at(place)
    row: Row = json.loads(b"{" + line[1:])  # its first byte is a space where an erasure did not end
    if row["id"] != id_:
        raise ValueError(f"another reply's line is at byte {place[1]} of {place[0]}")
    return line, row


def _reply_at(place: Place, id_: str) -> Row | None:
    """The reply whose line is there; None where it was erased, or the file rewritten, since it was looked for."""
    try:
        row: Row = json.loads(_line_at(place))
    except (FileNotFoundError, ValueError):
        return None
    return row if row["id"] == id_ else None


def _blank(place: Place, size: int) -> None:
    """Overwrites so many bytes with spaces, on the disk when this returns."""
    with open(place[0], "r+b", buffering=0) as file:
        file.seek(place[1])
        file.write(b" " * size)
        os.fsync(file.fileno())


def _finish_erasures(path: Path) -> None:
    offset = 0
    with path.open("rb") as file:
        for line in file:
            if line.startswith(b" ") and line.strip():
                _blank((str(path), offset), len(line.removesuffix(b"\n")))
            offset += len(line)


def _rewrite(path: Path, rows: Sequence[Row]) -> None:
    """The file with these rows only, in its place at once; without rows there is no file."""
    if not rows:
        path.unlink()
        return
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with open(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _directory_name(model: str) -> str:
    """One path part that cannot lead anywhere else."""
    return quote(model, safe="").replace(".", "%2E")


def _model_name(directory: str) -> str:
    return unquote(directory)
