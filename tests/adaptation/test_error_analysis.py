"""The skin seen close, and the data card, from evaluations alone."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix
from tests.adaptation.conftest import write_task

from bedplate.adaptation.report.data_card import SHOWN_DISAGREEING, SHOWN_WRONG, data_card, examples, focus, suspects
from bedplate.core.statistics.clusters import effective_n_interval
from bedplate.evaluation.examples import Example
from bedplate.evaluation.harness import Evaluation, evaluate_predictions
from bedplate.evaluation.slices import calibration, confusion
from bedplate.evaluation.task import Task, load_task
from bedplate.inference.predict.predictor import Prediction

LABELS = ("negative", "positive")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return load_task(write_task(tmp_path_factory.mktemp("task"), Path("no-base")))


def rows(targets: list[str]) -> list[Example]:
    return [Example(f"r{i}", {"review": "x" * (i + 1)}, t, f"g{i // 2}", f"{i:064x}") for i, t in enumerate(targets)]


def answered(task: Task, gold_examples: list[Example], positive: list[float | None]) -> Evaluation:
    """Answers by the probability of `positive`; None: nothing usable."""
    predictions = [
        None
        if p is None
        else Prediction(LABELS[p > 0.5], "", {"negative": math.log(1 - p + 1e-12), "positive": math.log(p + 1e-12)})
        for p in positive
    ]
    return evaluate_predictions(task, gold_examples, predictions)


def test_confusion_equals_scikit_learns_and_counts_what_was_unusable(task: Task):
    rng = np.random.default_rng(0)
    gold_examples = rows(list(rng.choice(LABELS, 60)))
    evaluation = answered(task, gold_examples, [None if i % 20 == 7 else float(rng.random()) for i in range(60)])
    matrix = confusion(evaluation)
    assert matrix is not None
    predictions = ["unusable" if row.prediction is None else row.prediction for row in evaluation.rows]
    oracle = confusion_matrix([e.target for e in gold_examples], predictions, labels=[*LABELS, "unusable"])
    assert np.array(matrix.counts).tolist() == oracle[:2].tolist()
    assert sum(map(sum, matrix.counts)) == 60
    text = evaluate_predictions(task, gold_examples, [row.target for row in evaluation.rows])
    assert focus("x", "valid", text).calibration is None


def test_bins_of_calibration_have_the_clustered_interval_of_their_rows(task: Task):
    rng = np.random.default_rng(1)
    gold_examples = rows(list(rng.choice(LABELS, 120)))
    evaluation = answered(task, gold_examples, [float(p) for p in rng.random(120)])
    reliability = calibration(evaluation, bins=4)
    assert reliability is not None
    assert reliability.of == 4
    for part in reliability.bins:
        sure = [max(math.exp(score) for score in (row.scores or {}).values()) for row in evaluation.rows]
        inside = [row for row, p in zip(evaluation.rows, sure, strict=True) if part.low < p <= part.high]
        right = [float(r.prediction == r.target) for r in inside]
        assert part.n == len(inside)
        oracle = effective_n_interval(right, [r.group for r in inside], 0.95, minimum_groups=2)
        assert part.interval == pytest.approx(oracle)


def test_suspects_are_rows_that_rungs_agree_against_surely(task: Task):
    gold_examples = rows(["negative"] * 5)
    first = answered(task, gold_examples, [0.99, 0.99, 0.70, 0.95, 0.9])
    second = answered(task, gold_examples, [0.97, 0.60, 0.99, 0.90, 0.9])
    third = answered(task, gold_examples, [0.10, 0.99, 0.99, 0.90, None])
    suspect_rows = suspects(gold_examples, {"a": first, "b": second, "c": third})
    # r0: the third is sure of the row's own label; the others have two or three sure rungs
    assert [(suspect.id, suspect.rungs) for suspect in suspect_rows] == [
        ("r3", ("a", "b", "c")),
        ("r1", ("a", "c")),
        ("r2", ("b", "c")),
        ("r4", ("a", "b")),
    ]
    assert suspect_rows[0].answer == "positive"
    assert suspect_rows[0].confidence == pytest.approx((0.95 + 0.9 + 0.9) / 3)
    card = data_card(LABELS, gold_examples, gold_examples, {"a": first, "b": second}, None)
    assert card.labels == {split: {"negative": 5, "positive": 0} for split in ("train", "valid")}
    assert card.lengths["valid"].deciles[0] == 1
    assert card.lengths["valid"].deciles[-1] == 5
    assert data_card((), gold_examples, gold_examples, {}, None).labels is None


def test_shown_rows_are_each_shown_once_the_surest_mistakes_first(task: Task):
    gold_examples = rows(["negative"] * 60)
    judged = answered(task, gold_examples, [0.999 - 0.01 * i if i < 20 else 0.1 for i in range(60)])
    rival = answered(task, gold_examples, [0.9 if i % 2 else 0.1 for i in range(60)])
    shown_examples = examples(gold_examples, {"judged": judged, "other": rival}, "judged")
    shown = [(example.id, example.why) for example in shown_examples.rows]
    assert len({name for name, _ in shown}) == len(shown)
    assert [name for name, why in shown if why == "wrong"] == [f"r{i}" for i in range(SHOWN_WRONG)]
    split = {f"r{i}" for i in range(60) if (i < 20) != bool(i % 2)}
    assert shown_examples.disagreeing == len(split)
    disagreeing = [name for name, why in shown if why == "disagreement"]
    assert len(disagreeing) == SHOWN_DISAGREEING
    assert set(disagreeing) <= split
    assert all(example.scores["judged"] == 1 for example in shown_examples.rows if example.why == "right")
    nobody = examples(gold_examples, {"judged": judged, "other": rival}, None)
    assert {example.why for example in nobody.rows} == {"disagreement"}
    alone = examples(gold_examples, {"judged": judged}, "judged")
    assert alone.disagreeing == 0
