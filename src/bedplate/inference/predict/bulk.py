"""A file of rows → a file of predictions, in memory that does not grow with the rows, going on where it was killed.

Rows are read from any of FORMATS, predictions are JSON lines, or a table (CSV, TSV, Parquet) that is made of them at
the end: every column of the rows, then the answer, its probability and the error of a row that has none. While it runs,
the predictions grow in `OUT.partial`, beside the `OUT.partial.json` that says which run they belong to; a finished run
renames them to `OUT`. Batches are cut by position, so a resumed run writes the same bytes.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
import io
import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeAlias

from bedplate.core.errors import DataError, RequestError, UsageError
from bedplate.core.files import atomic_write, sha256_json, writable
from bedplate.core.progress import notice
from bedplate.data.tables import FORMATS, BadRow, FileFormat, FileRow, Reading, arrow
from bedplate.inference.predict.callable_skin import Prediction, SkinPredictor, columns_for
from bedplate.skins.files import skin_id

SHOWN = 5
"""Rows with errors that are named when a run is over."""


@dataclass
class Counts:
    """`rows` written in all, `failed` of them with an error, `resumed` of them by an earlier run. first_failed: line
    and message of the first that failed, SHOWN of them at most."""

    rows: int = 0
    failed: int = 0
    resumed: int = 0
    first_failed: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])


@dataclass(frozen=True)
class Survey:
    """The content of a file of rows. sha256: of the file. unused: columns that are no input of the skin and not its
    `id`."""

    rows: int
    sha256: str
    unused: tuple[str, ...]


class RowSource:
    """Rows to predict, of a file by its suffix, or of a stream in one of FORMATS. keep_going: a row that cannot be read
    gets an error in place of its answer; without, it ends the run before anything is computed."""

    def __init__(self, inputs: Sequence[str], path: Path, format: str | None = None, keep_going: bool = False) -> None:
        self.inputs, self.path, self.keep_going = tuple(inputs), path, keep_going
        self.row_format = file_format(str(path) if format is None else f".{format}")
        self.unused: tuple[str, ...] = ()

    def rows(self, stream: IO[bytes]) -> Reading:
        """The rows as they come, each as the inputs by name and perhaps its `id`. DataError for a table without a
        column that is needed, and for a row that cannot be read."""
        raw_rows = self.row_format.read(stream, str(self.path))
        columns: dict[str, str] | None = None
        for row in raw_rows:
            if isinstance(row, BadRow) and not self.keep_going:
                raise DataError(f"{row.message} (--keep-going answers the other rows)")
            if isinstance(row, BadRow) or not self.row_format.columns:
                yield row
                continue
            if columns is None:
                columns = columns_for(self.inputs, list(row.value), str(self.path))
                if "id" in row.value:
                    columns.setdefault("id", "id")
                self.unused = tuple(name for name in row.value if name not in columns.values())
            yield FileRow(row.line, {name: row.value[column] for name, column in columns.items()})

    def survey(self) -> Survey:
        """The whole file read once, so that a damaged one is told before any work."""
        with _opened(self.path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            count = sum(1 for _ in self.rows(file))
        return Survey(count, digest, self.unused)


def file_format(name: str) -> FileFormat:
    """The reader of a file by its suffix. UsageError for an unknown one."""
    suffix = Path(name).suffix.lower() or name.lower()
    if suffix not in FORMATS:
        raise UsageError(f"{name}: rows are read from files that end in {', '.join(FORMATS)}; or say their --format")
    return FORMATS[suffix]


def predict_rows(
    predictor: SkinPredictor, rows: Iterable[FileRow | BadRow], batch: int
) -> Iterator[list[dict[str, Any]]]:
    """Batches of output rows: `id` if the row has one, `line`, then the prediction, or `error` for a row that cannot be
    read or predicted."""
    if batch < 1:
        raise UsageError(f"the batch is {batch} rows; it must be at least 1")
    source = iter(rows)
    while group := list(islice(source, batch)):
        # What earlier batches left in the cache would change last bits, and a resumed run has not seen them.
        read = [row for row in group if isinstance(row, FileRow)]
        answers = iter(_answers(predictor, read, tenant=f"lines from {group[0].line}") if read else ())
        yield [_unread(row) if isinstance(row, BadRow) else _head(predictor, row) | next(answers) for row in group]


def predict_file(
    predictor: SkinPredictor,
    source: RowSource,
    out: Path,
    *,
    sha256: str,
    batch: int,
    overwrite: bool = False,
    advance: Callable[[int], None] = lambda n: None,
) -> Counts:
    """Predicts every row of `source`, whose file has this sha256 (`survey`), into `out`; call it again after a kill and
    it goes on. overwrite: `out` is replaced where it exists, once the new one is whole, and what another run left
    unfinished is begun again. Otherwise both raise UsageError. `advance` is told the number of rows as they are
    written."""
    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists already; choose another name, or replace it (--overwrite)")
    run: dict[str, Any] = {"input_sha256": sha256, "skin": skin_id(predictor.skin), "batch": batch}
    if source.keep_going:
        run["keep_going"] = True
    run |= predictor.execution
    if out.suffix in WRITERS:
        column_types(source.row_format, source.path)  # refuses names that clash before anything is computed
    with _partial(out, run, source, overwrite) as file:
        counts = _resume(file, batch)
        if counts.resumed:
            notice(f"note: {counts.resumed:,} rows were predicted by an earlier run; going on after them")
        advance(counts.resumed)
        with _opened(source.path) as stream:
            rows = islice(source.rows(stream), counts.resumed, None)
            for answers in predict_rows(predictor, rows, batch):
                with writable(out):
                    file.write(b"".join(_line(answer) for answer in answers))
                    file.flush()
                    os.fsync(file.fileno())
                _count(counts, answers)
                advance(len(answers))
    return counts


def write_stream(
    predictor: SkinPredictor, source: RowSource, stream: IO[bytes], write: Callable[[bytes], object], *, batch: int
) -> Counts:
    """Predicts rows as they come and writes them as they are done; nothing can be resumed."""
    counts = Counts()
    for answers in predict_rows(predictor, source.rows(stream), batch):
        write(b"".join(_line(answer) for answer in answers))
        _count(counts, answers)
    return counts


# --- rows


def _answers(predictor: SkinPredictor, group: list[FileRow], tenant: str) -> list[dict[str, Any]]:
    """Answers rows together; where one cannot be answered, each is tried alone."""
    rows = [_inputs(predictor, row.value) for row in group]
    try:
        return [_success(prediction) for prediction in predictor.predict(rows, tenant=tenant)]
    except predictor.row_errors:
        answers: list[dict[str, Any]] = []
        for row in rows:
            try:
                answers.append(_success(predictor.predict([row], tenant=tenant)[0]))
            except predictor.row_errors as error:
                param = {"param": error.param} if isinstance(error, RequestError) and error.param else {}
                answers.append({"error": {"message": error.message, "code": error.code} | param})
        return answers


def _inputs(predictor: SkinPredictor, value: dict[str, Any]) -> dict[str, Any]:
    """The row without its id; `text` stands for a skin's only input."""
    names = list(predictor.skin.inputs)
    inputs = {key: field_value for key, field_value in value.items() if key != "id" or key in names}
    if len(names) == 1 and set(inputs) == {"text"}:
        inputs = {names[0]: inputs["text"]}
    return inputs


def _head(predictor: SkinPredictor, row: FileRow) -> dict[str, Any]:
    named = "id" in row.value and "id" not in predictor.skin.inputs
    return ({"id": row.value["id"]} if named else {}) | {"line": row.line}


def _success(prediction: Prediction) -> dict[str, Any]:
    """Without times and cache hits, which differ from run to run."""
    scores = {}
    if prediction.scores:
        scores = {"scores": dict(prediction.scores), "probabilities": prediction.probabilities}
    tokens = {"prompt_tokens": prediction.prompt_tokens, "completion_tokens": prediction.completion_tokens}
    passages = {"passages": list(prediction.passages)} if prediction.passages else {}
    passed_on = {"passed_on": True} if prediction.passed_on else {}
    usd = {} if prediction.usd is None else {"usd": prediction.usd}
    return {"output": prediction.output} | scores | tokens | passages | passed_on | usd


def _unread(row: BadRow) -> dict[str, Any]:
    return {"line": row.line, "error": {"message": row.message, "code": "invalid_data"}}


def _count(counts: Counts, answers: list[dict[str, Any]]) -> None:
    counts.rows += len(answers)
    failed = [answer for answer in answers if "error" in answer]
    counts.failed += len(failed)
    room = SHOWN - len(counts.first_failed)
    counts.first_failed += [(answer["line"], answer["error"]["message"]) for answer in failed[:room]]


def _line(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace") + b"\n"


# --- files


@contextlib.contextmanager
def _opened(path: Path) -> Generator[BufferedReader]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    with file:
        yield file


@contextlib.contextmanager
def whole_file(out: Path) -> Generator[BinaryIO]:
    """A file to write, which gets its name at the end, or vanishes on any failure."""
    draft = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    with writable(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        file = draft.open("wb")
    try:
        with file:
            yield file
        with writable(out):
            draft.rename(out)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def _partial(out: Path, run: dict[str, Any], source: RowSource, overwrite: bool) -> Generator[BinaryIO]:
    """The growing file, locked, and known to belong to this very run; it gets its name at the end."""
    rows, header = out.with_name(out.name + ".partial"), out.with_name(out.name + ".partial.json")
    with writable(rows):
        out.parent.mkdir(parents=True, exist_ok=True)
        file = rows.open("a+b")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(f"another process is predicting into {out}; wait, or choose another name") from error
        if overwrite and not _belongs(header, run):
            file.truncate(0)
        if file.seek(0, os.SEEK_END) == 0:
            atomic_write(header, json.dumps(run) + "\n")
        elif not _belongs(header, run):
            raise UsageError(
                f"{rows} is the unfinished output of another run (the input, the skin, the base, its dtype, its "
                "weights, the kernel or the batch differ); finish that run, or begin anew (--overwrite)"
            )
        yield file
        with writable(out):
            if out.suffix in WRITERS:
                with whole_file(out) as table:
                    write_table(rows, source.row_format, source.path, table, out.suffix)
                rows.unlink()
            else:
                rows.rename(out)
            header.unlink(missing_ok=True)


def _belongs(header: Path, run: dict[str, Any]) -> bool:
    try:
        return sha256_json(json.loads(header.read_bytes())) == sha256_json(run)
    except (OSError, ValueError):
        return False


def _resume(file: BinaryIO, batch: int) -> Counts:
    """Counts of the whole batches there; a torn line and the rest of a torn batch are cut off."""
    counts, pending = Counts(), Counts()
    end = position = 0
    file.seek(0)
    for line in file:
        if not line.endswith(b"\n"):
            break
        position += len(line)
        _count(pending, [json.loads(line)])
        if pending.rows % batch == 0:
            counts.rows = counts.resumed = pending.rows
            counts.failed, counts.first_failed, end = pending.failed, list(pending.first_failed), position
    file.truncate(end)
    file.seek(end)
    return counts


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
                value_types = types.setdefault(name, set())
                if value is not None:  # an integer that a column of floats would round is a text
                    value_types.add(str if type(value) is int and abs(value) > _EXACT else type(value))
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
