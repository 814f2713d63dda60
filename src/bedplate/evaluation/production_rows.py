"""Production data of a row: the current system's recorded answer, the row's slices and its traffic weight.

Weights of shares are those of post-stratification (Holt & Smith 1979, JRSS A 142:33); what rows of unequal weight are
worth is (Σw)² / Σw² of them (Kish 1965, Survey Sampling, §11.7).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bedplate.core.errors import DataError
from bedplate.core.statistics.unequal import worth
from bedplate.data.sources import Row
from bedplate.evaluation.task import Task


def recorded(task: Task, row: Row, location: str) -> str | None:
    """What the system that runs today answered, as the task's answers are written; None where it gave none, or the task
    names no such column. DataError for a value that is no answer."""
    spec = task.data.current
    value: Any = None if spec is None else row.get(spec.column)
    if spec is None or value is None or (isinstance(value, str) and not value.strip()):
        return None
    if task.output.kind == "labels" and isinstance(value, str) and task.output.separator is not None:
        return json.dumps([name for part in value.split(task.output.separator) if (name := part.strip())])
    if task.output.kind in ("json", "labels"):
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if not isinstance(value, str):
        raise DataError(f"{location}: the recorded answer ({spec.column}) is {value!r}, not text")
    return value.strip() if task.labels else value


def slices_of(task: Task, row: Row, location: str) -> dict[str, str]:
    """The row's value of each column that is kept with it, "" where it has none. DataError for what is no plain one."""
    values_by_column: dict[str, str] = {}
    for column in task.data.sliced:
        value: Any = row.get(column)
        if value is not None and not isinstance(value, str | int | float | bool):
            raise DataError(
                f"{location}: column {column!r} holds {value!r}, which names no slice; use texts or numbers"
            )
        values_by_column[column] = "" if value is None else str(value).strip()
    return values_by_column


def weights_of(
    task: Task, split: str, counted: Sequence[float], slices: Sequence[Mapping[str, str]]
) -> tuple[list[float], list[str]]:
    """The weights of a split's rows, 1 on average, and sentences for the report. counted: how often each row's text
    stands in the data. DataError where the split has no row of a value that has a share, or a row of one that has none.
    """
    traffic = task.data.traffic
    weights = np.array(counted, dtype=np.float64)
    column = traffic.column
    if column is not None and weights.size:
        values = [row_slices[column] for row_slices in slices]
        shares = traffic.shares[column]
        without = next((value for value in values if value not in shares), None)
        if without is not None:
            raise DataError(
                f"data.traffic.shares.{column}: rows of {split} have the value {without!r}, which has no share; give "
                "it one, or take these rows out"
            )
        sums = {value: float(weights[[row_value == value for row_value in values]].sum()) for value in shares}
        empty = next((value for value, total in sums.items() if total == 0), None)
        if empty is not None:
            raise DataError(
                f"data.traffic.shares.{column}: {split} has no row of {empty!r}, which is {shares[empty]:.1%} of the "
                "traffic; label such rows, or take the value out of the shares"
            )
        weights *= np.array([shares[value] / sums[value] for value in values])
    if not weights.size or np.ptp(weights) <= 1e-12 * weights.max():
        return [1.0] * weights.size, []
    note = f"{split}: {weights.size} rows are weighted by the traffic and worth {worth(weights):.0f} of equal weight"
    return (weights / weights.mean()).tolist(), [note]
