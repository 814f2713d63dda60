"""Costs as a metric: what rows cost by hand, what is refused, and how numbers are said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix
from tests.evaluation.test_metrics_custom import examples, write

from bedplate.core.errors import ConfigError, DataError
from bedplate.evaluation.costs import Scale
from bedplate.evaluation.harness import evaluate_predictions
from bedplate.evaluation.task import load_task

LABELS = {"kind": "label", "labels": ["ham", "spam"]}
COSTS = {"ham": {"spam": 5.0}, "spam": {"ham": 0.4}}
DEAR = """
    def usd(target, prediction):
        return abs(len(target) - len(prediction)) * 2
"""


def test_a_matrix_costs_what_its_confusions_cost(tmp_path: Path) -> None:
    task = load_task(write(tmp_path, {"costs": COSTS}, LABELS))
    rng = np.random.default_rng(0)
    targets, predictions = (rng.choice(["ham", "spam"], 300, p=[0.7, 0.3]) for _ in range(2))
    evaluation = evaluate_predictions(task, examples(*targets), [str(label) for label in predictions])
    by_hand = (confusion_matrix(targets, predictions, labels=["ham", "spam"]) * [[0, 5.0], [0.4, 0]]).sum() / 300
    assert evaluation.scale.value(evaluation.estimate) == pytest.approx(by_hand)
    assert evaluation.scoring == "real"
    assert evaluation.metric.startswith("usd_per_call (")
    low, high = evaluation.scale.ends(*evaluation.interval)
    assert 0 <= low < by_hand < high <= 5.0
    assert f"${by_hand:.4f} (${low:.4f} to ${high:.4f})" in repr(evaluation)


def test_what_cannot_be_used_costs_the_worst_of_its_row_and_abstaining_what_it_is_said_to(tmp_path: Path) -> None:
    output: dict[str, Any] = {**LABELS, "abstain": {"coverage": 0.5, "answer": "ask"}}
    costs = {"ham": {"spam": 5.0, "ask": 0.2}, "spam": {"ham": 0.4, "ask": 0.1}}
    task = load_task(write(tmp_path, {"costs": costs}, output))
    evaluation = evaluate_predictions(
        task, examples("ham", "spam", "ham", "spam", "ham"), [None, None, "ask", "ask", "ham"]
    )
    assert [round(5 * (1 - row.score), 9) for row in evaluation.rows] == [5.0, 0.4, 0.2, 0.1, 0.0]


def test_a_function_costs_what_it_says(tmp_path: Path) -> None:
    metric = {"cost": "dear.py:usd", "worst_usd": 8}
    task = load_task(write(tmp_path, metric, dear=DEAR))
    evaluation = evaluate_predictions(task, examples("aa", "aaa", "a"), ["a", "aaa", None])
    assert [8 * (1 - row.score) for row in evaluation.rows] == [2.0, 0.0, 8.0]
    with pytest.raises(DataError, match=r"is 18\.0 for row row-0; it must lie in 0 to worst_usd, \$8"):
        evaluate_predictions(task, examples("a"), ["a" * 10])


@pytest.mark.parametrize(
    ("metric", "output", "message"),
    [
        ({"costs": {"ham": {"spam": 5.0}}}, LABELS, "say what it costs to answer 'ham' where 'spam' is right"),
        ({"costs": {**COSTS, "eggs": {"ham": 1.0}}}, LABELS, "'eggs' is no answer of this task"),
        ({"costs": {"ham": {"spam": 0.0}, "spam": {"ham": 0.0}}}, LABELS, "every answer costs nothing"),
        ({"costs": COSTS}, {"kind": "text"}, "costs by label are for outputs of kind label"),
        ({"cost": "dear.py:usd"}, {"kind": "text"}, "`cost` and `worst_usd`"),
        ({"costs": COSTS, "cost": "dear.py:usd", "worst_usd": 1}, LABELS, "give one of"),
        ({"costs": {"ham": {"spam": -1.0}, "spam": {"ham": 1.0}}}, LABELS, "greater than or equal to 0"),
    ],
)
def test_costs_that_say_too_little_are_refused(
    tmp_path: Path, metric: dict[str, Any], output: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_task(write(tmp_path, metric, output, dear=DEAR))


def test_other_costs_are_another_metric(tmp_path: Path) -> None:
    names: set[str] = set()
    for dear in (5.0, 6.0):
        names.add(load_task(write(tmp_path, {"costs": {**COSTS, "ham": {"spam": dear}}}, LABELS)).metric_name)
    assert len(names) == 2


def test_a_scale_turns_scores_and_their_bounds_around() -> None:
    scale = Scale(4.0)
    assert (scale.value(0.75), scale.score(1.0), scale.difference(0.25)) == (1.0, 0.75, -1.0)
    assert scale.ends(0.5, 0.75) == (1.0, 2.0)
    assert (scale.format_score(0.75), scale.bar(0.75), scale.lower_phrase) == ("$1.0000", "$1", "at most")
    assert [Scale(20.0).bar(1 - usd / 20) for usd in (0.05, 0.0123, 1 / 3)] == ["$0.05", "$0.0123", "$0.3333"]
    plain = Scale()
    assert [plain.bar(share) for share in (0.8, 0.99995, 0.883765690376569)] == ["0.8", "0.99995", "0.8838"]
    assert (plain.value(0.75), plain.ends(0.5, 0.75), plain.format_score(0.75)) == (0.75, (0.5, 0.75), "0.750")
