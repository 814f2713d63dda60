"""What a task file says of production: recorded answers, slices, and the weights of the traffic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bedplate.core.errors import ConfigError, DataError
from bedplate.evaluation.evaluated import Evaluation, compare, drop_between
from bedplate.evaluation.examples import TaskData, load_examples
from bedplate.evaluation.harness import evaluate_predictions
from bedplate.evaluation.in_memory import fresh_rows
from bedplate.evaluation.slices import calibration, slices
from bedplate.evaluation.task import Task, load_task


def rows(n: int = 400) -> list[dict[str, Any]]:
    """Every text twice at the end of the first tenth; a fifth in German, which the running system gets wrong."""
    records: list[dict[str, Any]] = []
    for i in range(n):
        language = "de" if i % 5 == 0 else "en"
        label = "no" if i % 3 else "yes"
        wrong = "yes" if label == "no" else "no"
        current_answer = wrong if language == "de" else label
        records.append({"text": f"row {i}", "label": label, "language": language, "now": current_answer})
    return records + records[: n // 10]


def write(directory: Path, data: dict[str, Any], records: list[dict[str, Any]] | None = None, **overrides: Any) -> Path:
    (directory / "rows.jsonl").write_text("\n".join(map(json.dumps, records or rows())), "utf-8")
    task = {
        "task": "t",
        "inputs": {"text": {"column": "text"}},
        "output": {"kind": "label", "labels": ["no", "yes"]},
        "data": {
            "source": "rows.jsonl",
            "target": "label",
            "split": {"train": 0.3, "valid": 0.3, "test": 0.4},
            **data,
        },
        "metric": "accuracy",
        **overrides,
    }
    (directory / "task.yaml").write_text(json.dumps(task), "utf-8")
    return directory / "task.yaml"


def read(path: Path) -> tuple[Task, TaskData]:
    task = load_task(path)
    return task, load_examples(task)


def answered(task: Task, data: TaskData, german: str = "right") -> Evaluation:
    """Right everywhere, or nowhere in German."""
    opposite = {"no": "yes", "yes": "no"}
    answers = [
        e.target if german == "right" or e.slices["language"] == "en" else opposite[e.target] for e in data.valid
    ]
    return evaluate_predictions(task, data.valid, answers)


def test_the_running_system_is_estimated_by_its_recorded_answers(tmp_path: Path) -> None:
    task, data = read(write(tmp_path, {"current": "now", "slices": ["language"]}))
    assert task.data.current is not None
    evaluation = evaluate_predictions(task, data.valid, [e.current for e in data.valid])
    assert evaluation.estimate == pytest.approx(np.mean([e.slices["language"] == "en" for e in data.valid]))
    drop = drop_between(answered(task, data), evaluation, 0.95)
    assert drop.value == pytest.approx(1 - evaluation.estimate)


def test_what_it_did_not_answer_is_no_answer(tmp_path: Path) -> None:
    records = [{**row, "now": None if i % 2 else " "} for i, row in enumerate(rows())]
    assert {e.current for e in read(write(tmp_path, {"current": "now"}, records))[1].valid} == {None}
    with pytest.raises(DataError, match=r"line 1: the recorded answer \(now\) is 7.5, not text"):
        read(write(tmp_path, {"current": "now"}, [{**rows()[0], "now": 7.5}, *rows()]))
    with pytest.raises(DataError, match="no column 'nov'"):
        read(write(tmp_path, {"current": "nov"}))


def test_copies_that_were_dropped_count_as_weights(tmp_path: Path) -> None:
    task, data = read(write(tmp_path, {"traffic": {"duplicates": True}}))
    duplicated = {row["text"] for row in rows()[:40]}
    weights = {e.inputs["text"]: e.weight for e in data.valid}
    assert np.mean(list(weights.values())) == pytest.approx(1.0)
    ratio = {round(weight / min(weights.values())): text in duplicated for text, weight in weights.items()}
    assert ratio == {1: False, 2: True}
    assert any("rows are weighted by the traffic and worth" in note for note in data.notes)
    plain = read(write(tmp_path, {}))[1]
    assert {e.weight for e in plain.valid} == {1.0}
    assert plain.hashes["valid"] == data.hashes["valid"]
    assert "traffic" not in task.data.model_copy(update={"traffic": type(task.data.traffic)()}).model_dump()


def test_shares_of_a_slice_decide_what_it_weighs(tmp_path: Path) -> None:
    shares = {"shares": {"language": {"en": 0.3, "de": 0.7}}}
    task, data = read(write(tmp_path, {"traffic": shares}))
    evaluation = answered(task, data, german="wrong")
    assert evaluation.estimate == pytest.approx(0.3)
    sizes = np.array([sum(e.slices["language"] == language for e in data.valid) for language in ("en", "de")])
    kish = 1 / (np.array([0.3, 0.7]) ** 2 / sizes).sum()
    assert any(f"valid: {sizes.sum()} rows are weighted by the traffic and worth {kish:.0f}" in n for n in data.notes)
    assert evaluation.bound(0.95) < 0.3 < evaluation.bound(0.95, "upper")
    assert {(part.by, part.value): part.estimate for part in slices(evaluation)}[("language", "de")] == 0.0
    restored = Evaluation.from_json(json.loads(json.dumps(evaluation.to_json())))
    assert restored.bound(0.99) == evaluation.bound(0.99)
    better = compare(answered(task, data), evaluation)
    assert better.difference == pytest.approx(0.7)
    assert better.test == "sign_flip"
    assert calibration(evaluation) is None


def test_shares_that_do_not_fit_the_rows_say_so(tmp_path: Path) -> None:
    for shares, message in (
        ({"language": {"en": 1.0}}, "rows of train have the value 'de', which has no share"),
        ({"language": {"en": 0.3, "de": 0.3, "fr": 0.4}}, "train has no row of 'fr', which is 40.0% of the traffic"),
    ):
        with pytest.raises(DataError, match=message):
            read(write(tmp_path, {"traffic": {"shares": shares}}))
    for shares, message in (
        ({"language": {"en": 0.3, "de": 0.3}}, "the shares of language must sum to 1, not 0.6"),
        ({"language": {"en": 1.0}, "label": {"no": 1.0}}, "give the shares of one column, not of 2"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_task(write(tmp_path, {"traffic": {"shares": shares}}))


def test_new_rows_need_neither_answers_nor_slices(tmp_path: Path) -> None:
    task, _ = read(write(tmp_path, {"current": "now", "slices": ["language"]}))
    (tmp_path / "new.jsonl").write_text(json.dumps({"text": "a new one", "label": "yes"}), "utf-8")
    assert [e.target for e in fresh_rows(task, tmp_path / "new.jsonl").examples] == ["yes"]
