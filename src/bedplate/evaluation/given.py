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
from bedplate.data.rows import Rows
from bedplate.data.tables import json_lines, split_tables, table_rows
from bedplate.evaluation.task import DataSpec, Task, load_task


def given_rows(data: Any, call: Callable[[str, str], str], name: str = "data") -> dict[str, Rows]:
    """The rows of tables by the prefix of their ids, as `load_examples` takes them. call: what a source is called, of
    the split ("" where there is one table) and the sha256 of its rows. UsageError, DataError."""
    found: dict[str, Rows] = {}
    for split, table in split_tables(data, name).items():
        rows = table_rows(table, "", f"{name}[{split!r}]" if split else name)
        found[f"{split}/" if split else ""] = replace(rows, source=call(split, rows.sha256))
    return found


def by_hash(split: str, sha256: str) -> str:
    """What a source is called that is kept nowhere."""
    return f"{split or 'data'}:{sha256[:16]}"


def overrides_for(given: Mapping[str, Rows]) -> list[str]:
    """What makes these rows the source of a task file, as its `key=value` overrides."""
    if "" in given:
        return [f"data.source={json.dumps(given[''].source)}"]
    files = {prefix.removesuffix("/"): rows.source for prefix, rows in given.items()}
    return ["data.source=null", "data.limit=null", f"data.split={json.dumps(files)}"]


def task_of(task: Task | Path | str, given: Mapping[str, Rows], overrides: Sequence[str] = ()) -> Task:
    """The task with these rows as its source. ConfigError where they do not go with the rest of it."""
    if not isinstance(task, Task):
        return load_task(task, [*overrides, *overrides_for(given)])
    values = task.data.model_dump()
    if "" in given:
        values["source"] = given[""].source
    else:
        values |= {"source": None, "limit": None}
        values["split"] = {prefix.removesuffix("/"): rows.source for prefix, rows in given.items()}
    try:
        return task.model_copy(update={"data": DataSpec(**values)})
    except pydantic.ValidationError as error:
        raise ConfigError(f"the task {task.task} and these rows: {error.errors()[0]['msg']}") from error


def keep(given: Mapping[str, Rows], relative_to: Path) -> None:
    """Writes each source as the .jsonl file that it is called by, so that whoever reads the task again finds it."""
    for rows in given.values():
        atomic_write(relative_to / rows.source, json_lines(rows.rows))
