"""Rows in memory in place of a task's own source: one table that is split as the task says, or one for each split."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydantic

from bedplate.core.errors import ConfigError
from bedplate.core.files import atomic_write
from bedplate.data.rows import SourceRows
from bedplate.data.tables import json_lines, split_tables, table_rows
from bedplate.evaluation.data_spec import DataSpec
from bedplate.evaluation.task import Task, load_task


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
