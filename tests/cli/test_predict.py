"""`bedplate predict`: rows in, predictions out, going on after a kill."""

from __future__ import annotations

import io
import json
import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from tests.forked import Command
from tests.made_skin import label_skin

from bedplate.cli.main import main
from bedplate.core.errors import SkinError, TemplateError
from bedplate.data.tables import FileRow
from bedplate.inference.predict import bulk
from bedplate.inference.predict.callable_skin import Prediction, SkinPredictor
from bedplate.inference.predict.loaded import load
from bedplate.inference.predict.skin_bases import LoadedSkin
from bedplate.skins.files import read_skin
from bedplate.skins.skin import Skin


@pytest.fixture(scope="module")
def skin_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return label_skin(tmp_path_factory.mktemp("skin"))


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["predict", *map(str, arguments)])
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def test_rows_are_answered_as_the_skin_answers(
    skin_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": i, "review": f"good {i}"} if i % 2 else {"id": f"r{i}", "text": f"bad {i}"} for i in range(9)]
    source = write_rows(tmp_path / "in.jsonl", rows)
    code, printed, _ = run(capsys, skin_dir, source, "--out", tmp_path / "out.jsonl", "--batch", "4", "--json")
    assert code == 0
    assert json.loads(printed)["rows"] == 9
    predictions = read(tmp_path / "out.jsonl")
    assert [row["id"] for row in predictions] == [row["id"] for row in rows]
    assert [row["line"] for row in predictions] == list(range(1, 10))
    loaded = load(skin_dir)
    assert isinstance(loaded, LoadedSkin)
    expected = loaded.predict([row.get("review") or row["text"] for row in rows])
    loaded.close()
    assert [row["output"] for row in predictions] == [prediction.output for prediction in expected]
    for row, prediction in zip(predictions, expected, strict=True):
        assert row["scores"] == pytest.approx(dict(prediction.scores), abs=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_an_empty_row_gets_an_error(skin_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_rows(tmp_path / "in.jsonl", [{"review": "fine"}, {"review": " "}, {"review": "bad"}])
    code, _, error = run(capsys, skin_dir, source, "--out", tmp_path / "out.jsonl")
    assert (code, "line 2: the input 'review' is empty" in error) == (1, True)
    assert [answer.get("error", {}).get("param") for answer in read(tmp_path / "out.jsonl")] == [None, "input", None]


@pytest.mark.parametrize(("name", "content"), [("a.csv", "review\n"), ("b.csv", ""), ("c.jsonl", "")])
def test_a_file_without_rows_is_told(
    skin_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    content: str,
) -> None:
    (tmp_path / name).write_text(content)
    message = "has no rows to predict, so there are no predictions"
    code, _, error = run(capsys, skin_dir, tmp_path / name, "--out", tmp_path / f"out.{name}")
    assert (code, f"note: {tmp_path / name} {message}" in error) == (0, True)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content.encode())))
    code, printed, error = run(capsys, skin_dir, "-", "--out", "-", "--format", name.partition(".")[2])
    assert (code, printed, f"note: stdin {message}" in error) == (0, "", True)


def test_rows_that_cannot_be_predicted_are_named_and_counted(
    skin_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"review": "fine"}, {"review": 3}, {"other": "x"}, {"review": "x", "stars": "5"}, {"review": "long " * 600}]
    source = write_rows(tmp_path / "in.jsonl", [*rows, {"review": "fine"}])
    code, printed, _ = run(capsys, skin_dir, source, "--out", tmp_path / "out.jsonl")
    assert code == 1
    assert "4 could not be predicted" in printed
    predictions = read(tmp_path / "out.jsonl")
    assert ["error" in row for row in predictions] == [False, True, True, True, True, False]
    assert predictions[4]["error"]["code"] == "context_length_exceeded"
    assert "stars" in predictions[3]["error"]["message"]
    assert predictions[0]["output"] == predictions[5]["output"]


class Answering:
    """Skins that no engine answers alone: one row's prompt cannot be made, another's skin cannot be."""

    warnings: tuple[str, ...] = ()
    row_errors = SkinPredictor.row_errors

    def __init__(self, skin: Skin) -> None:
        self.skin, self.tenants = skin, list[str]()

    def predict(self, rows: Any, *, one_by_one: bool = False, tenant: str = "") -> list[Prediction]:
        self.tenants.append(tenant)
        texts = [row["review"] for row in rows]
        if "template" in texts:
            raise TemplateError("the template divides by zero")
        if "skin" in texts:
            raise SkinError("its second skin is of another base")
        return [Prediction("positive", "positive", usd=0.25, passed_on=text == "unsure") for text in texts]


def test_what_is_asked_as_a_whole_fails_by_the_row_and_says_what_it_cost(skin_dir: Path) -> None:
    predictor = Answering(read_skin(skin_dir))
    rows = [FileRow(i, {"review": text}) for i, text in enumerate(("a", "template", "skin", "unsure", "b"), start=1)]
    first, second = bulk.predict_rows(predictor, rows, 4)  # type: ignore[arg-type]
    assert [row.get("usd") for row in first] == [0.25, None, None, 0.25]
    assert [row.get("passed_on") for row in first] == [None, None, None, True]
    assert [row["error"]["message"] for row in first[1:3]] == [
        "the template divides by zero",
        "its second skin is of another base",
    ]
    assert second[0]["output"] == "positive"
    # of each batch's own: what others left in the caches would change last bits
    assert predictor.tenants == ["lines from 1"] * 5 + ["lines from 5"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"review": "a"}\n{"review": \n', "line 2: not a JSON object"),
        (b'{"review": "a"}\n\n["x"]\n', "line 3: each line must be a JSON object"),
        (b'{"review": "a"}\n{"review": "\xff"}\n', "line 2: byte 28 (0xff) is not UTF-8"),
        (b'{"review": NaN}\n', "line 1: NaN is not JSON"),
        (b'{"review": "a", "review": "b"}\n', "line 1: the key 'review' appears twice"),
    ],
)
def test_a_damaged_file_is_told_before_anything_is_computed(
    skin_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, message: str
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(content)
    code, _, error = run(capsys, skin_dir, source, "--out", tmp_path / "out.jsonl")
    assert code == 1
    assert message in error
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_outputs_that_exist_or_cannot_be_written_are_refused(
    skin_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_rows(tmp_path / "in.jsonl", [{"review": "a"}])
    for out in (source, source / "below.jsonl"):
        code, _, error = run(capsys, skin_dir, source, "--out", out)
        assert code == 2
        assert str(out) in error
    code, _, error = run(capsys, tmp_path, source, "--out", tmp_path / "out.jsonl")
    assert "no skin.json" in error
    code, _, error = run(capsys, skin_dir, tmp_path / "absent.jsonl", "--out", tmp_path / "out.jsonl")
    assert (code, "no such file" in error) == (2, True)


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    skin_dir: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    output_dir = tmp_path_factory.mktemp("said")
    source = write_rows(tmp_path / "in.jsonl", [{"id": i, "review": f"good {i}"} for i in range(240)])

    def started(out: str, *options: str) -> Command:
        return Command(output_dir, "predict", skin_dir, source, "--batch", "8", "--out", tmp_path / out, *options)

    whole = started("whole.jsonl")
    assert whole.wait() == 0, whole.errors
    partial = tmp_path / "out.jsonl.partial"
    killed = started("out.jsonl")
    deadline = time.monotonic() + 60
    while (not partial.exists() or partial.stat().st_size < 2000) and time.monotonic() < deadline:
        time.sleep(0.005)
    killed.kill()
    assert not (tmp_path / "out.jsonl").exists()
    finished_rows = partial.read_bytes().count(b"\n")
    assert 0 < finished_rows < 240
    with partial.open("ab") as file:
        file.write(b'{"id": 9999, "li')  # as a kill in the middle of a write leaves it
    resumed = started("out.jsonl", "--json")
    assert resumed.wait() == 0, resumed.errors
    counts = json.loads(resumed.output)
    assert counts["resumed"] == finished_rows // 8 * 8
    assert counts["rows"] == 240
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl", "whole.jsonl"]


def test_finished_rows_are_not_computed_again_and_another_run_is_refused(
    skin_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = write_rows(tmp_path / "in.jsonl", [{"review": f"row {i}"} for i in range(10)]), tmp_path / "out.jsonl"
    real, answered_lines = bulk.predict_rows, []

    def interrupted(predictor: Any, rows: Any, batch: int) -> Any:
        for answers in real(predictor, rows, batch):
            answered_lines.extend(answer["line"] for answer in answers)
            yield answers
            if len(answered_lines) == 6:
                raise KeyboardInterrupt

    monkeypatch.setattr(bulk, "predict_rows", interrupted)
    code, _, error = run(capsys, skin_dir, source, "--out", out, "--batch", "3")
    assert (code, f"kept beside {out}; the same command goes on after them" in error) == (130, True)
    code, _, error = run(capsys, skin_dir, source, "--out", out, "--batch", "4")
    assert (code, "another run" in error) == (2, True)
    code, printed, error = run(capsys, skin_dir, source, "--out", out, "--batch", "3", "--json")
    assert (json.loads(printed)["resumed"], "6 rows were predicted by an earlier run" in error) == (6, True)
    assert answered_lines == list(range(1, 11))
    assert len(read(out)) == 10


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_tables_are_read_by_the_columns_that_the_skin_takes(
    skin_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    frame = pd.DataFrame({"id": ["a", "b"], "label": ["x", "y"], "review": ["good, and\ncheap", "bad"]})
    source, out = tmp_path / f"in.{suffix}", tmp_path / "out.jsonl"
    if suffix == "parquet":
        frame.to_parquet(source)
    else:
        frame.to_csv(source, index=False, sep="," if suffix == "csv" else "\t")
    code, _, error = run(capsys, skin_dir, source, "--out", out)
    assert (code, error) == (0, "note: columns that the skin does not use: label\n")
    predictions = read(out)
    assert [row["id"] for row in predictions] == ["a", "b"]
    assert [row["line"] for row in predictions] == {"parquet": [1, 2]}.get(suffix, [2, 4])
    loaded = load(skin_dir)
    assert isinstance(loaded, LoadedSkin)
    expected = loaded.predict(frame)
    loaded.close()
    for row, prediction in zip(predictions, expected, strict=True):
        assert row["output"] == prediction.output
        assert sum(row["probabilities"].values()) == pytest.approx(1)
        assert {label: math.log(p) for label, p in row["probabilities"].items()} == pytest.approx(row["scores"])
    frame.drop(columns="review").to_csv(tmp_path / "less.csv", index=False)
    code, _, error = run(capsys, skin_dir, tmp_path / "less.csv", "--out", tmp_path / "less.jsonl")
    assert (code, "no column 'review' for the skin's input" in error) == (2, True)


def test_keep_going_reports_the_rows_that_cannot_be_read(
    skin_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in.csv", tmp_path / "out.jsonl"
    source.write_bytes(b"review\nfine\ntwo,cells\n\xff\n" + b"fine\n" * 5)
    code, _, error = run(capsys, skin_dir, source, "--out", out)
    assert (code, "in.csv, line 3: 2 fields where the header has 1" in error) == (1, True)
    assert "--keep-going" in error
    assert not out.exists()
    code, printed, error = run(capsys, skin_dir, source, "--out", out, "--keep-going", "--batch", "3")
    assert (code, "2 could not be predicted" in printed) == (1, True)
    predictions = read(out)
    assert [row["line"] for row in predictions] == list(range(2, 10))
    assert [place for place, row in enumerate(predictions) if "error" in row] == [1, 2]
    assert predictions[1]["error"]["code"] == "invalid_data"
    assert error.splitlines() == [f"error: {row['error']['message']}" for row in predictions[1:3]]


def test_overwrite_replaces_what_is_there_once_the_new_is_whole(
    skin_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_rows(tmp_path / "in.jsonl", [{"review": "a"}]), tmp_path / "out.jsonl"
    out.write_text("old")
    code, _, error = run(capsys, skin_dir, source, "--out", out)
    assert (code, "--overwrite" in error, out.read_text()) == (2, True, "old")
    source.write_text('{"review": \n')
    assert run(capsys, skin_dir, source, "--out", out, "--overwrite")[0] == 1
    assert out.read_text() == "old"
    write_rows(source, [{"review": "a"}, {"review": "b"}])
    (tmp_path / "out.jsonl.partial").write_text("of another run\n")
    assert run(capsys, skin_dir, source, "--out", out, "--overwrite")[0] == 0
    assert [row["line"] for row in read(out)] == [1, 2]
    code, _, error = run(capsys, skin_dir, source, "--out", source, "--overwrite")
    assert (code, "file of the rows itself" in error) == (2, True)


def test_a_name_that_says_no_format_needs_one(
    skin_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.txt").write_text("text\na\n")
    code, _, error = run(capsys, skin_dir, tmp_path / "rows.txt", "--out", "-")
    assert (code, "say their --format" in error) == (2, True)
    code, printed, _ = run(capsys, skin_dir, tmp_path / "rows.txt", "--out", "-", "--format", "csv")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"text\na\n")))
    assert (code, run(capsys, skin_dir, "-", "--out", "-", "--format", "csv")[:2]) == (0, (0, printed))
    assert "Parquet cannot be read from stdin" in run(capsys, skin_dir, "-", "--out", "-", "--format", "parquet")[2]


def test_stdin_to_stdout_and_memory_that_does_not_grow(
    skin_dir: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    consumed = []

    def lines() -> Any:
        for i in range(40):
            consumed.append(i)
            yield json.dumps({"review": f"row {i}"}).encode() + b"\n"

    source = bulk.RowSource(["review"], Path("stdin"), "jsonl")

    loaded = load(skin_dir)
    assert isinstance(loaded, LoadedSkin)
    written: list[bytes] = []
    ahead = []

    def write(content: bytes) -> None:
        written.append(content)
        ahead.append(len(consumed) - sum(part.count(b"\n") for part in written))

    counts = bulk.write_stream(loaded, source, lines(), write, batch=4)
    loaded.close()
    assert counts.rows == 40
    assert max(ahead) == 0  # never more rows read than the batch in hand
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"text": "row 0"}\n')))
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(skin_dir), "-", "--out", "-"])
    assert not stop.value.code
    output = capfdbinary.readouterr().out
    assert json.loads(output)["output"] == json.loads(written[0].splitlines()[0])["output"]


# --- tables


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_a_table_has_the_rows_columns_the_answer_and_its_probability(
    skin_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    rows = [{"id": i, "review": f'good, "{i}"\nor not', "stars": 0.5 + i, "tags": ["a", i]} for i in range(7)]
    source = write_rows(tmp_path / "in.jsonl", [{"id": r["id"], "review": r["review"]} for r in rows])
    frame = pd.DataFrame(rows).drop(columns="tags")
    frame.to_parquet(tmp_path / "in.parquet")
    out = tmp_path / f"out{suffix}"
    assert run(capsys, skin_dir, tmp_path / "in.parquet", "--out", out, "--batch", "2")[0] == 0
    assert run(capsys, skin_dir, source, "--out", tmp_path / "out.jsonl", "--batch", "2")[0] == 0
    table = pd.read_parquet(out) if suffix == ".parquet" else pd.read_csv(out, sep="\t" if suffix == ".tsv" else ",")
    assert list(table.columns) == ["id", "review", "stars", "answer", "probability", "error"]
    pd.testing.assert_frame_equal(table[["id", "review", "stars"]], frame, check_dtype=suffix == ".parquet")
    lines = read(tmp_path / "out.jsonl")
    assert list(table["answer"]) == [line["output"] for line in lines]
    assert list(table["probability"]) == pytest.approx([line["probabilities"][line["output"]] for line in lines])
    assert table["error"].isna().all()
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name or path.name.startswith(".")]


def test_a_row_without_an_answer_has_its_error_in_a_table(
    skin_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"review": "fine", "note": {"a": 1}}, {"review": "long " * 600, "note": "x"}, {"review": "fine"}]
    source = write_rows(tmp_path / "in.jsonl", [{k: v for k, v in row.items() if k != "note"} for row in rows])
    with source.open("a", encoding="utf-8") as file:
        file.write("{not json}\n")
    code, printed, _ = run(capsys, skin_dir, source, "--out", tmp_path / "out.parquet", "--keep-going")
    assert code == 1
    assert "2 could not be predicted" in printed
    table = pd.read_parquet(tmp_path / "out.parquet")
    assert list(table["error"].isna()) == [True, False, True, False]
    assert list(table["answer"].isna()) == [False, True, False, True]
    assert pd.isna(table["review"][3])


def test_integers_that_no_column_of_numbers_holds_are_texts(
    skin_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": 2**63, "review": "fine"}, {"id": 1.5, "review": "fine"}, {"id": 2**53 + 1, "review": "fine"}]
    source = write_rows(tmp_path / "in.jsonl", rows)
    assert run(capsys, skin_dir, source, "--out", tmp_path / "out.parquet")[0] == 0
    assert list(pd.read_parquet(tmp_path / "out.parquet")["id"]) == [str(2**63), "1.5", str(2**53 + 1)]


def test_tables_that_cannot_be_written_are_refused_before_any_work(
    skin_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_rows(tmp_path / "in.jsonl", [{"review": "fine", "answer": "taken"}])
    code, _, errors = run(capsys, skin_dir, source, "--out", tmp_path / "out.csv")
    assert code == 1
    assert "'answer'" in errors
    for out in ("out.xlsx", "out.json", "out"):
        code, _, errors = run(capsys, skin_dir, source, "--out", tmp_path / out)
        assert code == 2
        assert ".parquet" in errors
    code, _, errors = run(capsys, skin_dir, "-", "--out", tmp_path / "out.csv")
    assert code == 2
    assert "stdin" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_table_goes_on_after_a_kill(
    skin_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_rows(tmp_path / "in.jsonl", [{"review": f"row {i}"} for i in range(6)])
    real = bulk.predict_rows

    def interrupted(predictor: Any, rows: Any, batch: int) -> Any:
        yield next(iter(real(predictor, rows, batch)))
        raise KeyboardInterrupt

    monkeypatch.setattr(bulk, "predict_rows", interrupted)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        main(["predict", str(skin_dir), str(source), "--out", str(tmp_path / "out.csv"), "--batch", "2"])
    monkeypatch.setattr(bulk, "predict_rows", real)
    capsys.readouterr()
    code, printed, _ = run(capsys, skin_dir, source, "--out", tmp_path / "out.csv", "--batch", "2", "--json")
    assert (code, json.loads(printed)["resumed"]) == (0, 2)
    assert len(pd.read_csv(tmp_path / "out.csv")) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.csv"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_file_without_rows_gives_a_table_with_its_columns(
    skin_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    empty = pd.DataFrame({"id": pd.Series(dtype=str), "review": pd.Series(dtype=str)})
    source = tmp_path / f"in{suffix}"
    empty.to_csv(source, index=False) if suffix == ".csv" else empty.to_parquet(source)
    out = tmp_path / f"out{suffix}"
    assert run(capsys, skin_dir, source, "--out", out)[0] == 0
    table = pd.read_parquet(out) if suffix == ".parquet" else pd.read_csv(out)
    assert list(table.columns) == ["id", "review", "answer", "probability", "error"]
    assert not len(table)
