"""Rows with two labels: read, compared, and a bar that they put out of reach."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from tests.adaptation.conftest import write_rows, write_task

from bedplate.adaptation.ladder import adapt
from bedplate.adaptation.verdict.label_ceiling import second_labels
from bedplate.core.errors import ConfigError, DataError
from bedplate.core.statistics.agreement import ceiling
from bedplate.evaluation.examples import load_examples
from bedplate.evaluation.in_memory import fresh_rows
from bedplate.evaluation.task import Task, load_task

SECOND = ["data.second_label=other"]


def doubly(directory: Path, base: Path, error: float, share: float = 0.8, **changes: object) -> Path:
    """A task file whose rows have a second label in this share, which differs in about `error` of them."""
    directory.mkdir()
    rows = [json.loads(line) for line in write_rows(directory / "first.jsonl", groups=150).read_text().splitlines()]
    rng = random.Random(1)
    for row in rows:
        flipped = {"positive": "negative", "negative": "positive"}[row["label"]]
        second = flipped if rng.random() < error else row["label"]
        row["other"] = second if rng.random() < share else rng.choice(["", None])
        row.update(changes)
    path = directory / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return write_task(directory, base, rows=path)


def test_agreement_and_ceiling_are_those_of_the_rows(tmp_path: Path, tiny_base: Path) -> None:
    path = doubly(tmp_path / "task", tiny_base, 0.2)
    task = load_task(path, SECOND)
    data = load_examples(task)
    assert data.test.openings == []
    rows = [json.loads(line) for line in (path.parent / "rows.jsonl").read_text().splitlines()]
    agreements = [row["label"] == row["other"] for row in rows if row["other"]]
    comparison = second_labels(task, data, 0.95)
    assert comparison is not None
    assert (comparison.n, comparison.of) == (len(agreements), len(rows))
    assert comparison.agreement == pytest.approx(sum(agreements) / len(agreements))
    assert comparison.ceiling == pytest.approx(ceiling(sum(agreements) / len(agreements), 2))
    assert comparison.highest is not None
    assert comparison.said is not None
    assert "no model more than" in comparison.said
    macro = second_labels(load_task(path, [*SECOND, "metric=macro_f1"]), data, 0.95)
    assert macro is not None
    assert macro.ceiling is None
    assert macro.agreement == comparison.agreement
    assert second_labels(load_task(path), load_examples(load_task(path)), 0.95) is None


def test_labels_agree_where_the_metric_takes_one_for_the_other(tmp_path: Path) -> None:
    """SQuAD's script compares no articles and no punctuation: labels that differ in these alone lower no ceiling."""
    rows = [
        {"id": str(i), "text": f"question {i}", "answer": f"the city of {i}.", "other": f"City of {i}"}
        for i in range(60)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def agreement(metric: str, output: dict[str, object]) -> float | None:
        task = Task.model_validate(
            {
                "task": "t",
                "inputs": {"x": {"column": "text"}},
                "output": output,
                "data": {
                    "source": str(tmp_path / "rows.jsonl"),
                    "target": "answer",
                    "second_label": "other",
                    "group_by": None,
                    "split": {"train": 0.5, "valid": 0.25, "test": 0.25},
                    "seed": 0,
                },
                "metric": metric,
            }
        )
        comparison = second_labels(task, load_examples(task), 0.95)
        assert comparison is not None
        return comparison.agreement

    assert agreement("squad_exact", {"kind": "text"}) == 1.0
    assert agreement("exact_match", {"kind": "text"}) == 0.0


def test_rows_count_by_how_often_their_text_came(tmp_path: Path, tiny_base: Path) -> None:
    path = doubly(tmp_path / "task", tiny_base, 0.2)
    rows = [json.loads(line) for line in (path.parent / "rows.jsonl").read_text().splitlines()]
    copies = [{**row, "id": f"{row['id']}-again"} for row in rows if row["other"] == row["label"]]
    (path.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, *copies]))
    task = load_task(path, [*SECOND, "data.traffic.duplicates=true"])
    comparison = second_labels(task, load_examples(task), 0.95)
    plain = second_labels(load_task(path, SECOND), load_examples(load_task(path, SECOND)), 0.95)
    assert comparison is not None
    assert plain is not None
    assert plain.agreement is not None
    agreed = 2 * plain.agreement
    assert comparison.agreement == pytest.approx(
        agreed / (agreed + 1 - plain.agreement), abs=0.01
    )  # weights are by split


def test_a_bar_above_it_is_refused_with_the_number_before_anything_is_asked(tmp_path: Path, tiny_base: Path) -> None:
    path = doubly(tmp_path / "task", tiny_base, 0.2)
    with pytest.raises(
        DataError, match=r"0\.97 is out of reach.*agree in a share of 0\.\d+.*no model scores more than 0\.9"
    ):
        adapt(path, tmp_path / "out", overrides=[*SECOND, "adapt.target.value=0.97"])
    assert not (tmp_path / "out").exists()


def test_the_report_says_it(tmp_path: Path, tiny_base: Path) -> None:
    path = doubly(tmp_path / "task", tiny_base, 0.1)
    report = adapt(path, tmp_path / "out", rungs=["majority", "from_scratch"], overrides=SECOND)
    comparison = report.data["data"]["second_labels"]
    assert comparison["column"] == "other"
    assert "a perfect model would score about" in comparison["said"]
    assert comparison["said"][1:] in (tmp_path / "out" / "report.html").read_text()


def test_a_column_that_is_none_and_a_label_that_is_none_are_named(tmp_path: Path, tiny_base: Path) -> None:
    path = doubly(tmp_path / "task", tiny_base, 0.1)
    with pytest.raises(DataError, match="no column 'others'"):
        load_examples(load_task(path, ["data.second_label=others"]))
    with pytest.raises(ConfigError, match="column of the target itself"):
        load_task(path, ["data.second_label=label"])
    odd = doubly(tmp_path / "odd", tiny_base, 0.1, other="perhaps")
    with pytest.raises(DataError, match="'perhaps' in column 'other'"):
        load_examples(load_task(odd, SECOND))


def test_new_rows_need_no_second_label_and_the_task_keeps_its_name(tmp_path: Path, tiny_base: Path) -> None:
    path = doubly(tmp_path / "task", tiny_base, 0.1)
    fresh = write_rows(tmp_path / "later.jsonl", groups=5)
    assert fresh_rows(load_task(path, SECOND), fresh).labelled
    assert load_task(path).hash == load_task(path, ["data.second_label=null"]).hash
