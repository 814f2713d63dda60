"""Rows in memory take the place of a task's own source: the same splits, scores and reports as from a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import polars as pl
import pytest
import yaml
from tests.adaptation.conftest import GOOD, write_rows, write_task

import bedplate
from bedplate.core.errors import ConfigError, DataError, UsageError
from bedplate.core.files import read_jsonl
from bedplate.evaluation.examples import load_examples
from bedplate.evaluation.task import load_task
from bedplate.skins.records import Run


class ByWord:
    def predict(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        return ["positive" if any(word in row["review"] for word in GOOD) else "negative" for row in rows]


@pytest.fixture
def task(tmp_path: Path, tiny_base: Path) -> Path:
    return write_task(tmp_path / "task", tiny_base, groups=60)


@pytest.fixture
def frame(task: Path) -> pd.DataFrame:
    return pd.DataFrame(read_jsonl(task.parent / "rows.jsonl"))


@pytest.fixture
def without_source(task: Path) -> Path:
    """The same task, whose file says nothing of where rows are."""
    values = yaml.safe_load(task.read_text())
    del values["data"]["source"]
    path = task.with_name("open.yaml")
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize("table_type", ["pandas", "polars", "datasets", "mappings"])
def test_a_table_is_scored_as_the_file_with_the_same_rows(
    task: Path, without_source: Path, frame: pd.DataFrame, table_type: str
) -> None:
    table = {
        "pandas": frame,
        "polars": pl.DataFrame(frame.to_dict("list")),
        "datasets": datasets.Dataset.from_pandas(frame),
        "mappings": frame.to_dict("records"),
    }[table_type]
    for split in ("valid", "test"):
        expected = bedplate.evaluate(ByWord(), task, split=split)
        for task_spec in (without_source, task, load_task(task)):
            evaluation = bedplate.evaluate(ByWord(), task_spec, split=split, data=table)
            assert (evaluation.estimate, evaluation.interval, evaluation.rows) == (
                expected.estimate,
                expected.interval,
                expected.rows,
            )
            assert evaluation.split_hash == expected.split_hash


def test_a_table_for_each_split(task: Path, frame: pd.DataFrame) -> None:
    data = load_examples(load_task(task))
    parts = {"train": data.train, "valid": data.valid, "test": data.test.open("to compare")}
    tables = {name: frame[frame["id"].isin([example.id for example in part])] for name, part in parts.items()}
    expected = bedplate.evaluate(ByWord(), task, split="valid")
    hf_splits = datasets.DatasetDict(
        {
            "validation" if name == "valid" else name: datasets.Dataset.from_pandas(table)
            for name, table in tables.items()
        }
    )
    for splits in (tables, hf_splits):
        evaluation = bedplate.evaluate(ByWord(), task, split="valid", data=splits)
        assert (evaluation.n, evaluation.estimate, evaluation.lower_bound) == (
            expected.n,
            expected.estimate,
            expected.lower_bound,
        )
        assert {row.id.removeprefix("valid/") for row in evaluation.rows} == {row.id for row in expected.rows}


def test_what_does_not_go_is_named(task: Path, frame: pd.DataFrame) -> None:
    with pytest.raises(UsageError, match="data is int; give a pandas or polars DataFrame"):
        bedplate.evaluate(ByWord(), task, data=3)
    with pytest.raises(DataError, match="data: no column 'text'"):
        bedplate.evaluate(ByWord(), task, data=frame.rename(columns={"text": "body"}))
    for label in ("NEGATIVE", " Negative ", "negativ"):
        frame.loc[2, "label"] = label
        with pytest.raises(DataError, match=f"data, row 3: the label '{label}'.*; did you mean 'negative'"):
            bedplate.evaluate(ByWord(), task, data=frame)
    values = yaml.safe_load(task.read_text())
    values["data"] = {"target": "label", "split": {name: f"{name}.csv" for name in ("train", "valid", "test")}}
    task.write_text(yaml.safe_dump(values))
    for task_spec in (task, load_task(task)):
        with pytest.raises(ConfigError, match="do not go with files under `split`"):
            bedplate.evaluate(ByWord(), task_spec, data=frame)


def test_a_ladder_on_a_table_keeps_its_rows_and_can_be_read_again(
    without_source: Path, task: Path, frame: pd.DataFrame, tmp_path: Path
) -> None:
    rungs, out = ["majority"], tmp_path / "out"
    report = bedplate.adapt(without_source, out, rungs=rungs, data=frame)
    expected = bedplate.adapt(task, tmp_path / "from-file", rungs=rungs)
    for name in rungs:
        ours, theirs = report.row(name), expected.row(name)
        assert (ours["estimate"], ours["interval"]) == (theirs["estimate"], theirs["interval"])
    saved_task = load_task(out / "task.yaml", relative_to=without_source)
    assert (saved_task.directory / str(saved_task.data.source)).resolve() == (out / "rows.jsonl").resolve()
    assert load_examples(saved_task).hashes["test"] == Run.read(out).data["test"]
    rerun = bedplate.adapt(without_source, out, rungs=rungs, data=frame)
    assert rerun.data["timing"]["resumed"]

    read = bedplate.load_report(out)
    assert read.data == rerun.data
    assert read.verdict == rerun.verdict
    assert bedplate.load_report(out / "report.json").data == read.data
    assert len(json.dumps(read.data)) > 10_000
    assert len(repr(read)) < 300
    page = read._repr_html_()
    assert page.count("<tr>") == 1 + len(read.rungs)
    assert "majority" in page

    write_rows(tmp_path / "more.jsonl", groups=60, seed=1)
    fresh_report = bedplate.adapt(
        without_source, out, rungs=["majority"], data=pd.DataFrame(read_jsonl(tmp_path / "more.jsonl"))
    )
    assert not fresh_report.data["timing"]["resumed"]


def test_a_shuffled_or_cleaned_table_goes_on_where_the_run_stopped(
    task: Path, frame: pd.DataFrame, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows without ids are named by their places, which are other ones in a table that was shuffled or cleaned."""
    out, empty = tmp_path / "out", frame.drop(columns="id").head(3).assign(text="")
    dirty = pd.concat([empty, frame.drop(columns="id")])
    options: dict[str, Any] = {"rungs": ["majority", "from_scratch"]}
    first = bedplate.adapt(task, out, data=dirty, **options)
    clean = dirty[dirty["text"] != ""].sample(frac=1, random_state=3)
    again = bedplate.adapt(task, out, data=clean, **options)
    assert again.data["timing"]["resumed"]
    assert [row["interval"] for row in again.rungs] == [row["interval"] for row in first.rungs]
    assert "on other rows" not in caplog.text
    texts = {f"row {number}": text for number, text in enumerate(clean["text"], start=1)}
    shown = again.data["examples"]["rows"]
    assert shown
    assert all(texts[row["id"]] == row["text"] for row in shown)


# --- tasks that are in memory too


def test_a_mapping_is_a_task(task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = yaml.safe_load(task.read_text())
    monkeypatch.chdir(task.parent)
    values["data"]["source"] = "rows.jsonl"  # from here, not from where the task is written
    report = bedplate.adapt(values, tmp_path / "runs" / "out", rungs=["majority"])
    expected = bedplate.adapt(task, tmp_path / "from-file", rungs=["majority"])
    assert report.row("majority")["interval"] == expected.row("majority")["interval"]
    assert (tmp_path / "runs" / "out.task.yaml").is_file()
    with pytest.raises(ConfigError, match="instruction"):
        bedplate.adapt({**values, "instruction": "x"}, tmp_path / "other", rungs=["majority"])


def test_a_table_and_its_column_of_answers_are_a_task(frame: pd.DataFrame, tiny_base: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"rungs": ["majority"], "overrides": [f"adapt.bases=[{tiny_base}]"]}
    out = tmp_path / "out"
    report = bedplate.adapt(frame, out, target="label", budget="2m", **options)
    assert report.data["settings"]["budget_seconds"] == 120
    assert report.row("majority")["n"] > 0
    written = tmp_path / "out.task.yaml"
    drafted = load_task(written)
    assert drafted.task == "out"
    assert (drafted.data.target, drafted.data.group_by) == ("label", "group")
    assert len(read_jsonl(tmp_path / "out.task.jsonl")) == len(frame)
    written.write_text(written.read_text().replace("train_minutes: 2", "train_minutes: 9"))
    bedplate.adapt(frame, out, target="label", **options)
    assert "train_minutes: 9" in written.read_text()  # resumed: the file of the first call, as it was edited
    other_column = frame.assign(other=frame["label"])
    bedplate.adapt(other_column, out, target="label", **options)
    bedplate.adapt(other_column, out, target="other", **options)
    assert load_task(written).data.target == "other"
    (tmp_path / "out.task.jsonl").unlink()
    bedplate.adapt(other_column, out, target="label", **options)
    assert load_task(written).data.target == "label"
    for task_without_target in (written, yaml.safe_load(written.read_text())):
        with pytest.raises(UsageError, match="names its own"):
            bedplate.adapt(task_without_target, tmp_path / "other", target="label")
    with pytest.raises(UsageError, match="budget is -3: it must be a number of seconds above 0"):
        bedplate.adapt(frame, tmp_path / "negative", target="label", budget=-3)
    assert not list(tmp_path.glob("negative*"))
    with pytest.raises(UsageError, match="task is int; give a task file's path"):
        bedplate.adapt(3, tmp_path / "other")
    with pytest.raises(UsageError, match="no column 'lable'; did you mean 'label'"):
        bedplate.adapt(frame, tmp_path / "other", target="lable")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("other")) == []


def test_what_is_drafted_for_a_table_is_told(
    frame: pd.DataFrame, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"target": "label", "rungs": ["majority"], "overrides": [f"adapt.bases=[{tiny_base}]"]}
    report = bedplate.adapt(frame, tmp_path / "out", **options)
    told = capsys.readouterr().err
    counts = report.data["data"]["counts"]
    for line in (
        "asked with text; the answer is label (one of 2 labels: negative, positive)",
        f"120 of 120 rows can be used: {counts['train']} train, {counts['valid']} valid, {counts['test']} test",
        "- Rows with the same group stay together in one split (60 groups); with the group `none`, rows are taken as "
        "independent.",
        f"written to {tmp_path / 'out.task.yaml'}, with a budget of 10 min; read it through, above all the "
        "instructions and the bar (accuracy 0.8)",
    ):
        assert line in told.splitlines()
    bedplate.adapt(frame, tmp_path / "out", **options)
    told = capsys.readouterr().err
    assert f"the task is the one that was drafted before: {tmp_path / 'out.task.yaml'}" in told
    assert "asked with" not in told


def test_a_table_that_cannot_be_used_leaves_nothing_and_an_earlier_run_as_it_was(
    frame: pd.DataFrame, tiny_base: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"target": "label", "rungs": ["majority"], "overrides": [f"adapt.bases=[{tiny_base}]"]}
    odd, named = frame.assign(id="same"), "the id 'same' is on more than one row"
    with pytest.raises(DataError, match=named):
        bedplate.adapt(odd, tmp_path / "runs" / "out", **options)
    assert not list(tmp_path.glob("runs/*"))
    bedplate.adapt(frame, tmp_path / "runs" / "out", **options)
    files = [tmp_path / "runs" / f"out.task.{suffix}" for suffix in ("yaml", "jsonl")]
    before = [file.read_bytes() for file in files]
    with pytest.raises(DataError, match=named):
        bedplate.adapt(odd, tmp_path / "runs" / "out", **options)
    assert [file.read_bytes() for file in files] == before


def test_rows_of_a_table_without_a_label_are_named_by_its_index_and_left_out(
    frame: pd.DataFrame, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unlabelled = frame.assign(label=frame["label"].where(~frame.index.isin([5, 8]))).rename(index="r{}".format)
    options: dict[str, Any] = {"rungs": ["majority"], "overrides": [f"adapt.bases=[{tiny_base}]"]}
    report = bedplate.adapt(unlabelled, tmp_path / "out", target="label", **options)
    assert "Rows without label are left out: 2 of 120 rows (index 'r5', 'r8')." in capsys.readouterr().err
    counts = report.data["data"]["counts"]
    assert (counts["read"], counts["unlabelled"]) == (120, 2)
    assert sum(counts[name] for name in ("train", "valid", "test")) == 118
    assert load_task(tmp_path / "out.task.yaml").labels == ("negative", "positive")


@pytest.mark.parametrize("target_type", ["int64", "float64", "bool"])
def test_numbers_and_truth_values_are_labels(
    frame: pd.DataFrame, tiny_base: Path, tmp_path: Path, target_type: str, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = frame.assign(label=(frame["label"] == "positive").astype(target_type))
    options: dict[str, Any] = {"rungs": ["majority", "from_scratch"], "overrides": [f"adapt.bases=[{tiny_base}]"]}
    report = bedplate.adapt(codes, tmp_path / "out", target="label", **options)
    names = ("false", "true") if target_type == "bool" else ("0", "1")
    assert load_task(tmp_path / "out.task.yaml").labels == names
    assert f"taken as text, as skins answer: {', '.join(names)}." in capsys.readouterr().err
    assert report.row("from_scratch")["estimate"] > 0.8
    task = load_task(tmp_path / "out.task.yaml")
    evaluation = bedplate.evaluate(tmp_path / "out" / "skins" / "from_scratch", task, data=codes)
    assert {row.target for row in evaluation.rows} == {*names}


def test_what_is_wrong_with_rows_or_bar_is_told_when_the_file_is_drafted(
    frame: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="the bar is 80; give what accuracy must reach as a share"):
        bedplate.init(frame, tmp_path / "task.yaml", target="label", bar=80)
    assert not list(tmp_path.glob("task.*"))
    bedplate.init(frame.assign(label=frame["label"].where(frame.index > 1)), tmp_path / "task.yaml", target="label")
    assert "Rows without label are left out: 2 of 120 rows (rows 1, 2)." in capsys.readouterr().err


def test_init_drafts_the_commands_task_file(frame: pd.DataFrame, task: Path, tmp_path: Path) -> None:
    from bedplate.cli.main import main

    (tmp_path / "command").mkdir()
    source = tmp_path / "command" / "task.jsonl"
    source.write_bytes((task.parent / "rows.jsonl").read_bytes())
    with pytest.raises(SystemExit) as stop:
        main(["init", str(source), "--out", str(source.with_name("task.yaml")), "--target", "label", "--yes"])
    assert not stop.value.code
    path = bedplate.init(frame, tmp_path / "python" / "task.yaml", target="label")
    assert path.read_text() == source.with_name("task.yaml").read_text()
    with pytest.raises(UsageError, match="exists already"):
        bedplate.init(frame, path, target="label")
    assert bedplate.init(source, path, target="label", overwrite=True, bar=0.9) == path
    assert "value: 0.9" in path.read_text()
    assert "../command/task.jsonl" in path.read_text()
