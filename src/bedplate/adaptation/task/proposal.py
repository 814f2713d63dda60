"""Writes task files from Python: `bedplate.init` for rows, and those of tasks that `bedplate.adapt` gets in memory."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from bedplate.adaptation.task.draft import TaskDraft, draft, task_text
from bedplate.core.arguments import checked
from bedplate.core.config import parse_config
from bedplate.core.display import join_names
from bedplate.core.errors import UsageError
from bedplate.core.files import atomic_write
from bedplate.core.progress import notice
from bedplate.data.rows import SourceRows
from bedplate.data.sources import read_rows
from bedplate.data.tables import is_table, json_lines, records, table_rows
from bedplate.evaluation.examples import RowParser, TaskData, load_examples
from bedplate.evaluation.leaks.hidden_groups import hidden_groups, table_of
from bedplate.evaluation.task import Task, load_task
from bedplate.report.schema_parts import HiddenGroups

DEFAULT_BASE, DEFAULT_MINUTES = "smollm2-135m", 10.0


@checked
def init(
    data: Any,
    out: Path | str = "task.yaml",
    *,
    target: str | None = None,
    inputs: Sequence[str] = (),
    group: str | None = None,
    name: str | None = None,
    instructions: str | None = None,
    bases: Sequence[str] = (DEFAULT_BASE,),
    bar: float | None = None,
    minutes: float = DEFAULT_MINUTES,
    usd_per_hour: float = 0.10,
    overwrite: bool = False,
) -> Path:
    """Write a commented task file for rows, as `bedplate init` does, and return its path.

    data: a file of rows, or a table in memory, which is written beside the task file. target: the column of answers.
    inputs: the columns that are asked with. group: a column of what rows belong to, or "none". What is left out is
    guessed from names and values. bar: what the metric must reach. minutes: the budget of the search.

        path = bedplate.init(frame, "task.yaml", target="category", bar=0.8)
        report = bedplate.adapt(path, "runs/first")

    UsageError for columns that are not there or cannot be told apart, and for a file that exists already.
    """
    path, in_memory = Path(out), not isinstance(data, str | os.PathLike)
    rows_path = path.with_suffix(".jsonl") if in_memory else Path(data)
    for written in (path, rows_path) if in_memory else (path,):
        if written.exists() and not overwrite:
            raise UsageError(f"{written} exists already; choose another name, or replace it (overwrite=True)")
    rows = table_rows(data, "data", "data") if in_memory else read_rows(str(rows_path.absolute()))
    chosen_group = None if group == "none" else group
    task_draft = draft(rows, inputs=inputs, target=target, group=chosen_group, grouped=group != "none")
    how: dict[str, Any] = {"name": name, "instructions": instructions, "bases": bases, "usd_per_hour": usd_per_hour}
    task_draft, split, _ = write_task(task_draft, rows, rows_path, path, bar=bar, minutes=minutes, **how)
    if in_memory:
        atomic_write(rows_path, json_lines(rows.rows))
    for line in summary(task_draft, split, path, minutes):
        notice(line)
    return path


def write_task(
    task_draft: TaskDraft, rows: SourceRows, data: Path, path: Path, *, bar: float | None, minutes: float, **how: Any
) -> tuple[TaskDraft, TaskData, list[HiddenGroups]]:
    """Write the task file; returns the draft with notes on what `adapt` will ask and what test can show, the rows in
    their splits as the file will have them read, and what looks like groups beside those it names. bar: None for the
    draft's. how: as of `task_text`. ConfigError, DataError for what cannot work; then nothing is written."""
    task_draft = task_draft if bar is None else replace(task_draft, bar=bar)
    content = task_text(task_draft, data, path, minutes=minutes, **how)
    task, sources = parse_config(content, Task, str(path)), {"": rows}
    hidden, split = hidden_groups(table_of(task, sources))[0], load_examples(task, loaded_rows=sources)
    findings = [finding for finding in hidden if finding.strong]
    asked = [f"`adapt` will ask: {finding.says}." for finding in findings]
    design = task_draft.design(task_draft.bar, split.test.n, split.test.groups)
    atomic_write(path, content)
    return replace(task_draft, notes=(*task_draft.notes, *asked, design)), split, findings


def summary(task_draft: TaskDraft, split: TaskData, path: Path, minutes: float) -> list[str]:
    """What was drafted, in lines: inputs and answer, rows and splits, notes, budget, metric and bar."""
    answers = task_draft.kind
    if task_draft.kind == "label":
        answers = f"one of {len(task_draft.labels)} labels: {join_names(task_draft.labels)}"
    read = f"read it through, above all the instructions and the bar ({task_draft.metric} {task_draft.bar:g})"
    return [
        f"asked with {', '.join(task_draft.inputs)}; the answer is {task_draft.target} ({answers})",
        f"{task_draft.usable:,} of {task_draft.rows:,} rows can be used: {len(split.train):,} train, "
        f"{len(split.valid):,} valid, {split.test.n:,} test",
        *(f"- {note}" for note in task_draft.notes),
        f"written to {path}, with a budget of {minutes:g} min; {read}",
    ]


def task_file_of(task: Any, out: Path, target: str | None, seconds: float | None, undo: ExitStack) -> Path:
    """The path of a run's task file. A task in memory is written beside the run, as `OUT.task.yaml`: a mapping as it
    stands, a table by `init`, unless an earlier call on the same rows did so. seconds: the run's budget. undo: what is
    called where the run cannot begin, and leaves both files as they were. UsageError for a `target` beside a task that
    names its own."""
    if isinstance(task, str | os.PathLike | Mapping):
        if target is not None:
            raise UsageError(
                "target goes with a table; a task file names its own, under data.target "
                "(bedplate.init drafts one for a file of rows)"
            )
        if not isinstance(task, Mapping):
            return Path(task)
    elif not is_table(task) and not isinstance(task, list | tuple):
        task_type = type(task).__name__
        raise UsageError(f"task is {task_type}; give a task file's path, its content as a mapping, or a table of rows")
    path = out.with_name(f"{out.name}.task.yaml")
    rows_path = path.with_suffix(".jsonl")
    for written in (path, rows_path):
        undo.callback(_restore, written, written.read_bytes() if written.is_file() else None)
    if isinstance(task, Mapping):
        atomic_write(path, yaml.safe_dump(_absolute(task), sort_keys=False, allow_unicode=True))
    elif (
        not (path.exists() and rows_path.exists())
        or rows_path.read_bytes() != json_lines(records(task, "task"))
        or target not in (None, load_task(path).data.target)
    ):
        minutes = DEFAULT_MINUTES if seconds is None else seconds / 60
        init(task, path, target=target, name=out.name, minutes=minutes, overwrite=True)
    else:
        notice(f"the task is the one that was drafted before: {path}")
    if not isinstance(task, Mapping):  # what is wrong with a row is told by its name in the caller's own table
        RowParser(load_task(path)).parse(table_rows(task, "task", "task"))
    return path


def _restore(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    elif path.read_bytes() != content:
        atomic_write(path, content)


def _absolute(task: Mapping[str, Any]) -> dict[str, Any]:
    """The task with a relative data file by its whole path: the written file lies elsewhere than the caller."""
    data = dict(task.get("data") or {})
    source = data.get("source")
    if isinstance(source, str) and Path(source).is_file():
        data["source"] = str(Path(source).absolute())
    return {**task, "data": data}
