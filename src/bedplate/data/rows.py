"""The rows that a data source gives, with their places, what was dropped, and the hash of what was read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bedplate.core.errors import DataError

Row = Mapping[str, Any]


@dataclass(frozen=True)
class SourceRows:
    """What one source holds: `rows`, the file's `lines` (from 1) beside them, `counts` of what was read and dropped.

    Every row has the same `columns` in .csv, .tsv and .parquet files and data sets; in .jsonl files `columns` is their
    union. counted: what `lines` count; tables without lines have rows.
    """

    rows: tuple[Row, ...]
    lines: tuple[int, ...]
    columns: tuple[str, ...]
    counts: Mapping[str, int]
    sha256: str
    source: str
    path: Path
    licence: str | None = None
    notes: tuple[str, ...] = field(default=())
    counted: Literal["line", "row"] = "line"

    def name(self, line: int) -> str:
        """What a row is called that has no name of its own."""
        return f"{self.counted} {line}"

    def location(self, line: int) -> str:
        """A row's place, for messages."""
        return f"{self.path}, {self.name(line)}"


def blank(value: Any) -> bool:
    """Whether a cell holds nothing."""
    return value is None or (isinstance(value, str) and not value.strip())


def text_of(row: Row, column: str, location: str) -> str:
    """A column of a row that holds text, "" where it has none. DataError, with `location`, for anything else."""
    value: Any = row.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{location}: column {column!r} holds {value!r}, which is {type(value).__name__}, not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{location}: column {column!r} holds half of a surrogate pair, which is not text") from None
    return value
