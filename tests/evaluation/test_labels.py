"""Several labels to a row: what targets may look like, what is refused, and scores against scikit-learn."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from sklearn.metrics import accuracy_score, f1_score

from bedplate.core.errors import ConfigError, DataError, RequestError
from bedplate.data.splits import row_hash
from bedplate.evaluation.examples import Example, load_examples
from bedplate.evaluation.harness import evaluate_predictions
from bedplate.evaluation.slices import slices
from bedplate.evaluation.task import Task, load_task
from bedplate.skins.output import LabelsOutput

LABELS = ("red", "green", "sky blue")
OUTPUT = LabelsOutput(labels=LABELS)

sets = st.sets(st.sampled_from(LABELS))


def task(metric: str, **output: object) -> Task:
    return Task.model_validate(
        {
            "task": "colours",
            "inputs": {"x": {"column": "x"}},
            "output": {"kind": "labels", "labels": LABELS, **output},
            "data": {"source": "x.csv", "target": "y", "split": {"train": 0.6, "valid": 0.2, "test": 0.2}},
            "metric": metric,
        }
    )


def test_f1_of_rows_that_weigh_little_is_that_of_scikit_learn() -> None:
    targets, predictions = ({"red"}, set(), {"green"}), ({"red", "green"}, set(), set())
    weights = [0.2, 0.5, 0.1]  # labels that are wanted or given weigh 0.7 in all
    rows = [
        Example(str(i), {"x": str(i)}, OUTPUT.canonical(target), str(i), row_hash({"x": str(i)}), weight=weight)
        for i, (target, weight) in enumerate(zip(targets, weights, strict=True))
    ]
    marks = [[[label in labels for label in LABELS] for labels in side] for side in (targets, predictions)]
    evaluation = evaluate_predictions(task("micro_f1"), rows, [json.dumps(sorted(labels)) for labels in predictions])
    assert evaluation.estimate == pytest.approx(
        f1_score(*marks, average="micro", sample_weight=weights, zero_division=1.0)
    )


@given(st.lists(st.tuples(sets, sets), min_size=1, max_size=30))
@settings(max_examples=25, deadline=None)
def test_scores_match_scikit_learn(pairs: list[tuple[set[str], set[str]]]) -> None:
    rows = [
        Example(str(i), {"x": str(i)}, OUTPUT.canonical(target), str(i), row_hash({"x": str(i)}))
        for i, (target, _) in enumerate(pairs)
    ]
    answers = [json.dumps(sorted(prediction)) for _, prediction in pairs]
    targets, predictions = (np.array([[label in pair[i] for label in LABELS] for pair in pairs]) for i in (0, 1))
    scores = {
        name: evaluate_predictions(task(name), rows, answers).estimate
        for name in ("labels_match", "micro_f1", "macro_f1", "example_f1")
    }
    occurs = np.flatnonzero((targets | predictions).any(axis=0))
    assert scores["labels_match"] == pytest.approx(accuracy_score(targets, predictions))
    assert scores["micro_f1"] == pytest.approx(f1_score(targets, predictions, average="micro", zero_division=1.0))
    assert scores["example_f1"] == pytest.approx(f1_score(targets, predictions, average="samples", zero_division=1.0))
    if occurs.size:
        peer = f1_score(targets, predictions, average="macro", zero_division=0.0, labels=occurs)
        assert scores["macro_f1"] == pytest.approx(peer)


@given(st.permutations(LABELS), st.integers(0, 3))
def test_one_canonical_form(order: list[str], count: int) -> None:
    text = json.dumps(order[:count])
    canonical = OUTPUT.comparable(text)
    assert json.loads(canonical) == [label for label in LABELS if label in order[:count]]
    assert OUTPUT.comparable(canonical) == canonical
    assert OUTPUT.comparable(json.dumps([*order[:count], *order[:count]])) == canonical


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('["red"', "not JSON, or not the whole"),
        ('"red"', "not a JSON list of labels"),
        ("[1]", "not a JSON list of labels"),
        ('["gren"]', "'gren' is not one of the labels; did you mean 'green'"),
    ],
)
def test_what_is_no_list_of_labels_is_refused(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        OUTPUT.comparable(text)
    row = Example("1", {"x": "1"}, '["red"]', "1", row_hash({"x": "1"}))
    result = evaluate_predictions(task("example_f1"), [row], [text])
    assert (result.unparsed, result.estimate) == (1, 0.0)


def write(directory: Path, targets: list[object], **output: object) -> Task:
    rows = [json.dumps({"text": f"text {i}", "y": y}) for i, y in enumerate(targets)]
    (directory / "rows.jsonl").write_text("\n".join(rows) + "\n", "utf-8")
    value = task("example_f1", **output).model_dump(mode="json")
    value["inputs"]["x"]["column"], value["data"]["source"] = "text", "rows.jsonl"
    (directory / "task.yaml").write_text(json.dumps(value), "utf-8")
    return load_task(directory / "task.yaml")


def test_targets_are_lists_json_text_or_separated_text(tmp_path: Path) -> None:
    forms: list[list[object]] = [
        [["sky blue", "red"], ["green"], []] * 10,
        ['["sky blue", "red"]', '["green"]', "[]"] * 10,
        ["sky blue; red", " green ", ""] * 10,
    ]
    for targets, separator in zip(forms, (None, None, ";"), strict=True):
        loaded = load_examples(write(tmp_path, targets, **({"separator": separator} if separator else {})))
        counts = Counter(e.target for e in [*loaded.train, *loaded.valid, *loaded.test.open("count")])
        assert counts == {'["red","sky blue"]': 10, '["green"]': 10, "[]": 10}


def test_a_rare_label_is_spread_over_the_splits(tmp_path: Path) -> None:
    targets: list[object] = [["red", "green"] if i % 10 else ["red", "sky blue"] for i in range(200)]
    loaded = load_examples(write(tmp_path, targets))
    parts = (loaded.train, loaded.valid, loaded.test.open("count"))
    assert [sum("sky blue" in e.target for e in part) for part in parts] == [12, 4, 4]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (["gren"], r"line 31: the target \(y\): 'gren' is not one of the labels; did you mean 'green'"),
        ("red, green", r"line 31: .*one text; say under output.separator"),
        (None, "line 31: .*not a JSON list of labels"),
        ([1], "line 31: .*not a JSON list of labels"),
    ],
)
def test_a_bad_target_is_named(tmp_path: Path, target: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_examples(write(tmp_path, [["red"], ["green"], ["sky blue"]] * 10 + [target]))


def test_a_label_that_no_row_has_is_named_and_a_rare_one_noted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no row has the label 'sky blue'"):
        load_examples(write(tmp_path, [["red"], ["green"]] * 10))
    loaded = load_examples(write(tmp_path, [["red"], ["green"]] * 10 + [["sky blue"]]))
    assert sum("has no row with the label 'sky blue'" in note for note in loaded.notes) == 2


def test_the_task_file_says_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        task("example_f1", labels=["red"])
    with pytest.raises(ValueError, match="stands in the label 'sky blue'"):
        task("example_f1", separator=" ")
    with pytest.raises(ValueError, match="'accuracy' does not fit an output of kind labels"):
        task("accuracy")
    assert task("micro_f1").labels == ()  # nothing that takes one of the labels may mistake it for such a task


def test_slices_by_label_take_every_row_that_has_it() -> None:
    targets = ['["red"]', '["red","green"]', '["green"]', "[]"] * 30
    rows = [Example(str(i), {"x": str(i)}, y, str(i), row_hash({"x": str(i)})) for i, y in enumerate(targets)]
    result = evaluate_predictions(task("example_f1"), rows, ['["red"]'] * 120)
    label_slices = {part.value: part for part in slices(result) if part.by == "label"}
    assert (label_slices["red"].n, label_slices["green"].n) == (60, 60)
    assert label_slices["red"].estimate == pytest.approx((1 + 2 / 3) / 2)
    assert 0.7 < label_slices["red"].interval[0] < label_slices["red"].estimate < label_slices["red"].interval[1] < 0.95


def test_wrong_config_is_a_config_error(tmp_path: Path) -> None:
    write(tmp_path, [["red"]])
    with pytest.raises(ConfigError, match="no metric 'exampel_f1'; did you mean 'example_f1'"):
        load_task(tmp_path / "task.yaml", ["metric=exampel_f1"])


@given(st.lists(st.floats(-800, 800), min_size=len(LABELS), max_size=len(LABELS)), st.floats(0.01, 0.99))
def test_a_head_gives_the_labels_whose_probability_reaches_the_threshold(logits: list[float], threshold: float) -> None:
    chosen, log_probabilities = LabelsOutput(labels=LABELS, threshold=threshold).read_scores(logits)
    probabilities = special.expit(np.array(logits))
    np.testing.assert_allclose(np.exp(list(log_probabilities.values())), probabilities, atol=1e-12)
    sure = np.abs(probabilities - threshold) > 1e-9
    given_labels = np.array([label in json.loads(chosen) for label in LABELS])
    assert (given_labels == (probabilities >= threshold))[sure].all()
    assert LabelsOutput(labels=LABELS).comparable(chosen) == chosen


def test_outputs_from_before_there_was_a_threshold_keep_their_form() -> None:
    assert "threshold" not in OUTPUT.model_dump()
    assert LabelsOutput(labels=LABELS, threshold=0.3).model_dump()["threshold"] == 0.3
    with pytest.raises(RequestError, match="one number for each"):
        LabelsOutput(labels=LABELS, threshold=0.3).read_scores([math.nan] * len(LABELS))
