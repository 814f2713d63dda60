"""A suite run from the command line: the measures are those that the items' grades say, and wrong words one line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats
from tests.tiny import write_tiny_base

from bedplate.cli.main import main
from bedplate.evaluation.suites import SUITES
from bedplate.evaluation.suites.general_text import GeneralText, text_items
from bedplate.evaluation.suites.question_sets import Question, accuracies
from bedplate.evaluation.suites.suite import SampleSet, grades
from bedplate.inference.predict.local import LocalModel
from bedplate.models.checkpoints.base import load_base


def questions(limit: int | None = None) -> SampleSet[Question]:
    samples = [
        Question(f"q{i}", "toy", f"number {i} is", (f"great {i}", f"terrible {i * 3}"), i % 2, f"g{i // 2}")
        for i in range(120)
    ]
    return SampleSet(tuple(samples[:limit]), "this test", "0" * 64, 3, accuracies)


def texts(limit: int | None = None) -> SampleSet[GeneralText]:
    rows = [f"the product number {i} is {'very ' * (i % 5)}great" for i in range(60)]
    rate = text_items.__globals__["_rate"]
    return SampleSet(tuple(GeneralText(f"d{i}", row) for i, row in enumerate(rows[:limit])), "here", "1" * 64, 0, rate)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", *arguments])
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(SUITES, "toy", questions)  # type: ignore[arg-type]
    monkeypatch.setitem(SUITES, "toy-text", texts)  # type: ignore[arg-type]
    return write_tiny_base(tmp_path / "tiny", seed=3)


def test_measures_are_means_and_rates_of_the_grades_with_clustered_intervals(
    tiny: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ("--dtype", "float32", "--weights", "float32", "--kernel", "torch")
    out = tmp_path / "suites.json"
    code, printed, _ = run(
        capsys, str(tiny), "--suite", "toy", "--suite", "toy-text", "--json", "--out", str(out), *options
    )
    assert code == 0
    report = json.loads(printed)
    assert report == json.loads(out.read_text("utf-8"))
    assert (report["weights"], report["suites"]["toy"]["unusable"]) == ("float32", 3)
    with LocalModel(load_base(tiny, dtype="float32")) as model:
        right = [grade.acc for grade in grades(model, questions().samples, "toy")]
        losses = list(grades(model, texts().samples, "text"))
    acc = report["suites"]["toy"]["measures"]["acc"]
    groups = np.repeat(np.arange(60), 2)
    fit = sm.OLS(right, np.ones(120)).fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)
    assert (acc["value"], acc["n"], acc["groups"]) == (pytest.approx(np.mean(right)), 120, 60)
    below, upper = ends(np.bincount(groups, weights=fit.resid), fit.bse[0], 59)
    unseen = 1 - 0.025 ** (1 / 60)  # never nearer than what groups that were not seen could hide
    assert acc["interval"] == pytest.approx([np.mean(right) - max(below, unseen), np.mean(right) + max(upper, unseen)])
    loss = report["suites"]["toy-text"]["measures"]["nats_per_token"]
    rates, tokens = [grade.total / grade.tokens for grade in losses], [grade.tokens for grade in losses]
    weighted = sm.WLS(rates, np.ones(60), weights=np.array(tokens)).fit(
        cov_type="cluster", cov_kwds={"groups": np.arange(60)}, use_t=True
    )
    assert loss["value"] == pytest.approx(weighted.params[0])
    # documents of unequal lengths: CR2's weights, and what a variance with them is expected to be, by matrices
    share = np.array(tokens) / sum(tokens)
    sums = weighted.resid * tokens
    residual_maker = np.eye(60) - np.outer(share, np.ones(60))
    product = residual_maker.T @ np.diag(1 / (1 - share)) @ residual_maker @ np.diag(np.array(tokens, float) ** 2)
    variance = (sums**2 / (1 - share)).sum() * (np.array(tokens) ** 2).sum() / np.trace(product)
    freedom = np.trace(product) ** 2 / np.trace(product @ product)
    below, upper = ends(sums, np.sqrt(variance) / sum(tokens), freedom)
    assert loss["interval"] == pytest.approx([loss["value"] - below, loss["value"] + upper])
    assert loss["interval"] == pytest.approx(weighted.conf_int()[0], rel=0.02)
    assert loss["value"] == pytest.approx(math.log(model.base.spec.vocab_size), rel=0.5)


def ends(sums: np.ndarray, se: float, freedom: float) -> tuple[float, float]:
    """How far both ends of a 95% interval are off: t, further out on the side to which the sums of groups lean."""
    quantile = stats.t.ppf(0.975, freedom)
    lean = (sums**3).sum() / (sums**2).sum() ** 1.5 * (2 * quantile**2 + 1) / 6
    return max(quantile, quantile - lean) * se, max(quantile, quantile + lean) * se


def test_a_table_for_people_and_one_line_for_wrong_words(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed, _ = run(capsys, str(tiny), "--suite", "toy", "--suite", "refusals", "--limit", "5")
    assert code == 0
    rows = [line.split() for line in printed.splitlines()]
    assert [row[:2] for row in rows[1:]] == [
        *(["toy", name] for name in ("acc_norm", "acc", "acc_bytes")),
        ["refusals", "refused"],
        ["refusals", "harmless_refused"],
    ]
    assert {row[-2] for row in rows[1:]} == {"5"}
    wrong = {
        ("--suite", "toys"): "there is no suite 'toys'; did you mean 'toy'",
        ("task.yaml", "--suite", "toy"): "--suite takes a base",
        ("--suite", "toy", "--split", "test"): "--suite takes a base",
        ("task.yaml", "--limit", "5"): "give a task file or new rows beside the skin",
        (): "give a task file or new rows beside the skin",
    }
    for arguments, message in wrong.items():
        code, _, error = run(capsys, str(tiny), *arguments)
        assert (code, message in error) == (2, True), error
