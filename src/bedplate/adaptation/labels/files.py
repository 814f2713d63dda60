"""Files of rows for people to label: written as CSV, read back when the column of the target is filled in."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bedplate.core.errors import DataError, UsageError
from bedplate.core.files import atomic_write
from bedplate.data.rows import blank
from bedplate.data.sources import read_rows
from bedplate.evaluation.examples import Example, target_of
from bedplate.evaluation.task import Task

KEY, CANNOT = "row_key", "cannot_label"
"""Columns beside the task's own: what a row is known by, and why it cannot be labelled."""


@dataclass(frozen=True)
class Labelled:
    """One file. labels: by row hash, of the rows that have one; skipped: those that nobody can label; empty: rows that
    wait for either."""

    path: Path
    labels: Mapping[str, str]
    skipped: frozenset[str]
    empty: int


def file_of(directory: Path, number: int) -> Path:
    """The file of a round, counted from 1."""
    return directory / f"round-{number}.csv"


def write_rows(path: Path, task: Task, examples: Sequence[Example]) -> None:
    """The rows with an empty target. UsageError where the task has a column of a name that is needed here; DataError
    for another file of that name, which somebody may have filled in."""
    texts = {spec.column: name for name, spec in task.inputs.items()}
    grouped = [name for name in task.data.group_columns if name not in ("id", *texts)]  # it stands there already
    columns = (KEY, "id", *texts, *grouped, task.data.target, CANNOT)
    duplicate = next((name for name in columns if columns.count(name) > 1), None)
    if duplicate is not None:
        raise UsageError(
            f"{task.path}: two columns of {path.name} would be called {duplicate!r}; rename the task's column"
        )
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    for example in examples:
        input_texts = example.texts
        linked = dict(link.split("=", 1) for link in example.links)
        group = [linked.get(name, "") for name in grouped]
        writer.writerow([example.row_hash, example.id, *(input_texts[name] for name in texts.values()), *group, "", ""])
    text = file.getvalue()
    if path.exists() and path.read_bytes() != text.encode():
        raise DataError(
            f"{path} exists, and the plan beside it does not name it: labels in it would be lost; put the plan of this "
            "run back, or move the file away"
        )
    atomic_write(path, text)


def read_labels(path: Path, task: Task, row_keys: Sequence[str]) -> Labelled:
    """What people wrote. row_keys: the rows that the file was written with. DataError naming the file and the line."""
    rows = read_rows(path.name, path.parent)
    for column in (KEY, task.data.target, CANNOT):
        if column not in rows.columns:
            raise DataError(f"{path}: the column {column!r} is gone; fill in the file as it was written")
    labels: dict[str, str] = {}
    skipped: set[str] = set()
    read_keys: set[str] = set()
    for row, line in zip(rows.rows, rows.lines, strict=True):
        location, key = rows.location(line), str(row[KEY])
        if key not in row_keys or key in read_keys:
            problem = "stands twice" if key in read_keys else "is none that was asked for here"
            raise DataError(f"{location}: the row_key {key[:12]!r} {problem}; leave that column as it is")
        read_keys.add(key)
        filled = not blank(row[task.data.target])
        if filled and not blank(row[CANNOT]):
            raise DataError(
                f"{location}: the row has a label and a reason why it cannot have one; leave one of the two"
            )
        if filled:
            labels[key] = target_of(task, row, location, None, task.data.target)
        elif not blank(row[CANNOT]):
            skipped.add(key)
    missing = len(set(row_keys) - read_keys)
    if missing:
        raise DataError(
            f"{path}: {missing} rows that were asked for are gone; put them back, and write under {CANNOT} why where "
            "one cannot be labelled: rows that are left out unseen would make the estimate a biased one"
        )
    return Labelled(path, labels, frozenset(skipped), len(read_keys) - len(labels) - len(skipped))
