"""What every row of METRICS must do, so that a new metric brings its tests."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tests.core.plain_statistics import bca_cluster_bootstrap

from bedplate.core.statistics.clusters import effective_n_bound
from bedplate.data.splits import row_hash
from bedplate.evaluation.evaluated import compare
from bedplate.evaluation.examples import Example
from bedplate.evaluation.harness import Evaluation, evaluate_predictions
from bedplate.evaluation.metrics import METRICS
from bedplate.evaluation.task import OUTPUT_KINDS, Task

LABELS = ("1", "2", "3")
OUTPUTS = {
    "label": {"kind": "label", "labels": LABELS},
    "labels": {"kind": "labels", "labels": LABELS},
    "text": {"kind": "text"},
    "json": {"kind": "json", "json_schema": {"type": "object"}},
    "embedding": {"kind": "embedding", "documents": {"source": "documents.jsonl"}},
}
# three answers of which no two have anything in common
ANSWERS = {
    "label": LABELS,
    "labels": ('["1"]', '["2"]', '["3"]'),
    "text": ("red stone wall", "big old tree", "cup of milk"),
    "json": ('{"n":1,"s":"red"}', '{"n":2,"s":"old"}', '{"n":3,"s":"cup"}'),
    "embedding": ('["a"]', '["b"]', '["c"]'),
}


def task(metric: str, output_type: str) -> Task:
    return Task.model_validate(
        {
            "task": "t",
            "inputs": {"x": {"column": "x"}},
            "output": OUTPUTS[output_type],
            "data": {"source": "x.csv", "target": "y", "split": {"train": 0.6, "valid": 0.2, "test": 0.2}},
            "metric": metric,
        }
    )


def examples(output_type: str, n: int = 240, groups: int = 48) -> list[Example]:
    columns = [({"x": f"row {i}"}, ANSWERS[output_type][i % 3], f"g{i % groups}") for i in range(n)]
    return [Example(str(i), x, y, g, row_hash(x)) for i, (x, y, g) in enumerate(columns)]


CASES = [(name, output_type) for name, metric in METRICS.items() for output_type in metric.outputs]


def test_every_output_kind_has_a_metric() -> None:
    assert {output_type for metric in METRICS.values() for output_type in metric.outputs} == set(OUTPUT_KINDS)
    assert all(name == metric.name for name, metric in METRICS.items())


@pytest.mark.parametrize(("name", "output_type"), CASES)
def test_all_right_is_one_and_all_wrong_is_zero(name: str, output_type: str) -> None:
    rows = examples(output_type)
    right = evaluate_predictions(task(name, output_type), rows, [e.target for e in rows])
    assert right.estimate == pytest.approx(1.0)
    assert right.lower_bound is not None
    assert right.lower_bound < 0.96
    wrong = [ANSWERS[output_type][(i + 1) % 3] for i in range(len(rows))]
    estimate = evaluate_predictions(task(name, output_type), rows, wrong).estimate
    assert estimate == 0.0 if name != "chrf" else estimate < 0.2  # single letters are always shared
    nothing = evaluate_predictions(task(name, output_type), rows, [None] * len(rows))
    assert (nothing.estimate, nothing.unparsed) == (0.0, len(rows))


@pytest.mark.parametrize(("name", "output_type"), CASES)
def test_bounds_order_and_comparison(name: str, output_type: str) -> None:
    rng = np.random.default_rng(0)
    rows = examples(output_type)
    answers = [e.target if rng.random() < 0.8 else ANSWERS[output_type][rng.integers(3)] for e in rows]
    result = evaluate_predictions(task(name, output_type), rows, answers)
    assert 0 < result.bound(0.99) < result.bound(0.9) < result.estimate < result.bound(0.9, "upper") < 1
    order = rng.permutation(len(rows))
    moved = evaluate_predictions(task(name, output_type), [rows[i] for i in order], [answers[i] for i in order])
    assert moved.estimate == pytest.approx(result.estimate)
    assert moved.split_hash == result.split_hash
    assert compare(result, moved).difference == pytest.approx(0.0)
    assert all(0 <= row.score <= 1 for row in result.rows)
    assert Evaluation.from_json(json.loads(json.dumps(result.to_json(), allow_nan=False))) == result


@pytest.mark.parametrize(("name", "output_type"), CASES)
def test_rows_score_only_what_is_declared(name: str, output_type: str) -> None:
    """Half right is neither 0 nor 1 for a metric of real scores, and never so for the others."""
    halves = {
        "label": ("1", "2"),
        "labels": ('["1","2"]', '["2","3"]'),
        "text": ("big old red tree", "big old green house"),
        "json": ('{"n":1,"s":"red"}', '{"n":1,"s":"old"}'),
        "embedding": ('["a","c"]', '["a","b"]' if name.startswith("recall") else '["b","c"]'),
    }
    target, prediction = halves[output_type]
    score = METRICS[name].row(target, prediction)
    assert 0 < score < 1 if METRICS[name].real else score == 0.0


def test_the_declared_kind_decides_the_bound_not_the_values() -> None:
    rows = examples("json")
    answers = [e.target if i % 4 else ANSWERS["json"][(i + 1) % 3] for i, e in enumerate(rows)]
    match, fields = (evaluate_predictions(task(name, "json"), rows, answers) for name in ("json_match", "json_fields"))
    assert [row.score for row in match.rows] == [row.score for row in fields.rows]
    groups = [e.group for e in rows]
    scores = np.array([row.score for row in match.rows])
    assert match.bound(0.95) == effective_n_bound(scores, groups, 0.95).value
    assert fields.bound(0.95) == bca_cluster_bootstrap(lambda r: float(scores[r].mean()), groups, 0.95).lower
    independent = [Example(e.id, e.inputs, e.target, e.row_hash, e.row_hash) for e in rows]
    tests = {
        name: compare(
            *(evaluate_predictions(task(name, "json"), independent, x) for x in (answers, answers[::-1]))
        ).test
        for name in ("json_match", "json_fields")
    }
    assert tests == {"json_match": "mcnemar_exact", "json_fields": "sign_flip"}
