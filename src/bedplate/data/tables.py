"""Tables as rows: files (JSON lines, comma- or tab-separated values, Parquet), and tables of pandas, polars, `datasets`
and pyarrow or lists of mappings in memory.

Files are read row by row with line numbers; an unreadable row is passed on as such, so that the caller decides whether
it ends the work. Libraries of tables are not imported here: what is given to us has been imported already.
"""

from __future__ import annotations

import codecs
import csv
import datetime
import decimal
import io
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias, TypeGuard

from bedplate.core.errors import DataError, UsageError
from bedplate.core.files import sha256_bytes
from bedplate.core.json import JsonRuleError, load_json
from bedplate.data.rows import SourceRows

AT_ONCE = 1000
"""Rows of a Parquet file that are in memory together."""


@dataclass(frozen=True, slots=True)
class FileRow:
    """line: where it begins, counted from 1; of a Parquet file its row."""

    line: int
    value: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be read. message: why, with the file and the line."""

    line: int
    message: str


Reading: TypeAlias = Iterator[FileRow | BadRow]


@dataclass(frozen=True)
class FileFormat:
    """One kind of file. read: the rows of a stream, which the second argument names in messages; DataError where
    nothing can be read at all. columns: those of a stream, which every row has; None where each row has its own.
    counted: what a place in it is called."""

    read: Callable[[IO[bytes], str], Reading]
    columns: Callable[[IO[bytes]], Sequence[str]] | None = None
    counted: Literal["line", "row"] = "line"


def good(rows: Reading) -> Iterator[FileRow]:
    """The rows. DataError at the first that cannot be read."""
    for row in rows:
        if isinstance(row, BadRow):
            raise DataError(row.message)
        yield row


def arrow() -> Any:
    """pyarrow.parquet. UsageError where it is not installed."""
    try:
        import pyarrow.parquet as library
    except ModuleNotFoundError:
        raise UsageError("Parquet files need the extra `data`: pip install 'bedplate[data]'") from None
    return library


def plain(value: Any) -> Any:
    """A value of a table as JSON has it: a missing one (NaN, NaT, NA) is None, a date is its ISO text, numbers of numpy
    are Python's. DataError for what is neither text, number, truth, date nor a list or mapping of these."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, float):
        return _number(float(value))
    if isinstance(value, decimal.Decimal):
        whole = value.is_finite() and value == value.to_integral_value()
        return int(value) if whole else _number(float(value))
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): plain(member) for key, member in value.items()}
    if hasattr(value, "tolist"):  # arrays and numbers of numpy
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(member) for member in value]
    raise DataError(f"a value is {type(value).__name__}, which is not text, a number, a date or a list of these")


def _number(value: float) -> float | None:
    if math.isinf(value):
        raise DataError("a value is an infinite number")
    return None if math.isnan(value) else value


def _json_lines(stream: IO[bytes], location: str) -> Reading:
    at = 0
    for number, line in enumerate(stream, start=1):  # by \n alone: U+2028 may stand inside a string
        begin, at = at, at + len(line)
        content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line  # spreadsheets write one
        if not content.strip():
            continue
        try:
            value = load_json(content, repeated="the key {!r} appears twice")
        except UnicodeDecodeError as error:
            yield BadRow(number, not_utf8(error, begin + len(line) - len(content), location, number))
        except JsonRuleError as error:
            yield BadRow(number, f"{location}, line {number}: {error}")
        except ValueError as error:
            yield BadRow(number, f"{location}, line {number}: not a JSON object: {error}")
        else:
            if isinstance(value, dict):
                yield FileRow(number, value)
            else:
                problem = f"each line must be a JSON object, not {type(value).__name__}"
                yield BadRow(number, f"{location}, line {number}: {problem}")


def not_utf8(error: UnicodeDecodeError, begin: int, location: str, line: int) -> str:
    byte = f"byte {begin + error.start} (0x{error.object[error.start]:02x})"
    return f"{location}, line {line}: {byte} is not UTF-8; save the file as UTF-8"


def _separated(delimiter: str) -> Callable[[IO[bytes], str], Reading]:
    def read(stream: IO[bytes], location: str) -> Reading:
        unreadable: dict[int, str] = {}
        reader = csv.reader(_text_lines(stream, location, unreadable), delimiter=delimiter, strict=True)
        header: list[str] | None = None
        for start, parsed in _records(reader, location):
            damaged = min((line for line in unreadable if line >= start), default=None)
            cells = parsed if damaged is None else unreadable.pop(damaged)
            if header is None:
                if isinstance(cells, str):
                    raise DataError(cells)
                header = [cell.strip() for cell in cells]
                _check_header(header, location)
            elif isinstance(cells, str):
                yield BadRow(start, cells)
            elif len(cells) != len(header):
                fields = f"{len(cells)} fields where the header has {len(header)}"
                advice = "put quotes around a field that holds the separator or a line break"
                yield BadRow(start, f"{location}, line {start}: {fields}; {advice}")
            else:
                yield FileRow(start, dict(zip(header, cells, strict=True)))

    return read


def _header(delimiter: str, stream: IO[bytes]) -> list[str]:
    """The names of the columns of a file that was read before."""
    return [cell.strip() for cell in next(csv.reader(_text_lines(stream, "", {}), delimiter=delimiter), [])]


def _text_lines(stream: Iterable[bytes], location: str, unreadable: dict[int, str]) -> Iterator[str]:
    """The lines as text, in the ends they have. One that is not UTF-8 is named in `unreadable`, by its number."""
    at = number = 0
    for line in stream:
        begin, at = at, at + len(line)
        content = line if begin else line.removeprefix(codecs.BOM_UTF8)
        try:
            text, problem = content.decode("utf-8"), None
        except UnicodeDecodeError as error:
            text = content.decode("utf-8", "replace")
            problem = not_utf8(error, begin + len(line) - len(content), location, number + 1)
        for part in io.StringIO(text, newline=""):  # a line may also end with \r
            number += 1
            if problem is not None:
                unreadable[number], problem = problem, None
            yield part


def _records(reader: Any, location: str) -> Iterator[tuple[int, list[str] | str]]:
    """Each record with the line it begins at; or what is wrong with it."""
    while True:
        start = int(reader.line_num) + 1
        try:
            cells: list[str] = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield start, f"{location}, line {start}: malformed row: {error}"
            continue
        if cells:
            yield start, cells


def _check_header(header: list[str], location: str) -> None:
    for name in header:
        if not name:
            raise DataError(f"{location}, line 1: a column without a name; the first line must name the columns")
        if header.count(name) > 1:
            raise DataError(f"{location}, line 1: two columns are named {name!r}")


def _parquet(stream: IO[bytes], location: str) -> Reading:
    library = arrow()
    try:
        file = library.ParquetFile(stream)
        names: list[str] = file.schema_arrow.names
        batches = file.iter_batches(batch_size=AT_ONCE)
    except Exception as error:  # pyarrow's own errors have no common base but this
        raise DataError(f"{location} is not a readable Parquet file: {error}") from error
    duplicate = next((name for name in names if names.count(name) > 1), None)
    if duplicate is not None:
        raise DataError(f"{location}: two columns are named {duplicate!r}")
    number = 0
    while (batch := _next(batches, location)) is not None:
        for value in batch.to_pylist():
            number += 1
            try:
                yield FileRow(number, {name: plain(cell) for name, cell in value.items()})
            except DataError as error:
                yield BadRow(number, f"{location}, row {number}: {error.message}")


def _next(batches: Iterator[Any], location: str) -> Any:
    try:
        return next(batches, None)
    except Exception as error:  # as above
        raise DataError(f"{location} is not a readable Parquet file: {error}") from error


FORMATS: dict[str, FileFormat] = {
    ".jsonl": FileFormat(_json_lines),
    ".csv": FileFormat(_separated(","), partial(_header, ",")),
    ".tsv": FileFormat(_separated("\t"), partial(_header, "\t")),
    ".parquet": FileFormat(_parquet, lambda stream: arrow().ParquetFile(stream).schema_arrow.names, "row"),
}
"""A file's suffix → how it is read."""


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
    digest, lines = sha256_bytes(json_lines(rows)), range(1, len(rows) + 1)
    named = _library(table) == "pandas" and type(table.index).__name__ != "RangeIndex"
    index = tuple(table.index.tolist()) if named else ()
    return SourceRows.of(rows, lines, digest, source, Path(name), counted="row", index=index)


def split_tables(data: Any, name: str = "data") -> dict[str, Any]:
    """What a caller gave in place of a task's source: one table under "", or one for each split under its name.
    UsageError for what is no table, or splits that are not train, valid and test ("validation" stands for valid)."""
    if not is_splits(data):
        return {"": data}
    tables = {"valid" if split == "validation" else split: table for split, table in data.items()}
    if set(tables) != set(SPLITS) or len(tables) != len(data):
        split_names = ", ".join(map(repr, data)) or "nothing"
        raise UsageError(f"{name} has the splits {split_names}; give 'train', 'valid' and 'test', or one table")
    return tables


def _library(value: object) -> str | None:
    for library, classes in TABLE_CLASSES:
        table_types = (getattr(sys.modules.get(library), name, None) for name in classes)
        if any(isinstance(table_type, type) and isinstance(value, table_type) for table_type in table_types):
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
