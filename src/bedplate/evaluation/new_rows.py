"""Reads rows that were collected after a task's own: checked in the same way, and not split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bedplate.core.errors import DataError
from bedplate.data.sources import read_rows
from bedplate.data.splits import SplitRecord, split_hash
from bedplate.evaluation.data_spec import TrafficSpec
from bedplate.evaluation.examples import Example, distinct, parse_rows, parsed_rows
from bedplate.evaluation.task import Task


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


def fresh_rows(task: Task, source: Path | str) -> FreshRows:
    """New rows from a .jsonl, .csv, .tsv or .parquet file, with targets where it has such a column. DataError."""
    rows = read_rows(str(source))
    labelled = task.data.target in rows.columns
    missing = next((name for name in task.data.group_columns if name not in rows.columns), None)
    grouped = missing is None
    counts: Counter[str] = Counter()
    notes: list[str] = []
    if not labelled:
        notes.append(f"{source} has no column {task.data.target!r}, so nothing is known of the quality on it")
    if not grouped:
        notes.append(
            f"{source} has no column {missing!r}, so each row is taken for a group of its own: where rows "
            "belong together, a difference is seen too easily"
        )
        task = task.model_copy(update={"data": task.data.model_copy(update={"group_by": None})})
    # what new rows weigh, what ran beside them, and second labels are not asked of them
    unasked = {"current": None, "slices": (), "traffic": TrafficSpec(), "second_label": None}
    task = task.model_copy(update={"data": task.data.model_copy(update=unasked)})
    documents = None if task.output.documents is None else task.output.documents.read(task.directory)[0]
    parsed = parse_rows(task, rows, documents, counts, notes, labelled=labelled)
    examples_by_id, records = distinct(task, parsed, rows.source, counts, notes)
    if not records:
        raise DataError(f"{source}: no usable row is left")
    examples = tuple(examples_by_id[record.id] for record in records)
    return FreshRows(examples, tuple(parsed), labelled, grouped, dict(counts), (*notes, *rows.notes), str(source))


def every_row(task: Task) -> list[Example]:
    """All rows of a task's own files, before copies are dropped and rows are split. DataError."""
    documents = None if task.output.documents is None else task.output.documents.read(task.directory)[0]
    sources = {prefix: read_rows(source, task.directory) for prefix, source in task.data.by_prefix.items()}
    return [example for part in parsed_rows(task, sources, documents, Counter(), []).values() for example in part]
