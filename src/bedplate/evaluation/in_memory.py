"""Rows that are not a task's own: tables in memory in place of its source (one that is split as the task says, or one
for each split), and rows that were collected later, checked in the same way and not split."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pydantic

from bedplate.core.errors import ConfigError, DataError
from bedplate.core.files import atomic_write
from bedplate.data.rows import SourceRows
from bedplate.data.sources import read_rows
from bedplate.data.splits import SplitRecord, split_hash
from bedplate.data.tables import json_lines, split_tables, table_rows
from bedplate.evaluation.examples import Example, RowParser, sources_of
from bedplate.evaluation.task import DataSpec, Task, TrafficSpec, load_task


def given_rows(data: Any, call: Callable[[str, str], str], name: str = "data") -> dict[str, SourceRows]:
    """The rows of tables by the prefix of their ids, as `load_examples` takes them. call: what a source is called, of
    the split ("" where there is one table) and the sha256 of its rows. UsageError, DataError."""
    rows_by_prefix: dict[str, SourceRows] = {}
    for split, table in split_tables(data, name).items():
        rows = table_rows(table, "", f"{name}[{split!r}]" if split else name)
        rows_by_prefix[f"{split}/" if split else ""] = replace(rows, source=call(split, rows.sha256))
    return rows_by_prefix


def by_hash(split: str, sha256: str) -> str:
    """What a source is called that is kept nowhere."""
    return f"{split or 'data'}:{sha256[:16]}"


def overrides_for(rows_by_prefix: Mapping[str, SourceRows]) -> list[str]:
    """What makes these rows the source of a task file, as its `key=value` overrides."""
    if "" in rows_by_prefix:
        return [f"data.source={json.dumps(rows_by_prefix[''].source)}"]
    files = {prefix.removesuffix("/"): rows.source for prefix, rows in rows_by_prefix.items()}
    return ["data.source=null", "data.limit=null", f"data.split={json.dumps(files)}"]


def task_of(task: Task | Path | str, rows_by_prefix: Mapping[str, SourceRows], overrides: Sequence[str] = ()) -> Task:
    """The task with these rows as its source. ConfigError where they do not go with the rest of it."""
    if not isinstance(task, Task):
        return load_task(task, [*overrides, *overrides_for(rows_by_prefix)])
    values = task.data.model_dump()
    if "" in rows_by_prefix:
        values["source"] = rows_by_prefix[""].source
    else:
        values |= {"source": None, "limit": None}
        values["split"] = {prefix.removesuffix("/"): rows.source for prefix, rows in rows_by_prefix.items()}
    try:
        return task.model_copy(update={"data": DataSpec(**values)})
    except pydantic.ValidationError as error:
        raise ConfigError(f"the task {task.task} and these rows: {error.errors()[0]['msg']}") from error


def write_sources(rows_by_prefix: Mapping[str, SourceRows], relative_to: Path) -> None:
    """Writes each source as the .jsonl file that it is called by, so that whoever reads the task again finds it."""
    for rows in rows_by_prefix.values():
        atomic_write(relative_to / rows.source, json_lines(rows.rows))


@dataclass(frozen=True)
class FreshRows:
    """`examples`: one row of each text. all_examples: all rows, copies among them. labelled: whether they have targets;
    without, every target is "". grouped: whether they have the task's groups, or it has none."""

    examples: tuple[Example, ...]
    all_examples: tuple[Example, ...]
    labelled: bool
    grouped: bool
    counts: Mapping[str, int]
    notes: tuple[str, ...]
    source: str

    @property
    def hash(self) -> str:
        """SHA-256 of texts, targets and groups; their order and their file do not affect it."""
        return split_hash([SplitRecord(e.id, e.row_hash, e.target, e.group) for e in self.all_examples])


def fresh_rows(task: Task, new: Any) -> FreshRows:
    """New rows from a .jsonl, .csv, .tsv or .parquet file, or of a table, with targets where it has such a column.
    DataError."""
    rows = read_rows(str(new)) if isinstance(new, str | Path) else table_rows(new, "rows", "rows")
    source = rows.source
    labelled = task.data.target in rows.columns
    missing = next((name for name in task.data.group_columns if name not in rows.columns), None)
    grouped = missing is None
    notes: list[str] = []
    if not labelled:
        notes.append(f"{source} has no column {task.data.target!r}, so nothing is known of the quality on it")
    if not grouped:
        notes.append(
            f"{source} has no column {missing!r}, so each row is taken for a group of its own: where rows "
            "belong together, a difference is seen too easily"
        )
        task = task.model_copy(update={"data": task.data.model_copy(update={"group_by": None})})
    # shares of the traffic, what ran beside them, and second labels are not asked of them
    traffic = TrafficSpec(duplicates=task.data.traffic.duplicates)
    unasked = {"current": None, "slices": (), "traffic": traffic, "second_label": None}
    task = task.model_copy(update={"data": task.data.model_copy(update=unasked)})
    parser = RowParser(task, labelled=labelled)
    parsed = parser.parse(rows)
    records = parser.distinct({"": parsed}, {"": rows})
    if not records:
        raise DataError(f"{source}: no usable row is left")
    examples = tuple(parser.examples[record.id] for record in records)
    notes += parser.notes
    return FreshRows(examples, tuple(parsed), labelled, grouped, dict(parser.counts), tuple(notes), source)


def every_row(task: Task) -> list[Example]:
    """All rows of a task's own files, before copies are dropped and rows are split. DataError."""
    return [example for part in RowParser(task).parse_all(sources_of(task)).values() for example in part]
