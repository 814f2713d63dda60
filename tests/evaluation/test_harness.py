"""Numbers against scikit-learn, scipy and statsmodels; rows that add up; comparisons that keep pairs and groups."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import f1_score
from tests.core.plain_statistics import binomial_interval

from bedplate.adaptation.postprocess.evaluate import evaluate
from bedplate.core.errors import UsageError
from bedplate.core.statistics.proportions import binomial_lower
from bedplate.core.statistics.unequal import InsufficientGroups
from bedplate.data.splits import row_hash
from bedplate.evaluation.evaluated import compare
from bedplate.evaluation.examples import Example, load_examples
from bedplate.evaluation.harness import Evaluation, evaluate_predictions
from bedplate.evaluation.ledger import TestLedger
from bedplate.evaluation.metrics import METRICS, macro_f1
from bedplate.evaluation.slices import calibration, confidence_of, slices
from bedplate.evaluation.task import Task, load_task

LABELS = ["a", "b", "c"]


@dataclass(frozen=True)
class Answer:
    output: str | None
    scores: Mapping[str, float] | None = None
    seconds: float = 0.5


def task(metric: str = "accuracy", labels: list[str] | None = LABELS) -> Task:
    output = {"kind": "text"} if labels is None else {"kind": "label", "labels": labels}
    return Task.model_validate(
        {
            "task": "t",
            "inputs": {"x": {"column": "x"}},
            "output": output,
            "data": {"source": "x.csv", "target": "y", "split": {"train": 0.6, "valid": 0.2, "test": 0.2}},
            "metric": metric,
        }
    )


def examples(targets: list[str], groups: list[str] | None = None) -> list[Example]:
    rows: list[Example] = []
    for i, target in enumerate(targets):
        inputs = {"x": f"row {i}" + "!" * (i % 7)}
        digest = row_hash(inputs)
        rows.append(Example(str(i), inputs, target, digest if groups is None else groups[i], digest))
    return rows


def simulated(seed: int, groups: int | None = 60, n: int = 300, right: float = 0.8) -> tuple[list[Example], list[str]]:
    rng = np.random.default_rng(seed)
    targets = [LABELS[i] for i in rng.integers(0, 3, n)]
    wrong = {"a": "b", "b": "c", "c": "a"}
    answers = [t if rng.random() < right else wrong[t] for t in targets]
    names = None if groups is None else [f"g{i % groups}" for i in range(n)]
    return examples(targets, names), answers


pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 3)), min_size=1, max_size=40)


@given(pairs)
@settings(max_examples=40, deadline=None)
def test_macro_f1_matches_scikit_learn(rows: list[tuple[int, int]]) -> None:
    targets, predictions = (np.array(x, dtype=np.int64) for x in zip(*rows, strict=True))
    present = sorted((set(targets.tolist()) | set(predictions.tolist())) - {-1})
    peer = f1_score(targets, predictions, labels=present, average="macro", zero_division=0)
    target_mask, prediction_mask = targets[:, None] == np.arange(4), predictions[:, None] == np.arange(4)
    counts = np.stack([(target_mask & prediction_mask).sum(0), target_mask.sum(0), prediction_mask.sum(0)]).astype(
        float
    )
    assert macro_f1(counts) == pytest.approx(peer)


def test_exact_match_normalises_case_space_and_form_only() -> None:
    row = METRICS["exact_match"].row
    assert row("New  York", " new york\n") == 1.0
    assert row("ﬁne", "FINE") == 1.0
    assert row("New York", "New York.") == 0.0
    assert row("New York", None) == 0.0


def test_independent_rows_get_the_exact_interval() -> None:
    rows, answers = simulated(0, groups=None)
    result = evaluate_predictions(task(), rows, answers)
    right = sum(e.target == a for e, a in zip(rows, answers, strict=True))
    assert result.estimate == right / 300
    assert result.interval == pytest.approx(binomial_interval(right, 300))
    assert result.lower_bound == pytest.approx(binomial_lower(right, 300))
    assert result.bound(0.99, "lower") == pytest.approx(binomial_lower(right, 300, 0.99))
    assert (result.n, result.groups, result.unparsed, result.icc, result.reason) == (300, 300, 0, None, None)


def test_grouped_rows_get_the_clustered_one() -> None:
    rows, answers = simulated(1)
    for e in range(300):  # one group in three wrong throughout
        if int(rows[e].group[1:]) % 3 == 0:
            answers[e] = "none"
    result = evaluate_predictions(task(), rows, answers)
    assert result.groups == 60
    assert result.icc is not None
    assert result.icc > 0.4
    right = round(result.estimate * 300)
    assert result.lower_bound is not None
    assert result.lower_bound < binomial_lower(right, 300) - 0.02
    assert result.design_effect > 2


def test_few_groups_have_no_bound_and_say_why() -> None:
    for metric in ("accuracy", "macro_f1"):
        result = evaluate_predictions(task(metric), *simulated(2, groups=12))
        assert result.lower_bound is None
        assert "12 groups are too few" in (result.reason or "")
        assert result.interval[0] < result.estimate < result.interval[1]
        with pytest.raises(InsufficientGroups):
            result.bound(0.95)
        single = evaluate_predictions(task(metric), *simulated(2, groups=1))
        assert single.interval == (0.0, 1.0)


def test_everything_right_is_not_certainty() -> None:
    rows, _ = simulated(3, groups=50)
    for metric in ("accuracy", "macro_f1"):
        result = evaluate_predictions(task(metric), rows, [e.target for e in rows])
        assert result.estimate == 1.0
        assert result.lower_bound is not None
        assert result.lower_bound < 0.96
        assert result.interval[0] < result.lower_bound


def test_macro_f1_is_one_statistic_of_all_rows() -> None:
    rows, answers = simulated(4)
    result = evaluate_predictions(task("macro_f1"), rows, answers)
    peer = f1_score([e.target for e in rows], answers, average="macro")
    assert result.estimate == pytest.approx(peer)
    assert result.lower_bound is not None
    assert result.interval[0] < result.lower_bound < result.estimate < result.interval[1]
    assert result == evaluate_predictions(task("macro_f1"), rows, answers)


def test_what_cannot_be_parsed_is_wrong_and_counted() -> None:
    rows = examples(["a", "b", "c", "a"])
    result = evaluate_predictions(task(), rows, [Answer("a"), Answer(None), "nothing", None])
    assert result.unparsed == 3
    assert result.estimate == 0.25
    assert [row.prediction for row in result.rows] == ["a", None, None, None]


def test_rows_carry_all_that_the_numbers_need(tmp_path: Path) -> None:
    rows, answers = simulated(5)
    responses = [Answer(a, {"a": -1.0, "b": -2.0, "c": -3.0}) for a in answers]
    result = evaluate_predictions(task(), rows, responses, split="test")
    assert np.mean([row.score for row in result.rows]) == pytest.approx(result.estimate)
    assert [row.row_hash for row in result.rows] == [e.row_hash for e in rows]
    assert result.rows[0].seconds == 0.5
    path = tmp_path / "report.json"
    path.write_text(json.dumps(result.to_json(), allow_nan=False), "utf-8")
    restored = Evaluation.from_json(json.loads(path.read_text("utf-8")))
    assert restored == result
    assert restored.bound(0.9) == result.bound(0.9)


def test_wrong_calls_say_so() -> None:
    with pytest.raises(UsageError, match="1 predictions for 2 examples"):
        evaluate_predictions(task(), examples(["a", "b"]), ["a"])
    with pytest.raises(UsageError, match="no examples"):
        evaluate_predictions(task(), [], [])


def test_compare_is_mcnemar_for_independent_rows() -> None:
    rows, answers = simulated(6, groups=None)
    better = [e.target if i % 9 == 0 else a for i, (e, a) in enumerate(zip(rows, answers, strict=True))]
    a, b = (evaluate_predictions(task(), rows, x) for x in (better, answers))
    result = compare(a, b)
    gained = sum(x != y for x, y in zip(better, answers, strict=True))
    assert result.test == "mcnemar_exact"
    assert result.p_value == pytest.approx(stats.binomtest(0, gained).pvalue)
    assert result.difference == pytest.approx(gained / 300)
    mirrored = compare(b, a)
    assert mirrored.p_value == result.p_value
    assert mirrored.interval == pytest.approx((-result.interval[1], -result.interval[0]))


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_compare_keeps_groups_and_pairs(metric: str) -> None:
    rows, answers = simulated(7)
    better = [e.target if i % 5 == 0 else a for i, (e, a) in enumerate(zip(rows, answers, strict=True))]
    a = evaluate_predictions(task(metric), rows, better)
    order = np.random.default_rng(0).permutation(300)
    b = evaluate_predictions(task(metric), [rows[i] for i in order], [answers[i] for i in order])
    result = compare(a, b, seed=1)
    assert result.test.startswith("clustered_")
    assert result.difference == pytest.approx(a.estimate - b.estimate)
    assert result.interval[0] < result.difference < result.interval[1]
    assert result.interval[0] > 0
    assert result.p_value < 0.01
    assert result == compare(a, b, seed=1)
    json.dumps(result.to_json(), allow_nan=False)
    identical = compare(a, a)
    assert identical.p_value == 1.0
    assert identical.interval[0] < 0 < identical.interval[1]


def test_compare_refuses_other_rows_and_metrics() -> None:
    rows, answers = simulated(8)
    whole = evaluate_predictions(task(), rows, answers)
    part = evaluate_predictions(task(), rows[1:], answers[1:])
    macro = evaluate_predictions(task("macro_f1"), rows, answers)
    for b in (part, macro):
        with pytest.raises(UsageError, match="one metric on the same rows"):
            compare(whole, b)


class Echo:
    """Answers a fixed label and remembers what it was asked."""

    def __init__(self) -> None:
        self.inputs: list[dict[str, str]] = []

    def predict(self, rows) -> list[Answer]:
        self.inputs += rows
        return [Answer("yes") for _ in rows]


def test_evaluate_asks_the_model_for_every_row_of_the_split(tmp_path: Path) -> None:
    lines = [f"question {i},{('no', 'yes')[i % 2]}" for i in range(50)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,y", *lines]) + "\n", "utf-8")
    (tmp_path / "task.yaml").write_text(
        "task: t\ninputs: {q: {column: text}}\noutput: {kind: label, labels: ['no', 'yes']}\nmetric: accuracy\n"
        "data: {source: rows.csv, target: y, split: {train: 0.6, valid: 0.2, test: 0.2}}\n",
        "utf-8",
    )
    model = Echo()
    result = evaluate(model, tmp_path / "task.yaml", split="test")
    assert (result.split, result.n, len(model.inputs)) == ("test", 10, 10)
    assert result.estimate == sum(row.target == "yes" for row in result.rows) / 10
    assert evaluate(Echo(), load_task(tmp_path / "task.yaml")).split == "valid"
    with pytest.raises(UsageError, match="no split 'dev'"):
        evaluate(Echo(), tmp_path / "task.yaml", split="dev")


def test_evaluating_on_test_makes_a_later_verdict_exploratory(tmp_path: Path) -> None:
    lines = [f"question {i},{('no', 'yes')[i % 2]}" for i in range(50)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,y", *lines]) + "\n", "utf-8")
    (tmp_path / "task.yaml").write_text(
        "task: t\ninputs: {q: {column: text}}\noutput: {kind: label, labels: ['no', 'yes']}\nmetric: accuracy\n"
        "data: {source: rows.csv, target: y, split: {train: 0.6, valid: 0.2, test: 0.2}}\n",
        "utf-8",
    )
    rows = load_examples(load_task(tmp_path / "task.yaml")).test.row_hashes
    evaluate(Echo(), tmp_path / "task.yaml", split="valid")
    assert not TestLedger().open("first", rows, task="t", reason="verdict").exploratory
    evaluate(Echo(), tmp_path / "task.yaml", split="test")
    evaluate(Echo(), tmp_path / "task.yaml", split="test")
    later = TestLedger().open("second", rows, task="t", reason="verdict")
    assert later.exploratory
    assert later.number == 4


def test_train_rows_of_one_task_that_were_looked_at_are_no_fresh_test_rows_of_another(tmp_path: Path) -> None:
    lines = [f"question {i},{('no', 'yes')[i % 2]}" for i in range(50)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,y", *lines]) + "\n", "utf-8")
    (tmp_path / "task.yaml").write_text(
        "task: t\ninputs: {q: {column: text}}\noutput: {kind: label, labels: ['no', 'yes']}\nmetric: accuracy\n"
        "data: {source: rows.csv, target: y, split: {train: 0.6, valid: 0.2, test: 0.2}}\n",
        "utf-8",
    )
    train = load_examples(load_task(tmp_path / "task.yaml")).keys("train")
    evaluate(Echo(), tmp_path / "task.yaml", split="train")
    assert TestLedger().open("another task's", train, task="u", reason="verdict").exploratory


def test_calibration_bins_confidence_against_accuracy() -> None:
    rows = examples(["a"] * 10)
    # five rows at confidence 0.9, four of them right; five at 0.6, two of them right
    responses = [Answer("a", {"a": math.log(0.9), "b": math.log(0.1)})] * 4
    responses += [Answer("b", {"a": math.log(0.1), "b": math.log(0.9)})]
    responses += [Answer("a", {"a": math.log(6.0), "b": math.log(4.0)})] * 2  # unnormalised log-scores
    responses += [Answer("b", {"a": math.log(0.4), "b": math.log(0.6)})] * 3
    result = calibration(evaluate_predictions(task(), rows, responses), bins=5)
    assert result is not None
    assert [(b.n, round(b.confidence, 6), b.accuracy) for b in result.bins] == [(5, 0.6, 0.4), (5, 0.9, 0.8)]
    assert result.error == pytest.approx(0.5 * 0.2 + 0.5 * 0.1)
    assert result.n == 10
    assert calibration(evaluate_predictions(task(), rows, ["a"] * 10)) is None


def test_confidence_survives_extreme_scores() -> None:
    assert confidence_of({"a": -2000.0, "b": -2001.0}, "a") == pytest.approx(1 / (1 + math.exp(-1)))
    assert confidence_of({"a": -math.inf, "b": -1.0}, "b") == 1.0


def test_slices_cover_every_row_once_per_kind() -> None:
    rows, answers = simulated(9)
    result = evaluate_predictions(task(), rows, answers)
    all_slices = slices(result)
    for by in ("label", "length"):
        parts = [s for s in all_slices if s.by == by]
        assert sum(s.n for s in parts) == 300
        assert sum(s.n * s.estimate for s in parts) / 300 == pytest.approx(result.estimate)
        assert all(s.interval[0] <= s.estimate <= s.interval[1] for s in parts)
        assert all(s.interval[1] - s.interval[0] > 0.05 for s in parts)
    by_label = {s.value: s.estimate for s in all_slices if s.by == "label"}
    for label in LABELS:
        outcomes = [e.target == a for e, a in zip(rows, answers, strict=True) if e.target == label]
        assert by_label[label] == pytest.approx(np.mean(outcomes))


def test_a_base_alone_cannot_be_evaluated(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("x,y\n" + "".join(f"{i},{'ab'[i % 2]}\n" for i in range(30)), "utf-8")
    file_task = task(labels=["a", "b"])
    file_task = file_task.model_copy(update={"data": file_task.data.model_copy(update={"source": str(file)})})
    with pytest.raises(UsageError, match="object cannot be evaluated: it has no `predict`; give a skin"):
        evaluate(object(), file_task)  # pyright: ignore[reportArgumentType]


def test_json_is_compared_as_values() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}}
    config = task().model_dump() | {"output": {"kind": "json", "json_schema": schema}, "metric": "json_match"}
    rows = examples(['{"a":"X","b":1}'] * 5)
    answers = ['{"b": 1, "a": "X"}', '{"a":"x","b":1}', '{"a":"X","b"', '{"a":1}', None]
    result = evaluate_predictions(Task.model_validate(config), rows, answers)
    assert [row.score for row in result.rows] == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert [row.prediction for row in result.rows] == ['{"a":"X","b":1}', '{"a":"x","b":1}', None, None, None]
    assert result.unparsed == 3
