"""The whole ladder on a tiny random base: what it writes, that it goes on, and that what it says can be recomputed."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression
from tests import formulas, recomputed
from tests.adaptation.conftest import use_one_seed, write_rows, write_task
from tests.homes import new_home

from bedplate.adaptation.context.outcome import RungPlan
from bedplate.adaptation.context.throughput import Throughput
from bedplate.adaptation.ladder import adapt
from bedplate.adaptation.report.report import Report
from bedplate.adaptation.rungs import RUNGS
from bedplate.adaptation.rungs.answers import fit_bias, with_bias
from bedplate.adaptation.rungs.linear_head import AnyOf, OneOf, fit_head
from bedplate.adaptation.rungs.lora import DORA
from bedplate.adaptation.rungs.soft_prompt import SOFT_PROMPT
from bedplate.adaptation.rungs.successive_halving import HalvingStage, row_cost, stages_for
from bedplate.adaptation.search.start import LOCK_FILE
from bedplate.adaptation.task.task_file import load_adapt_task
from bedplate.core.errors import ConfigError, DataError, TrainingError, UsageError
from bedplate.core.files import file_lock, read_jsonl
from bedplate.evaluation.examples import load_examples
from bedplate.evaluation.ledger import TestLedger
from bedplate.evaluation.task import load_task
from bedplate.inference.predict.classical import ClassicalPredictor
from bedplate.inference.predict.loaded import load
from bedplate.inference.predict.predictor import Prediction
from bedplate.inference.predict.skin_bases import LoadedSkin
from bedplate.report import plots
from bedplate.skins.catalog import Catalog
from bedplate.skins.files import read_identified
from bedplate.skins.lineage import trace
from bedplate.skins.output import LabelOutput

OTHERS = (
    "retrieval",
    "continued_pretrain",
    "hosted",
    "cascade",
    "knn_few_shot",
    "prompt_search",
    "dora",
    "soft_prompt",
)
ALONE = [name for name in RUNGS if name not in OTHERS]
"""Those others have tests of their own, because of what they need or how long they search."""
OWN_PROMPT = "Is this review good?\n{{ review }}\nIt is"


@pytest.fixture(scope="module", autouse=True)
def fewest_seeds() -> Iterator[None]:
    """Low-rank weights are chosen among those of three seeds."""
    with pytest.MonkeyPatch.context() as patch:
        use_one_seed(patch, DORA, SOFT_PROMPT)
        yield


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, quick_pictures: Callable[..., str]
) -> tuple[Report, Path, Path]:
    """One ladder of these rungs, its pictures drawn, shared by the tests that only look at it."""
    directory = tmp_path_factory.mktemp("ladder")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEDPLATE_HOME", str(new_home(directory / "home")))
        patch.setattr(plots, "svg_of", quick_pictures)
        task = write_task(directory, tiny_base, prompt=OWN_PROMPT)
        report = adapt(task, directory / "out", seed=0, rungs=ALONE)
    return report, directory, task


def test_its_numbers_follow_from_its_rows_without_the_project(run: tuple[Report, Path, Path]):
    """By a script that knows formulas only."""
    for written in (recomputed, formulas):
        assert not re.search(r"^\s*(import|from) bedplate", Path(str(written.__file__)).read_text(), re.MULTILINE)
    report = json.loads((run[1] / "out" / "report.json").read_text())
    figures = list(recomputed.recomputed(report))
    assert len(figures) > 60
    deviations = {figure: abs(reported - computed) for figure, reported, computed in figures}
    assert [
        figure
        for figure, deviation in deviations.items()
        if deviation > (2e-5 if "bound" in figure or "end" in figure else 1e-9)
    ] == []
    test = report["rows"]["test"]["from_scratch"]
    assert len({row["group"] for row in test}) < len(test)
    test[0]["score"] = 1 - test[0]["score"]
    assert any(abs(reported - computed) > 2e-5 for _, reported, computed in recomputed.recomputed(report))


def test_every_rung_has_a_valid_row_and_the_nominees_a_test_row(run: tuple[Report, Path, Path]):
    report = run[0]
    assert {row["rung"] for row in report.rungs if row["split"] == "valid"} == set(ALONE)
    assert {row["status"] for row in report.rungs} == {"done"}
    tested = {row["rung"] for row in report.rungs if row["split"] == "test"}
    assert tested >= {*report.data["nominees"]["nominees"], "zero_shot", "majority", "from_scratch"}
    for row in report.rungs:
        assert row["interval"][0] <= row["estimate"] <= row["interval"][1]
        assert 1 < row["groups"] <= row["n"]
        assert row["p95_ms"] >= row["p50_ms"] >= 0
    assert len(report.row("lora")["seeds"]) == 3
    assert set(report.data) >= {"task", "lineage", "verdict", "rungs"}
    assert report.verdict["status"] in {"PASS", "FAIL", "INSUFFICIENT_DATA"}


def test_the_report_can_be_recomputed_from_its_rows(run: tuple[Report, Path, Path]):
    data = json.loads((run[1] / "out" / "report.json").read_text())
    for row in data["rungs"]:
        scores = [answer["target"] == answer["prediction"] for answer in data["rows"][row["split"]][row["rung"]]]
        assert row["estimate"] == pytest.approx(np.mean(scores))
        assert row["n"] == len(scores)


def test_the_teams_own_prompt_is_kept_as_it_is(run: tuple[Report, Path, Path]):
    row = run[0].row("own_prompt")
    skin = read_identified(run[1] / "out" / row["skin"])[1]
    assert skin.prompt.template == OWN_PROMPT
    assert skin.demonstrations == ()


def test_without_a_prompt_of_its_own_the_rung_is_skipped_and_a_hint_helps(toy_task: Path, tmp_path: Path):
    report = adapt(toy_task, tmp_path / "out", rungs=["majority", "own_prompt"])
    assert (report.row("own_prompt")["status"], "adapt.prompt" in report.row("own_prompt")["reason"]) == (
        "skipped",
        True,
    )
    (toy_task.parent / "mine.jinja").write_text("{{ review }}")
    with pytest.raises(ConfigError, match=r"write prompt: \{file: mine.jinja\}"):
        adapt(toy_task, tmp_path / "other", overrides=["adapt.prompt=mine.jinja"])
    spec = load_adapt_task(toy_task, ["adapt.prompt={file: mine.jinja}"])[1]
    assert spec.prompt is not None
    assert spec.prompt.template == "{{ review }}"


def test_rows_are_priced_by_their_measured_seconds(run: tuple[Report, Path, Path]):
    for split, timed in run[0].data["rows"]["calls"].items():
        for name, seconds in timed.items():
            row = run[0].row(name, split)
            if not seconds:
                assert row["usd_per_1k_calls"] == 0  # a constant is not timed
                continue
            assert row["calls"] == len(seconds)
            assert row["usd_per_1k_calls"] == pytest.approx(np.mean(seconds) * 0.1 / 3600 * 1000)
            assert row["p95_ms"] == pytest.approx(1000 * sorted(seconds)[-(-95 * len(seconds) // 100) - 1])
            assert row["p50_ms"] == pytest.approx(1000 * sorted(seconds)[len(seconds) // 2])
            low, high = row["usd_interval"]
            assert low <= row["usd_per_1k_calls"] <= high
    for name, (limit,) in run[0].data["limits"].items():
        seconds = run[0].data["rows"]["calls"]["test"][name]
        level, least = limit["confidence"], np.ceil(np.log(1 - limit["confidence"]) / np.log(0.95))
        assert len(seconds) >= max(limit["worth"], least)  # more than the test rows
        if limit["worth"] == len(seconds):  # none follows the one before it more than by chance
            p95_upper = stats.quantile_test(seconds, p=0.95, alternative="less").confidence_interval(level).high
            assert limit["upper"] == pytest.approx(1000 * p95_upper)
        assert limit["holds"] is (True if limit["worth"] >= least else None)


def test_what_leaves_no_skin_is_never_nominated_and_test_is_opened_once(run: tuple[Report, Path, Path]):
    report, directory, _ = run
    assert set(ALONE) - set(report.data["nominees"]["reasons"]) == {"majority"}
    assert len(report.data["data"]["test_openings"]) == 1
    entries = read_jsonl(directory / "home" / "ledger" / "test-openings.jsonl")
    assert [opening["number"] for opening in entries] == [1]
    assert report.verdict["exploratory"] is False
    nomination = directory / "out" / "nomination.json"
    tested = directory / "out" / "test" / "zero_shot.json"
    assert nomination.stat().st_mtime_ns <= tested.stat().st_mtime_ns  # fixed on disk before test was opened
    timed_again = report.data["timing"]["latency"]
    assert set(report.data["nominees"]["nominees"]) <= timed_again.keys()
    saved = {path.stem for path in (directory / "out" / "latency").iterdir()}
    assert saved == timed_again.keys() - {"from_scratch"}  # which does not run on a base


def test_a_classical_model_learns_this_task_and_the_verdict_says_so(run: tuple[Report, Path, Path]):
    report = run[0]
    assert report.row("from_scratch", "test")["estimate"] > 0.85
    assert "from_scratch" in report.data["nominees"]["nominees"]
    judged = report.verdict["rung"] or report.data["nominees"]["primary"]
    assert ("classical model" in report.verdict["reason"]) == (judged != "from_scratch")


def test_exported_skins_give_the_reports_answers(run: tuple[Report, Path, Path]):
    report, directory, path = run
    for row in report.rungs:
        if row["split"] != "test" or row["skin"] is None:
            continue
        examples = load_examples(load_task(path)).test.open("compare")
        skin = load(directory / "out" / row["skin"])
        assert isinstance(skin, LoadedSkin | ClassicalPredictor)
        try:
            answers = skin.predict([e.inputs for e in examples], one_by_one=True)
        finally:
            skin.close()
        assert [a.output for a in answers] == [
            reported["prediction"] for reported in report.data["rows"]["test"][row["rung"]]
        ]


def own_copy(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the shared run and its home, for a test that adds to them: others look at what the run left, in any order."""
    for name in ("home", "out"):
        shutil.copytree(directory / name, tmp_path / name, symlinks=True)
    monkeypatch.setenv("BEDPLATE_HOME", str(tmp_path / "home"))
    return tmp_path / "out"


def test_the_same_command_reuses_everything_and_says_the_same(
    run: tuple[Report, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    report, directory, task = run
    out = own_copy(directory, tmp_path, monkeypatch)

    def refuse(*_: object) -> object:
        raise AssertionError("a finished rung was fitted again")

    for rung in RUNGS.values():
        monkeypatch.setattr(type(rung), "fit", refuse)
    rerun = adapt(task, out, seed=0, rungs=ALONE)
    for key in report.data:
        if key == "ledger":  # its notes are of the home, which is another one
            assert {**rerun.data[key], "notes": []} == {**report.data[key], "notes": []}
        elif key != "timing":
            assert rerun.data[key] == report.data[key], key
    assert len(read_jsonl(TestLedger().path)) == 1


def test_a_machine_that_is_busy_once_and_quiet_later_says_the_same(
    toy_task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What a measured limit left out stays out: another nominee would open test again, as a second verdict."""
    rungs = ["majority", "zero_shot", "few_shot"]

    def climb(call: float, **settings: object) -> Report:
        pace = Throughput(token=1e-6, call=call, tokens=10.0)
        monkeypatch.setattr("bedplate.adaptation.context.throughput.measure_throughput", lambda *_: pace)
        monkeypatch.setattr("bedplate.adaptation.context.throughput.call_seconds", lambda *_: [call])
        monkeypatch.setattr("bedplate.adaptation.context.throughput.load_average", lambda: 0.5)
        return adapt(toy_task, tmp_path / "out", rungs=rungs, overrides=[f"{k}={v}" for k, v in settings.items()])

    busy, quiet = climb(100.0), climb(0.001)
    assert busy.row("few_shot")["status"] == "skipped"
    assert "takes 100000 ms here (the least of 3 medians" in busy.row("few_shot")["reason"]
    for key in busy.data:
        if key != "timing":
            assert quiet.data[key] == busy.data[key], key
    openings = TestLedger().path
    assert [opening["number"] for opening in read_jsonl(openings)] == [1]
    relaxed = climb(0.001, **{"adapt.budget.p95_ms": 50_000})
    assert relaxed.row("few_shot")["status"] == "done", "another limit is another question"


def test_another_verdict_on_the_same_rows_is_exploratory(
    run: tuple[Report, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    _, directory, task = run
    own_copy(directory, tmp_path, monkeypatch)
    second_report = adapt(task, tmp_path / "other", rungs=["zero_shot"], overrides=["adapt.target.value=0.3"])
    assert second_report.verdict["exploratory"] is True
    assert second_report.verdict["reason"].startswith("EXPLORATORY")
    assert second_report.data["ledger"]["number"] == 2


def test_what_was_made_is_in_the_catalogue(run: tuple[Report, Path, Path], monkeypatch: pytest.MonkeyPatch):
    _, directory, _ = run
    monkeypatch.setenv("BEDPLATE_HOME", str(directory / "home"))
    with Catalog.open() as catalog:
        lineage = trace("toy-sentiment-lora", catalog)
    assert "base" in {node.what for root in lineage.came_from for node in root.walk()}
    assert "report" in {node.what for node in lineage.became}


def test_skins_carry_the_report_and_say_what_they_were_judged_with(run: tuple[Report, Path, Path]):
    report, directory, _ = run
    page = (directory / "out" / "report.html").read_bytes()
    exported = {row["rung"]: row["skin"] for row in report.rungs if row["skin"] is not None}
    assert {"zero_shot", "few_shot", "probe", "lora"} <= exported.keys()
    for rung, place in exported.items():
        skin_directory = directory / "out" / place
        assert (skin_directory / "report.html").read_bytes() == page
        carried = json.loads((skin_directory / "report.json").read_text())
        whole = json.loads((directory / "out" / "report.json").read_text())
        assert carried == {key: value for key, value in whole.items() if key != "rows"}
        identity, skin = read_identified(skin_directory)
        assert identity == json.loads((directory / "out" / "rungs" / rung / "result.json").read_text())["skin_id"]
        judged = skin.evaluated_with
        assert (judged is None) == (skin.bases == {})
        if judged is None:
            continue
        base = report.data["lineage"]["bases"][0]
        assert (judged.weights, judged.kernel) == (base["weights"], base["kernel"])


def test_the_page_stands_alone_and_shows_user_text_as_text(run: tuple[Report, Path, Path]):
    page = (run[1] / "out" / "report.html").read_text()
    assert "<script" not in page
    assert page.count("<svg") >= 2
    assert page.count("<path") > 20
    outside = page.replace("http://www.w3.org/", "")
    assert "http://" not in outside
    assert "https://" not in outside


def test_a_failing_rung_is_recorded_and_does_not_end_the_ladder(
    toy_task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> object:
        raise TrainingError("step 3: the loss is nan")

    monkeypatch.setattr(type(RUNGS["probe"]), "fit", fail)
    report = adapt(toy_task, tmp_path / "out", rungs=["majority", "zero_shot", "probe"])
    assert report.row("probe")["status"] == "failed"
    assert "loss is nan" in report.row("probe")["reason"]
    assert report.row("zero_shot")["status"] == "done"


def test_bad_input_inside_a_rung_ends_the_ladder(toy_task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> object:
        raise DataError("the disk is full")

    monkeypatch.setattr(type(RUNGS["majority"]), "fit", fail)
    with pytest.raises(DataError, match="disk is full"):
        adapt(toy_task, tmp_path / "out", rungs=["majority"])


def test_a_spent_budget_skips_with_the_reason_and_still_gives_a_verdict(toy_task: Path, tmp_path: Path):
    on_base = ["zero_shot", "few_shot", "probe", "lora"]  # what needs no base has a skin in no time
    report = adapt(toy_task, tmp_path / "out", budget=0.01, rungs=["majority", *on_base])
    for name in on_base:
        assert report.row(name)["status"] == "skipped"
        assert "of the budget are left" in report.row(name)["reason"]
    assert report.verdict["status"] == "OUT_OF_BUDGET"
    assert "train_minutes: " in report.verdict["reason"]
    named = {admission["rung"]: admission for admission in report.verdict["kept_out"]}
    assert {"zero_shot", "probe", "lora"} <= named.keys()
    assert all(
        admission["key"] == "train_minutes" and admission["needed"] > admission["given"] for admission in named.values()
    )
    assert report.row("majority")["status"] == "done"


def test_a_second_call_is_refused_before_anything_is_loaded_and_leaves_the_files_of_the_first(
    toy_task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    with file_lock(out / LOCK_FILE):
        monkeypatch.setattr("bedplate.adaptation.ladder.opened", None)
        with pytest.raises(UsageError, match=rf"out is in use by another process \(pid {os.getpid()}\); wait until"):
            adapt(toy_task, out, rungs=["majority"])
        assert [path.name for path in out.iterdir()] == [LOCK_FILE]


def test_a_second_call_is_refused_while_the_first_still_sets_up(
    toy_task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "runs" / "out"

    def another(_: object) -> None:
        with pytest.raises(UsageError, match=rf"out is in use by another process \(pid {os.getpid()}\); wait until"):
            adapt(toy_task, out, rungs=["majority"])
        raise UsageError("the compiler failed")

    monkeypatch.setattr("bedplate.adaptation.ladder.set_up", another)
    with pytest.raises(UsageError, match="the compiler failed"):
        adapt(toy_task, out, rungs=["majority"])
    assert not out.parent.exists(), "nothing began, so nothing is left"


def test_a_foreign_directory_is_left_alone(toy_task: Path, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="holds other files"):
        adapt(toy_task, tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_run_on_other_rows_in_the_same_directory_is_told_what_it_replaces(
    toy_task: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    def warnings_for(*overrides: str) -> list[str]:
        caplog.clear()
        adapt(toy_task, tmp_path / "out", rungs=["majority"], overrides=overrides)
        return [message for message in caplog.messages if "holds a run on other rows" in message]

    assert warnings_for() == []
    assert warnings_for("adapt.target.value=0.7") == []
    assert len(warnings_for("data.seed=5")) == 1
    assert warnings_for("data.seed=5") == []


def test_halving_ends_with_one_on_all_rows():
    assert stages_for(500, 100) == [HalvingStage(100, 2), HalvingStage(250, 1), HalvingStage(None, 1)]
    assert stages_for(50, 100) == [HalvingStage(None, 1)]
    assert row_cost(stages_for(500, 100), 5, 500) == 5 * 100 + 2 * 150 + 250


def test_calibration_takes_out_a_preference_for_a_word():
    """Scores that favour `b` by 3 nats whatever the text: the bias found is what moves the decision to zero."""
    labels = ("a", "b")
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 400)
    signal = np.where(truth == 1, 1.0, -1.0) + rng.normal(0, 1, 400)
    predictions = []
    for s in signal:
        logit = s + 3.0
        scores = {"a": -float(np.logaddexp(0, logit)), "b": -float(np.logaddexp(0, -logit))}
        predictions.append(Prediction("b" if logit > 0 else "a", "", scores))
    bias = fit_bias(predictions, [labels[t] for t in truth], labels)
    assert bias[0] - bias[1] == pytest.approx(3.0, abs=0.3)
    output = LabelOutput(labels=labels, continuations=(" a", " b")).with_bias(bias)
    after = with_bias(predictions, output)
    assert np.mean([p.output == labels[t] for p, t in zip(after, truth, strict=True)]) > 0.8
    assert sum(np.exp(list(after[0].scores.values()))) == pytest.approx(1.0)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_folded_head_equals_scikit_learn_on_standardised_features(classes: int):
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(1)
    codes = rng.integers(0, classes, 200)
    x = (rng.normal(size=(200, 12)) * rng.uniform(0.01, 100, 12) + rng.uniform(-50, 50, 12)).astype(np.float32)
    x[:, 0] += codes * 100
    labels = ["c", "a", "b"][:classes]
    targets = OneOf.of([labels[c] for c in codes], labels)
    head, strength = fit_head(x, targets, [str(i // 2) for i in range(200)], 4)
    standard = StandardScaler().fit(x.astype(np.float64))
    oracle = LogisticRegression(C=strength, max_iter=5000, tol=1e-10).fit(
        standard.transform(x.astype(np.float64)), codes
    )
    ours = torch.softmax(head(torch.from_numpy(x)), dim=1).numpy()
    np.testing.assert_allclose(ours, oracle.predict_proba(standard.transform(x.astype(np.float64))), atol=5e-3)


def test_a_head_for_several_labels_equals_scikit_learn_label_by_label():
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(2)
    marks = (rng.random((200, 3)) < [0.5, 0.2, 0.8]).astype(float)
    x = (rng.normal(size=(200, 12)) * rng.uniform(0.01, 100, 12) + rng.uniform(-50, 50, 12)).astype(np.float32)
    x[:, :3] += marks.astype(np.float32) * 100
    labels = ["c", "a", "b"]
    chosen = [[label for label, mark in zip(labels, row, strict=True) if mark] for row in marks]
    head, strength = fit_head(x, AnyOf.of(chosen, labels), [str(i // 2) for i in range(200)], 4)
    standard = StandardScaler().fit(x.astype(np.float64))
    oracle = OneVsRestClassifier(LogisticRegression(C=strength, max_iter=5000, tol=1e-10))
    oracle.fit(standard.transform(x.astype(np.float64)), marks)
    ours = torch.sigmoid(head(torch.from_numpy(x))).numpy()
    np.testing.assert_allclose(ours, oracle.predict_proba(standard.transform(x.astype(np.float64))), atol=5e-3)


def test_a_head_says_of_labels_that_every_row_has_or_none_what_it_saw():
    x = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    head, _ = fit_head(x, AnyOf.of([["a"]] * 40, ["a", "b"]), [str(i) for i in range(40)], 4)
    probabilities = torch.sigmoid(head(torch.from_numpy(x)))
    assert bool((probabilities[:, 0] > 0.99).all())
    assert bool((probabilities[:, 1] < 0.01).all())


def test_a_plan_survives_an_interruption(toy_task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The resumed run does what the interrupted one had planned, whatever time is left by then."""
    majority = type(RUNGS["majority"])
    plans: list[RungPlan] = []

    def interrupted(self: object, context: object, plan: RungPlan, directory: Path) -> object:
        plans.append(plan)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(majority, "plan", lambda self, context: RungPlan({"planned": "first"}))
        patch.setattr(majority, "fit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            adapt(toy_task, tmp_path / "out", rungs=["majority"])
        patch.setattr(majority, "plan", lambda self, context: RungPlan({"planned": "second"}))
        with pytest.raises(KeyboardInterrupt):
            adapt(toy_task, tmp_path / "out", rungs=["majority"])
    assert [plan.settings["planned"] for plan in plans] == ["first", "first"]
    assert not (tmp_path / "out" / "report.json").exists()


def test_a_row_longer_than_the_context_is_named_before_anything_is_written(tmp_path: Path, tiny_base: Path):
    rows = write_rows(tmp_path / "rows.jsonl")
    lines = rows.read_text().splitlines()
    for i in range(0, len(lines), 40):  # some of them land in train or valid
        row = json.loads(lines[i])
        lines[i] = json.dumps({**row, "text": "word " * 2000 + str(i)})
    rows.write_text("\n".join(lines) + "\n")
    task = write_task(tmp_path / "task", tiny_base, rows=rows)
    with pytest.raises(DataError, match="more than the context"):
        adapt(task, tmp_path / "out")
    assert not (tmp_path / "out").exists()
