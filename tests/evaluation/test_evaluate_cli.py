"""`bedplate evaluate` prints the harness's numbers, as text and as JSON, and turns bad input into one line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from bedplate.cli.main import main
from bedplate.evaluation import harness
from bedplate.evaluation.examples import load_examples
from bedplate.evaluation.task import load_task


class Answer:
    def __init__(self, output: str) -> None:
        self.output, self.seconds = output, 0.01
        self.scores = {"no": -0.2, "yes": -1.7} if output == "no" else {"no": -1.7, "yes": -0.2}


class ByLastDigit:
    """Right on every row whose number does not end in 7."""

    def predict(self, rows: Sequence[dict[str, str]]) -> list[Answer]:
        numbers = [int(row["q"].split()[1]) for row in rows]
        return [Answer(("no", "yes")[(n % 2) ^ (n % 10 == 7)]) for n in numbers]


@pytest.fixture
def task_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    lines = [f"question {i},{('no', 'yes')[i % 2]},g{i // 2}" for i in range(400)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,y,g", *lines]) + "\n", "utf-8")
    path = tmp_path / "task.yaml"
    path.write_text(
        "task: parity\ninputs: {q: {column: text}}\noutput: {kind: label, labels: ['no', 'yes']}\nmetric: accuracy\n"
        "data: {source: rows.csv, target: y, group_by: g, split: {train: 0.5, valid: 0.25, test: 0.25}}\n",
        "utf-8",
    )
    (tmp_path / "skin").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(harness, "load_predictor", lambda _, **options: ByLastDigit())
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", *arguments])
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def test_json_agrees_with_the_rows_written(task_file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    code, printed, _ = run(capsys, "skin", str(task_file), "--json", "--out", str(out))
    assert code == 0
    summary, full = json.loads(printed), json.loads(out.read_text("utf-8"))
    expected = [int(e.inputs["q"].split()[1]) % 10 != 7 for e in load_examples(load_task(task_file)).valid]
    assert summary["estimate"] == pytest.approx(sum(expected) / len(expected))
    assert [row["score"] for row in full["rows"]] == [float(x) for x in expected]
    assert summary["split"] == "valid"
    assert summary["groups"] == 50
    assert summary["interval"][0] < summary["lower_bound"] < summary["estimate"]
    assert summary["calibration"]["n"] == 100
    assert "rows" not in summary


def test_text_shows_estimate_interval_and_groups(task_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed, _ = run(capsys, "skin", str(task_file), "--split", "test", "data.seed=2")
    assert code == 0
    assert "parity: accuracy 0." in printed
    assert "on test" in printed
    assert "rows in 50 groups" in printed
    assert "label yes" in printed


class Cautious(ByLastDigit):
    """Answers a row in four, rightly."""

    def predict(self, rows: Sequence[dict[str, str]]) -> list[Answer]:
        numbers = [int(row["q"].split()[1]) for row in rows]
        return [Answer("abstain" if n % 4 else "no") for n in numbers]


@pytest.mark.parametrize("metric", ["accuracy", "selective_accuracy"])
def test_what_was_withheld_is_told(
    task_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, metric: str
) -> None:
    (tmp_path / "skin").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(harness, "load_predictor", lambda _, **options: Cautious())
    arguments = ("skin", str(task_file), "output.abstain={min_confidence: 0.9}", f"metric={metric}")
    out = tmp_path / "report.json"
    _, printed, _ = run(capsys, *arguments, "--out", str(out))
    rows = load_examples(load_task(task_file)).valid
    share = sum(int(e.inputs["q"].split()[1]) % 4 == 0 for e in rows) / len(rows)
    assert f"answered {share:.1%} of the rows and abstained on the rest; row score among them 1.000" in printed
    _, printed_json, _ = run(capsys, *arguments, "--json")
    for report in (json.loads(out.read_text("utf-8")), json.loads(printed_json)):
        assert (report["coverage"], report["answered"]) == (pytest.approx(share), 1.0)
    (tmp_path / "skin").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(harness, "load_predictor", lambda _, **options: ByLastDigit())
    assert "abstained" not in run(capsys, *arguments)[1]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--split", "dev"], 2, "no split 'dev'"),
        (["metric=f1"], 2, "no metric 'f1'"),
        (["data.source=none.csv"], 2, "does not exist"),
    ],
)
def test_bad_input_is_one_line(
    task_file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    status, printed, complaint = run(capsys, "skin", str(task_file), *arguments)
    assert status == code
    assert printed == ""
    assert message in complaint
    assert complaint.count("\n") == 1
