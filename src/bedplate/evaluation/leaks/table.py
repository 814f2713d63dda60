"""A task's rows as groups are looked for in them: texts, targets, declared groups, and what else each column says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bedplate.core.statistics.clusters import group_codes
from bedplate.data.linked import linked
from bedplate.data.rows import Row, SourceRows, blank
from bedplate.data.splits import normalise
from bedplate.evaluation.leaks.words import word_vectors
from bedplate.evaluation.task import Task

SOURCE = "source"
MOST_LABELS = 200


@dataclass(frozen=True)
class Table:
    """Of each row (one of each text): its inputs as one text, its target as text, its declared group, and the values of
    the columns that are nothing to the task (None where there is none, or no text, whole number or true or false)."""

    texts: tuple[str, ...]
    targets: tuple[str, ...]
    groups: tuple[str, ...]
    columns: Mapping[str, tuple[str | None, ...]]

    @property
    def rows(self) -> int:
        return len(self.texts)

    @cached_property
    def units(self) -> Table:
        """One row of each declared group, in the order of the rows."""
        order = np.random.Generator(np.random.PCG64(0)).permutation(self.rows)
        first: dict[str, int] = {}
        for row in order.tolist():
            first.setdefault(self.groups[row], row)
        unit_rows = sorted(first.values())
        return Table(
            tuple(self.texts[row] for row in unit_rows),
            tuple(self.targets[row] for row in unit_rows),
            tuple(self.groups[row] for row in unit_rows),
            {name: tuple(values[row] for row in unit_rows) for name, values in self.columns.items()},
        )

    def target_vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """[rows, d]: labels as 0 and 1; the words of targets where more than MOST_LABELS of them differ, or most do."""
        targets = [self.targets[row] for row in rows.tolist()]
        codes, count = group_codes(targets)
        return np.eye(count)[codes] if count <= min(MOST_LABELS, len(targets) / 2) else word_vectors(targets)


def table_of(task: Task, sources: Mapping[str, SourceRows]) -> Table:
    """The rows of all sources, as they come, without empty ones and copies of a text. Nothing is checked here."""
    used_columns = {spec.column for spec in task.inputs.values()} | {task.data.target, *task.data.group_columns, "id"}
    used_columns |= {task.data.second_label} if task.data.second_label else set[str]()
    used_columns |= {*task.data.sliced, *([task.data.current.column] if task.data.current else [])}
    names = dict.fromkeys(name for rows in sources.values() for name in rows.columns if name not in used_columns)
    several = len(sources) > 1 and task.data.split.files is None and SOURCE not in names
    texts: dict[str, str] = {}
    source_rows: list[tuple[str, Row]] = []
    for rows in sources.values():
        for row in rows.rows:
            text = "\n".join(str(row.get(spec.column) or "") for spec in task.inputs.values())
            if text.strip() and (normalized := normalise(text)) not in texts:
                texts[normalized] = text
                source_rows.append((rows.source, row))
    columns = {name: tuple(_value(row.get(name)) for _, row in source_rows) for name in names}
    if several:
        columns[SOURCE] = tuple(source for source, _ in source_rows)
    return Table(
        tuple(texts.values()),
        tuple(_target(row.get(task.data.target)) for _, row in source_rows),
        tuple(_groups(task.data.group_columns, [row for _, row in source_rows])),
        columns,
    )


def _groups(columns: Sequence[str], rows: Sequence[Row]) -> list[str]:
    if not columns:
        return [str(number) for number in range(len(rows))]
    row_links = [[f"{name}={row[name]}" for name in columns if not blank(row.get(name))] for row in rows]
    return linked([values or [str(number)] for number, values in enumerate(row_links)])


def _value(value: Any) -> str | None:
    if isinstance(value, str):
        return value.strip() or None
    return str(value) if isinstance(value, bool | int) else None


def _target(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
