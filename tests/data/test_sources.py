"""Rows are read as written, every mistake names its line, every dropped row is counted."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bedplate.core.errors import DataError, UnreachableError
from bedplate.data.sources import DATASETS, read_rows
from bedplate.data.tables import FORMATS, BadRow, FileRow

VADER = (
    "1_1\t-0.9\tno picture .\r\n1_2\t0.5\ta repost\r\n1_3\t0.51\tit plays\r\n2_1\t-0.5\thm\r\n\r\n2_2\t3.05\tperfect"
)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"text": "é", "y": "no"}\n\n{"text": "b\\u2028c", "y": "yes", "n": 3}\n'),
        ("a.csv", 'text,y\n"a, ""b""",no\n\n"two\nlines",yes\n'),
        ("a.tsv", "text\ty\na, b\tno\nc\tyes\n"),
    ],
)
def test_files_are_read_relative_to_the_task(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(text.encode())
    rows = read_rows(name, tmp_path)
    assert [row["y"] for row in rows.rows] == ["no", "yes"]
    assert rows.columns[:2] == ("text", "y")
    assert rows.counts == {"read": 2}
    assert rows.sha256 == hashlib.sha256(text.encode()).hexdigest()
    expected = {"a.jsonl": ["é", "b\u2028c"], "a.csv": ['a, "b"', "two\nlines"], "a.tsv": ["a, b", "c"]}
    assert [row["text"] for row in rows.rows] == expected[name]
    assert rows.lines[0] == {"a.jsonl": 1}.get(name, 2)


def test_a_byte_order_mark_is_no_part_of_a_column_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbftext,y\na,b\n")
    assert read_rows("a.csv", tmp_path).columns == ("text", "y")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"t": "a"}\n{"t": "\xe9"}\n', r"a.jsonl, line 2: byte 18 \(0xe9\) is not UTF-8"),
        ("a.jsonl", b'{"t": "a"}\n{"t": \n', "line 2: not a JSON object"),
        ("a.jsonl", b'["t"]\n', "line 1: each line must be a JSON object, not list"),
        ("a.jsonl", b'{"t": 1, "t": 2}\n', "line 1: .*'t' appears twice"),
        ("a.jsonl", b'{"t": NaN}\n', "line 1: .*NaN is not JSON"),
        ("a.jsonl", b"[" * 100_000, "line 1: nested too deeply"),
        ("a.jsonl", b"\n \n", "no rows"),
        ("a.csv", b"t,y\na,b\nc\n", "line 3: 1 fields where the header has 2"),
        ("a.csv", b"t,y\na,b,c\n", "line 2: 3 fields"),
        ("a.csv", b't,y\n"a,b\n', "line 2: malformed row"),
        ("a.csv", b't,y\nx,y\n"a"b,c\n', "line 3: malformed row"),
        ("a.csv", b"t,t\na,b\n", "two columns are named 't'"),
        ("a.csv", b"t,\na,b\n", "a column without a name"),
        ("a.csv", b"t,y\n", "no rows"),
        ("a.csv", b"", "no rows"),
        ("a.parquet", b"", "a.parquet is not a readable Parquet file"),
        ("a.txt", b"", "files end in .jsonl, .csv, .tsv, .parquet"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_rows(name, tmp_path)


def test_missing_files_and_near_names(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.csv: the data file does not exist"):
        read_rows("none.csv", tmp_path)
    with pytest.raises(DataError, match="did you mean 'vader-amazon'"):
        read_rows("vader-amazn", tmp_path)
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        read_rows("d.csv", tmp_path)


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=8))
@settings(max_examples=30, deadline=None)
def test_rows_survive_the_round_trip(pairs: list[tuple[str, str]]) -> None:
    rows = [{"a": a, "b": b} for a, b in pairs]
    as_jsonl = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    assert values(".jsonl", as_jsonl.encode()) == rows
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        file = io.StringIO(newline="")
        writer = csv.DictWriter(file, ["a", "b"], delimiter=delimiter, quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
        assert values(suffix, file.getvalue().encode()) == rows
    whole = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), whole)
    assert values(".parquet", whole.getvalue()) == rows


def values(suffix: str, content: bytes) -> list[dict[str, str]]:
    rows = list(FORMATS[suffix].read(io.BytesIO(content), "x"))
    return [row.value for row in rows if isinstance(row, FileRow)]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_rows_after_one_that_cannot_be_read_are_read(suffix: str) -> None:
    damaged = {
        ".jsonl": b'{"t": "a"}\n{"t": \n["b"]\n{"t": "\xff"}\n{"t": "c"}\n',
        ".csv": b't\na\n"b"x\nb,b\nb\xff\nc\n',
    }[suffix]
    rows = list(FORMATS[suffix].read(io.BytesIO(damaged), "x"))
    assert [type(row) for row in rows] == [FileRow, BadRow, BadRow, BadRow, FileRow]
    assert [row.line for row in rows] == [1 + (suffix == ".csv") + place for place in range(5)]
    assert all(f"x, line {row.line}: " in row.message for row in rows if isinstance(row, BadRow))
    last = rows[-1]
    assert isinstance(last, FileRow)
    assert last.value == {"t": "c"}


def test_vader_drops_neutral_rows_and_counts_them() -> None:
    rows, lines, counts = DATASETS["vader-amazon"](VADER, "x")
    assert counts == {"neutral": 2}
    assert [row["label"] for row in rows] == ["negative", "positive", "positive"]
    assert rows[0] == {
        "id": "1_1",
        "document": "1",
        "review_id": "1",
        "sentence": "1",
        "rating": -0.9,
        "text": "no picture .",
        "label": "negative",
    }
    assert lines == [1, 3, 6]
    tweets, _, _ = DATASETS["vader-tweets"]("17\t1.5\tyay\r\n", "x")
    assert tweets[0]["document"] == "17"
    assert "review_id" not in tweets[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1_1\t1.0", "line 1: 2 fields, not 3"),
        ("1_1\t1.0\ta\n1_2\thigh\tb", "line 2: the mean rating 'high'"),
        ("1_1\tnan\ta", "line 1: the mean rating 'nan'"),
        ("1_1\t5\ta", "line 1: the mean rating '5'"),
        ("7\t1.0\ta", "line 1: the id '7' does not read document_sentence"),
    ],
)
def test_malformed_vader_rows_are_named(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        DATASETS["vader-amazon"](text, "x")


# counted with awk in the four files as published (Hutto & Gilbert 2014): rows, ratings above 0.5, below -0.5
PUBLISHED = {
    "vader-amazon": (3708, 1725, 1218),
    "vader-tweets": (4200, 2300, 1062),
    "vader-movies": (10605, 4982, 5061),
    "vader-news": (5190, 1100, 1688),
}


@pytest.mark.real
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_files(name: str) -> None:
    try:
        rows = read_rows(name)
    except UnreachableError as error:
        pytest.skip(f"REAL DATA MISSING: {name}: {error}")
    labels = Counter(row["label"] for row in rows.rows)
    read, positive, negative = PUBLISHED[name]
    assert (rows.counts["read"], labels["positive"], labels["negative"]) == (read, positive, negative)
    assert rows.counts["neutral"] == read - positive - negative
    assert rows.licence == "MIT"
    if name == "vader-amazon":
        # 300 reviews in the file, 298 with a sentence that is not neutral
        assert len({line.split("_")[0] for line in rows.path.read_text("utf-8").splitlines()}) == 300
        assert len({row["review_id"] for row in rows.rows}) == 298
