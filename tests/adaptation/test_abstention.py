"""Abstention: where the threshold lies, what the metrics make of it, and that the skin on disk abstains as reported."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.adaptation.conftest import write_task
from tests.adaptation.test_bases import endpoint
from tests.inference.fake_labeller import Labeller
from tests.inference.fake_server import fake_server

from bedplate.adaptation.ladder import adapt
from bedplate.adaptation.search.run_rung import threshold
from bedplate.core.errors import ConfigError
from bedplate.evaluation.evaluated import compare
from bedplate.evaluation.examples import Example, load_examples
from bedplate.evaluation.harness import evaluate_predictions
from bedplate.evaluation.task import AbstainSpec, Task, load_task
from bedplate.inference.predict.loaded import load
from bedplate.inference.predict.predictor import Prediction
from bedplate.inference.predict.skin_bases import LoadedSkin
from bedplate.skins.output import Abstain, LabelOutput


def task_of(metric: str = "accuracy", **abstain: object) -> Task:
    return Task.model_validate(
        {
            "task": "t",
            "inputs": {"x": {"column": "x"}},
            "output": {"kind": "label", "labels": ["no", "yes"], "abstain": abstain or {"coverage": 0.5}},
            "data": {"source": "d", "target": "y", "split": {"train": 0.6, "valid": 0.2, "test": 0.2}},
            "metric": metric,
        }
    )


def examples(n: int) -> list[Example]:
    return [Example(str(i), {"x": str(i)}, "yes", str(i), str(i)) for i in range(n)]


@given(st.lists(st.floats(0.5, 1.0), min_size=1, max_size=40), st.floats(0.01, 0.99))
def test_the_threshold_keeps_the_coverage_and_no_more_than_ties(sure: list[float], coverage: float):
    cutoff = threshold(AbstainSpec(coverage=coverage), sure)
    answered = sum(confidence >= cutoff for confidence in sure)
    assert answered >= coverage * len(sure) - 1e-6
    assert sum(confidence > cutoff for confidence in sure) < coverage * len(sure) + 1e-6
    assert threshold(AbstainSpec(min_confidence=0.7), sure) == 0.7


def test_accuracy_counts_it_as_wrong_and_selective_accuracy_leaves_it_out():
    answers = ["yes"] * 6 + ["no"] * 2 + ["abstain"] * 3 + [None]
    whole = evaluate_predictions(task_of(), examples(12), answers)
    chosen = evaluate_predictions(task_of("selective_accuracy"), examples(12), answers)
    assert whole.estimate == 6 / 12
    assert chosen.estimate == 6 / 9  # what could not be read is no abstention
    for evaluation in (whole, chosen):
        assert evaluation.coverage == 9 / 12
        assert evaluation.answered == 6 / 9
        assert evaluation.unparsed == 1
    restored = type(chosen).from_json(json.loads(json.dumps(chosen.to_json())))
    assert restored == chosen
    none = evaluate_predictions(task_of("selective_accuracy"), examples(4), ["abstain"] * 4)
    assert (none.estimate, none.coverage, none.answered) == (0.0, 0.0, None)
    plain = task_of().model_copy(update={"output": task_of().output.model_copy(update={"abstain": None})})
    assert evaluate_predictions(plain, examples(2), ["abstain", "yes"]).unparsed == 1  # the task knows no such answer


def test_the_ratio_is_bounded_and_compared_as_a_ratio():
    """Against the delta method for a ratio of means, and a paired difference that is exact by hand."""
    rng = np.random.default_rng(0)
    n = 600
    answered, right = rng.random(n) < 0.7, rng.random(n) < 0.9
    answers = [("yes" if r else "no") if a else "abstain" for a, r in zip(answered, right, strict=True)]
    evaluation = evaluate_predictions(task_of("selective_accuracy"), examples(n), answers)
    p, share = right[answered].mean(), answered.mean()
    residual = np.where(answered, right - p, 0.0)
    error = math.sqrt(residual.var(ddof=1) / n) / share
    assert evaluation.estimate == pytest.approx(p)
    assert evaluation.lower_bound == pytest.approx(p - 1.645 * error, abs=0.4 * error)
    bold = evaluate_predictions(task_of("selective_accuracy"), examples(n), ["yes" if r else "no" for r in right])
    pair = compare(evaluation, bold)
    assert pair.difference == pytest.approx(p - right.mean())
    assert pair.interval[0] < pair.difference < pair.interval[1]


def test_an_output_abstains_below_its_probability():
    output = LabelOutput(labels=("a", "b"), abstain=Abstain(below=0.8, answer="ask a person"))
    assert output.read_scores([0.0, math.log(4.1)])[0] == "b"
    label, scores = output.read_scores([0.0, math.log(3.9)])
    assert label == "ask a person"
    assert math.exp(scores["b"]) == pytest.approx(3.9 / 4.9)
    with pytest.raises(ValueError, match="'a' is a label"):
        LabelOutput(labels=("a", "b"), abstain=Abstain(below=0.8, answer="a"))
    assert "abstain" not in LabelOutput(labels=("a", "b")).model_dump(mode="json")
    assert LabelOutput.model_validate(output.model_dump(mode="json")) == output


@pytest.mark.parametrize(
    ("abstain", "message"),
    [
        ({}, "give either `min_confidence` or `coverage`"),
        ({"coverage": 0.5, "min_confidence": 0.5}, "give either"),
        ({"coverage": 1.0}, "coverage"),
        ({"min_confidence": 0.9, "answer": "positive"}, "'positive' is a label"),
        ({"confidence": 0.9}, "confidence"),
    ],
)
def test_what_cannot_be_is_named(toy_task: Path, abstain: dict, message: str):
    values = yaml.safe_load(toy_task.read_text())
    values["output"]["abstain"] = abstain
    toy_task.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=message):
        load_task(toy_task)


def test_it_belongs_to_labels_and_leaves_other_hashes_alone(toy_task: Path):
    before = load_task(toy_task).hash
    with pytest.raises(ConfigError, match="`abstain` belongs to outputs of kind label"):
        load_task(toy_task, ["output={kind: text, abstain: {coverage: 0.5}}", "metric=exact_match"])
    assert load_task(toy_task, ["output.abstain=null"]).hash == before
    assert load_task(toy_task, ["output.abstain={coverage: 0.5}"]).hash != before


def test_skins_of_the_ladder_abstain_as_reported(tiny_base: Path, tmp_path: Path):
    task = write_task(tmp_path / "task", tiny_base, groups=60)
    overrides = ["output.abstain={coverage: 0.6}", "metric=selective_accuracy"]
    report = adapt(task, tmp_path / "out", rungs=["majority", "zero_shot", "few_shot", "probe"], overrides=overrides)
    valid = load_examples(load_task(task)).valid
    for name in ("zero_shot", "few_shot", "probe"):
        row = report.row(name)
        assert row["status"] == "done", row["reason"]
        rows = report.data["rows"]["valid"][name]
        answered = [reported for reported in rows if reported["prediction"] != "abstain"]
        assert len(answered) / len(rows) == pytest.approx(row["coverage"])
        assert row["coverage"] == pytest.approx(math.ceil(0.6 * len(rows)) / len(rows), abs=0.02)
        assert row["estimate"] == pytest.approx(
            np.mean([reported["target"] == reported["prediction"] for reported in answered])
        )
        assert row["answered"] == row["estimate"]
        assert "abstains below" in row["reason"]
        with load(tmp_path / "out" / row["skin"]) as skin:
            assert isinstance(skin, LoadedSkin)
            answers: list[Prediction] = skin.predict([e.inputs for e in valid])
        agree = [a.output == reported["prediction"] for a, reported in zip(answers, rows, strict=True)]
        assert sum(agree) >= len(agree) - 1  # at the threshold itself, last bits may decide
    assert report.row("majority")["coverage"] == 1.0
    tested = [row for row in report.rungs if row["split"] == "test" and row["rung"] == "probe"]
    assert all(0 < row["coverage"] < 1 for row in tested)
    rerun = adapt(task, tmp_path / "out", rungs=["majority", "zero_shot", "few_shot", "probe"], overrides=overrides)
    assert rerun.data["rungs"] == report.data["rungs"]


def test_a_hosted_skin_abstains_as_reported(toy_task: Path, tmp_path: Path):
    with fake_server(Labeller(sure=lambda message: 0.1 + 0.8 * random.Random(message).random())) as server:
        values = yaml.safe_load(toy_task.read_text())
        values["adapt"] |= {"hosted": [endpoint(server)], "rungs": ["majority", "hosted"]}
        toy_task.write_text(yaml.safe_dump(values))
        report = adapt(toy_task, tmp_path / "out", overrides=["output.abstain={coverage: 0.6}"])
        valid = load_examples(load_task(toy_task)).valid
        row, rows = report.row("hosted"), report.data["rows"]["valid"]["hosted"]
        with load(tmp_path / "out" / row["skin"]) as skin:
            answers = skin.predict([e.inputs for e in valid])  # type: ignore[union-attr]
    assert row["coverage"] == pytest.approx(math.ceil(0.6 * len(rows)) / len(rows))
    assert sum(reported["prediction"] != "abstain" for reported in rows) == round(row["coverage"] * len(rows))
    agree = [a.output == reported["prediction"] for a, reported in zip(answers, rows, strict=True)]
    assert sum(agree) >= len(agree) - 1  # at the threshold itself, last bits may decide
    assert 0 < report.row("hosted", "test")["coverage"] < 1


def test_a_probability_that_the_task_gives(toy_task: Path, tmp_path: Path):
    report = adapt(
        toy_task, tmp_path / "out", rungs=["probe"], overrides=["output.abstain={min_confidence: 0.9, answer: unsure}"]
    )
    for row in report.data["rows"]["valid"]["probe"]:
        sure = max(math.exp(score) for score in row["scores"].values())
        assert (row["prediction"] == "unsure") == (sure < 0.9)
    assert report.data["details"]["probe"]["abstains_below"] == 0.9
