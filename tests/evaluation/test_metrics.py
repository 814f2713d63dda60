"""What every row of METRICS must do, so that a new metric brings its tests."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bedplate.data.splits import row_hash
from bedplate.evaluation.harness import compare, evaluate_predictions
from bedplate.evaluation.metrics import METRICS
from bedplate.evaluation.task import OUTPUT_KINDS, Example, Task

LABELS = ("1", "2", "3")  # which are texts, labels and JSON
OUTPUTS = {
    "label": {"kind": "label", "labels": LABELS},
    "text": {"kind": "text"},
    "json": {"kind": "json", "json_schema": {"type": "integer"}},
}


def task(metric: str, kind: str) -> Task:
    return Task.model_validate(
        {
            "task": "t",
            "inputs": {"x": {"column": "x"}},
            "output": OUTPUTS[kind],
            "data": {"source": "x.csv", "target": "y", "split": {"train": 0.6, "valid": 0.2, "test": 0.2}},
            "metric": metric,
        }
    )


def examples(n: int = 240, groups: int = 48) -> list[Example]:
    made = [({"x": f"row {i}"}, LABELS[i % 3], f"g{i % groups}") for i in range(n)]
    return [Example(str(i), x, y, g, row_hash(x)) for i, (x, y, g) in enumerate(made)]


CASES = [(name, kind) for name, metric in METRICS.items() for kind in metric.outputs]


def test_every_output_kind_has_a_metric() -> None:
    assert {kind for metric in METRICS.values() for kind in metric.outputs} == set(OUTPUT_KINDS)
    assert all(name == metric.name for name, metric in METRICS.items())


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_all_right_is_one_and_all_wrong_is_zero(name: str, kind: str) -> None:
    rows = examples()
    wrong = dict(zip(LABELS, [*LABELS[1:], LABELS[0]], strict=True))
    assert evaluate_predictions(task(name, kind), rows, [e.target for e in rows]).estimate == 1.0
    assert evaluate_predictions(task(name, kind), rows, [wrong[e.target] for e in rows]).estimate == 0.0
    nothing = evaluate_predictions(task(name, kind), rows, [None] * len(rows))
    assert (nothing.estimate, nothing.unparsed) == (0.0, len(rows))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_bounds_order_and_comparison(name: str, kind: str) -> None:
    rng = np.random.default_rng(0)
    rows = examples()
    answers = [e.target if rng.random() < 0.8 else LABELS[rng.integers(3)] for e in rows]
    result = evaluate_predictions(task(name, kind), rows, answers)
    assert 0 < result.bound(0.99) < result.bound(0.9) < result.estimate < result.bound(0.9, "upper") < 1
    order = rng.permutation(len(rows))
    moved = evaluate_predictions(task(name, kind), [rows[i] for i in order], [answers[i] for i in order])
    assert moved.estimate == pytest.approx(result.estimate)
    assert moved.split_hash == result.split_hash
    assert compare(result, moved).difference == pytest.approx(0.0)
    assert {row.score for row in result.rows} == {0.0, 1.0}
    json.dumps(result.to_json(), allow_nan=False)
