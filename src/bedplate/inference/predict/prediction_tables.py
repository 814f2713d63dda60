"""Predictions beside their rows as a table (CSV, TSV, Parquet): every column of the rows, then the answer, its
probability and the error of a row that has no answer."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeAlias

from bedplate.core.errors import DataError
from bedplate.data.tables import BadRow, FileFormat, arrow

Writer: TypeAlias = Callable[[Mapping[str, type], Iterator[list[Any]], IO[bytes]], None]
ADDED_COLUMNS = ("answer", "probability", "error")
_ROWS_AT_ONCE = 1000
_EXACT = 2**53
"""Up to here an integer is a float as well."""


def column_types(rows_format: FileFormat, path: Path) -> dict[str, type]:
    """Every column of a file of rows, with the type that holds all of its values: bool, int, float or else str.

    DataError where a column already has the name of one that is added.
    """
    types: dict[str, set[type]] = {}
    with path.open("rb") as stream:
        for row in rows_format.read(stream, str(path)):
            for name, value in () if isinstance(row, BadRow) else row.value.items():
                types.setdefault(name, set()).update(() if value is None else (_type_of(value),))
    if rows_format.columns is not None:  # also of a file without rows
        with path.open("rb") as stream:
            types = {name: types.get(name, set[type]()) for name in rows_format.columns(stream)}
    taken = next((name for name in ADDED_COLUMNS if name in types), None)
    if taken is not None:
        raise DataError(
            f"{path}: the rows have a column {taken!r}, which the predictions add; rename it, or write .jsonl"
        )
    return {name: _common(value_types) for name, value_types in types.items()}


def write_table(predictions: Path, rows_format: FileFormat, rows: Path, out: IO[bytes], suffix: str) -> None:
    """Writes the rows of the file `rows` with their predictions (JSON lines, in the same order) as a table."""
    types = column_types(rows_format, rows)
    with rows.open("rb") as row_stream, predictions.open("rb") as prediction_stream:
        pairs = zip(rows_format.read(row_stream, str(rows)), prediction_stream, strict=True)
        cells = (
            [None if isinstance(row, BadRow) else row.value.get(name) for name in types] + _added(json.loads(line))
            for row, line in pairs
        )
        WRITERS[suffix](types, cells, out)


def _separated(delimiter: str) -> Writer:
    def write(types: Mapping[str, type], cells: Iterator[list[Any]], out: IO[bytes]) -> None:
        text = io.TextIOWrapper(out, "utf-8", newline="", write_through=True)
        writer = csv.writer(text, delimiter=delimiter)
        writer.writerow([*types, *ADDED_COLUMNS])
        writer.writerows([_text(cell) for cell in row] for row in cells)
        text.detach()  # the file is its opener's to close

    return write


def _parquet(types: Mapping[str, type], cells: Iterator[list[Any]], out: IO[bytes]) -> None:
    parquet = arrow()
    import pyarrow

    arrow_types = {bool: pyarrow.bool_(), int: pyarrow.int64(), float: pyarrow.float64(), str: pyarrow.string()}
    columns = {**types, **dict(zip(ADDED_COLUMNS, (str, float, str), strict=True))}
    schema = pyarrow.schema([(name, arrow_types[column_type]) for name, column_type in columns.items()])
    with parquet.ParquetWriter(out, schema) as writer:
        while rows := list(islice(cells, _ROWS_AT_ONCE)):
            arrays = [
                [_text(cell) if column_type is str else cell for cell in column]
                for column_type, column in zip(columns.values(), zip(*rows, strict=True), strict=True)
            ]
            writer.write_table(pyarrow.table(dict(zip(columns, arrays, strict=True)), schema=schema))


WRITERS: dict[str, Writer] = {".csv": _separated(","), ".tsv": _separated("\t"), ".parquet": _parquet}
"""A table's suffix → how it is written. JSON lines are written as the predictions are made."""


def _type_of(value: Any) -> type:
    """The type of a cell; an integer that a column of floats would round is a text."""
    return str if type(value) is int and abs(value) > _EXACT else type(value)


def _common(value_types: set[type]) -> type:
    if value_types == {int, float}:
        return float
    return next(iter(value_types)) if len(value_types) == 1 and value_types <= {bool, int, float} else str


def _added(prediction: dict[str, Any]) -> list[Any]:
    answer, error = prediction.get("output"), prediction.get("error")
    return [answer, prediction.get("probabilities", {}).get(answer), None if error is None else error["message"]]


def _text(value: Any) -> Any:
    """A cell as text; lists and mappings are JSON."""
    text = value if isinstance(value, str) or value is None else json.dumps(value, ensure_ascii=False)
    return text if text is None else text.encode("utf-8", "backslashreplace").decode()
