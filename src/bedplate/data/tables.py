"""Tables in memory as rows: DataFrames of pandas and polars, data sets of `datasets`, tables of pyarrow, lists of
mappings. None of these libraries is imported here: what is given to us has been imported already."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeGuard

from bedplate.core.errors import DataError, UsageError
from bedplate.core.files import sha256_bytes
from bedplate.data.rows import SourceRows
from bedplate.data.table_files import plain

TABLE_CLASSES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("pandas", ("DataFrame",)),
    ("polars", ("DataFrame", "LazyFrame")),
    ("datasets", ("Dataset", "IterableDataset")),
    ("pyarrow", ("Table", "RecordBatch")),
)
"""Library → its classes of tables."""
NAMED = "a pandas or polars DataFrame, a Dataset of `datasets`, a pyarrow Table or a list of mappings"
SPLITS = ("train", "valid", "test")


def is_table(value: object) -> bool:
    """Whether it is a table of one of these libraries."""
    return _library(value) is not None


def is_splits(value: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether it is a table for each split by its name, as a mapping or a DatasetDict."""
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


def records(table: Any, name: str = "data") -> Iterator[dict[str, Any]]:
    """A table's rows as plain values. name: of the argument, for messages. UsageError for what is no table, DataError
    for a value that no row can hold."""
    for number, row in enumerate(_raw(table, name), start=1):
        if not isinstance(row, Mapping):
            raise UsageError(f"{name}: row {number} is {type(row).__name__}, not a mapping of column names to values")
        odd = next((key for key in row if not isinstance(key, str)), None)
        if odd is not None:
            raise UsageError(f"{name}: a column is named {odd!r}; names of columns are texts")
        cells: dict[str, Any] = {}
        for key, value in row.items():
            try:
                cells[key] = plain(value)
            except DataError as error:
                raise DataError(f"{name}, row {number}, column {key!r}: {error.message}") from None
        yield cells


def json_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Rows as a .jsonl file holds them: what names a table by its hash, and what is kept of it."""
    text = "".join(json.dumps(dict(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    return text.encode("utf-8", "surrogatepass")


def table_rows(table: Any, source: str, name: str = "data") -> SourceRows:
    """A table as the rows of a source, which is called `source`. DataError for a table without rows."""
    rows = list(records(table, name))
    if not rows:
        raise DataError(f"{name}: the table has no rows")
    columns = tuple(dict.fromkeys(key for row in rows for key in row))
    return SourceRows(
        tuple(MappingProxyType(row) for row in rows),
        tuple(range(1, len(rows) + 1)),
        columns,
        {"read": len(rows)},
        sha256_bytes(json_lines(rows)),
        source,
        Path(name),
        counted="row",
    )


def split_tables(data: Any, name: str = "data") -> dict[str, Any]:
    """What a caller gave in place of a task's source: one table under "", or one for each split under its name.

    UsageError for what is no table, or splits that are not train, valid and test ("validation" stands for valid).
    """
    if not is_splits(data):
        return {"": data}
    tables = {"valid" if split == "validation" else split: table for split, table in data.items()}
    if set(tables) != set(SPLITS) or len(tables) != len(data):
        split_names = ", ".join(map(repr, data)) or "nothing"
        raise UsageError(f"{name} has the splits {split_names}; give 'train', 'valid' and 'test', or one table")
    return tables


def _library(value: object) -> str | None:
    for library, classes in TABLE_CLASSES:
        module = sys.modules.get(library)
        table_types = tuple(
            table_type for class_name in classes if isinstance(table_type := getattr(module, class_name, None), type)
        )
        if table_types and isinstance(value, table_types):
            return library
    return None


def _raw(table: Any, name: str) -> Iterable[Any]:
    """Rows as the library gives them."""
    library = _library(table)
    if library == "pandas":
        columns = list(table.columns)
        duplicate = next((column for column in columns if columns.count(column) > 1), None)
        if duplicate is not None:
            raise UsageError(f"{name}: two columns are named {duplicate!r}")
        return (dict(zip(columns, cells, strict=True)) for cells in table.itertuples(index=False, name=None))
    if library == "polars":
        return (table.collect() if hasattr(table, "collect") else table).iter_rows(named=True)
    if library == "pyarrow":
        return table.to_pylist()
    if library == "datasets":
        return table
    if isinstance(table, Sequence) and not isinstance(table, str | bytes):
        return table
    raise UsageError(f"{name} is {type(table).__name__}; give {NAMED}")
