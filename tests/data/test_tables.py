"""Tables of every library give the same rows, with what is missing as None; what is no table is named."""

from __future__ import annotations

import datetime
import decimal
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bedplate.core.errors import DataError, UsageError
from bedplate.data.sources import read_rows
from bedplate.data.tables import is_table, json_lines, plain, records, split_tables, table_rows

ROWS: list[dict[str, Any]] = [
    {"text": "é", "n": 1, "share": 0.5, "flag": True},
    {"text": None, "n": 2, "share": None, "flag": False},
]
COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}
TABLES: dict[str, Callable[[], object]] = {
    "pandas": lambda: pd.DataFrame(COLUMNS),
    "pandas, another index": lambda: pd.DataFrame(COLUMNS, index=[7, 3]),
    "polars": lambda: pl.DataFrame(COLUMNS),
    "polars, lazy": lambda: pl.LazyFrame(COLUMNS),
    "datasets": lambda: datasets.Dataset.from_dict(COLUMNS),
    "datasets, a stream": lambda: datasets.Dataset.from_dict(COLUMNS).to_iterable_dataset(),
    "pyarrow": lambda: pa.table(COLUMNS),
    "mappings": lambda: ROWS,
}


@pytest.mark.parametrize("name", TABLES)
def test_every_kind_of_table_gives_the_same_rows(name: str) -> None:
    table = TABLES[name]()
    assert is_table(table) == (name != "mappings")
    assert list(records(table)) == ROWS
    rows = table_rows(table, "given")
    assert [dict(row) for row in rows.rows] == ROWS
    assert (rows.columns, rows.lines, rows.source) == (tuple(COLUMNS), (1, 2), "given")
    assert rows.location(2) == "data, row 2" + (" (index 3)" if name == "pandas, another index" else "")


def test_a_table_and_the_file_that_is_kept_of_it_are_the_same_rows(tmp_path: Path) -> None:
    rows = table_rows(pd.DataFrame(COLUMNS), "rows.jsonl")
    (tmp_path / "rows.jsonl").write_bytes(json_lines(rows.rows))
    read = read_rows("rows.jsonl", tmp_path)
    assert (read.rows, read.sha256, read.columns) == (rows.rows, rows.sha256, rows.columns)


def test_parquet_is_read_as_the_frame_it_was_written_from(tmp_path: Path) -> None:
    frame = pd.DataFrame({**COLUMNS, "day": pd.to_datetime(["2026-11-26", None]), "kind": pd.Categorical(["a", "b"])})
    frame.to_parquet(tmp_path / "rows.parquet")
    read = read_rows("rows.parquet", tmp_path)
    assert [dict(row) for row in read.rows] == list(records(frame))
    assert read.rows[0]["day"] == "2026-11-26T00:00:00"
    assert read.rows[1]["day"] is None
    assert read.location(2).endswith("rows.parquet, row 2")
    pq.write_table(pa.table({"text": pa.array([b"bytes", b"x"])}), tmp_path / "bytes.parquet")
    with pytest.raises(DataError, match=r"bytes.parquet, row 1: a value is bytes"):
        read_rows("bytes.parquet", tmp_path)


def test_values_become_what_json_has() -> None:
    values = [np.int64(3), np.float32(0.5), np.str_("a"), np.array([1, 2]), decimal.Decimal("2.50"), pd.NA, pd.NaT]
    converted = plain([*values, float("nan"), datetime.date(2026, 1, 2), {"a": (1, np.bool_(True))}])
    assert converted == [3, 0.5, "a", [1, 2], 2.5, None, None, None, "2026-01-02", {"a": [1, True]}]
    assert json.loads(json.dumps(converted)) == converted
    for bad in (float("inf"), b"bytes", object()):
        with pytest.raises(DataError):
            plain(bad)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (3, "rows is int; give a pandas or polars DataFrame"),
        ("text", "rows is str; give"),
        ([{"a": 1}, "x"], "rows: row 2 is str, not a mapping"),
        (pd.DataFrame([["a", "b"]]), "rows: a column is named 0"),
        (pd.DataFrame([["a", "b"]], columns=["t", "t"]), "rows: two columns are named 't'"),
    ],
)
def test_what_is_no_table_is_named(table: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        list(records(table, "rows"))


def test_a_value_that_no_row_can_hold_is_named() -> None:
    with pytest.raises(DataError, match="rows, row 2, column 'b': a value is an infinite number"):
        list(records([{"b": 1.0}, {"b": float("inf")}], "rows"))
    with pytest.raises(DataError, match="data: the table has no rows"):
        table_rows(pd.DataFrame({"a": []}), "x")


def test_splits_are_a_table_each() -> None:
    frame = pd.DataFrame(COLUMNS)
    parts = {name: datasets.Dataset.from_dict(COLUMNS) for name in ("train", "validation", "test")}
    assert list(split_tables(datasets.DatasetDict(parts))) == ["train", "valid", "test"]
    assert split_tables(frame)[""] is frame
    for wrong in ({"train": frame, "test": frame}, {"text": ["a"], "label": ["b"]}, {}):
        with pytest.raises(UsageError, match="give 'train', 'valid' and 'test'"):
            split_tables(wrong)
