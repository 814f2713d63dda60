"""The rows that a data source gives, with their places, what was dropped, and the hash of what was read; and
INPUTS, the kinds of input that a task may have: a new kind is one class and one row there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol

from bedplate.core.display import join_names
from bedplate.core.errors import DataError
from bedplate.core.values import Media, Value, as_text

Row = Mapping[str, Any]


@dataclass(frozen=True)
class SourceRows:
    """What one source holds: `rows`, the file's `lines` (from 1) beside them, `counts` of what was read and dropped.
    Every row has the same `columns` in .csv, .tsv and .parquet files and data sets; in .jsonl files `columns` is their
    union. counted: what `lines` count; tables without lines have rows. index: what a caller calls the rows of a table,
    beside their numbers."""

    rows: tuple[Row, ...]
    lines: tuple[int, ...]
    columns: tuple[str, ...]
    counts: Mapping[str, int]
    sha256: str
    source: str
    path: Path
    licence: str | None = None
    counted: Literal["line", "row"] = "line"
    index: tuple[object, ...] = ()

    @classmethod
    def of(
        cls,
        rows: Sequence[Row],
        lines: Sequence[int],
        sha256: str,
        source: str,
        path: Path,
        *,
        dropped: Mapping[str, int] = MappingProxyType({}),
        **about: Any,
    ) -> SourceRows:
        """What was read: rows with their lines, and how many were dropped, by reason."""
        columns = tuple(dict.fromkeys(name for row in rows for name in row))
        counts = {"read": len(rows) + sum(dropped.values()), **dropped}
        return cls(tuple(map(MappingProxyType, rows)), tuple(lines), columns, counts, sha256, source, path, **about)

    def name(self, line: int) -> str:
        """What a row is called that has no name of its own."""
        return f"{self.counted} {line}"

    def location(self, line: int) -> str:
        """A row's place, for messages."""
        index = f" (index {self.index[line - 1]!r})" if self.index else ""
        return f"{self.path}, {self.name(line)}{index}"

    def listed(self, lines: Sequence[int]) -> str:
        """How many of the rows these are, and the first of them by name."""
        names = [repr(self.index[line - 1]) if self.index else str(line) for line in lines]
        counted = "index" if self.index else f"{self.counted}s"
        return f"{len(lines):,} of {len(self.rows):,} rows ({counted} {join_names(names)})"


def blank(value: Any) -> bool:
    """Whether a cell holds nothing."""
    return value is None or (isinstance(value, str) and not value.strip())


def label_text(value: Any) -> Any:
    """A label that a table holds as a whole number or a truth value as its text (1, true), anything else as it is."""
    if isinstance(value, bool):
        return str(value).lower()
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return str(int(value)) if whole else value


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


class InputKind(Protocol):
    def read(self, row: Row, column: str, location: str) -> Value:
        """The value in a row's cell. DataError naming the location."""
        ...

    def text_in_prompt(self, value: Value) -> str:
        """What stands for the value in a prompt template. RequestError."""
        ...


class TextInput:
    """Text, which stands in a prompt as it is."""

    def read(self, row: Row, column: str, location: str) -> str:
        return text_of(row, column, location)

    def text_in_prompt(self, value: Value) -> str:
        return as_text(value)


INPUTS: dict[str, InputKind] = {"text": TextInput()}


def text_in_prompt(value: Value) -> str:
    """What stands for a value of any kind in a prompt template. RequestError for a kind that is not in the table."""
    kind = INPUTS.get(value.kind) if isinstance(value, Media) else INPUTS["text"]
    return as_text(value) if kind is None else kind.text_in_prompt(value)


def check_input_kind(kind: str) -> str:
    """The name of a kind of input. ValueError for one that is not in the table."""
    if kind in INPUTS:
        return kind
    problem = f"input kind {kind!r} is not supported yet" if kind in ("image", "audio") else f"no input kind {kind!r}"
    raise ValueError(f"{problem}; supported: {', '.join(INPUTS)}")
