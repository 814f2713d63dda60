"""Formats of quantised weights as candidates: kept where nothing is lost, refused where something is, and what is
judged is what is served."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from tests.adaptation.conftest import NATIVE_SHAPE, write_rows, write_task
from tests.adaptation.ladders import VALID_SIZES
from tests.adaptation.test_gate import evaluation
from tests.homes import new_home
from tests.rows import slow_unless
from tests.tiny import write_tiny_base

from bedplate.adaptation.context import throughput
from bedplate.adaptation.context.bases import TaskBase
from bedplate.adaptation.context.outcome import Latency
from bedplate.adaptation.ladder import adapt
from bedplate.adaptation.postprocess.evaluate import evaluate
from bedplate.adaptation.postprocess.reproduce import reproduce
from bedplate.adaptation.report.report import Report
from bedplate.adaptation.rungs.full import trainable_copy
from bedplate.adaptation.search import base_format, formats
from bedplate.adaptation.task.adapt_parts import FormatsSpec
from bedplate.core.errors import UsageError
from bedplate.core.statistics.clusters import design_effect
from bedplate.core.statistics.noninferiority import mean_drop
from bedplate.evaluation.evaluated import drop_between, independent_rows
from bedplate.evaluation.examples import Example, load_examples
from bedplate.evaluation.harness import evaluate_predictions
from bedplate.evaluation.task import Task, load_task
from bedplate.inference.execution import choice
from bedplate.inference.execution.calibration import PlanTimings
from bedplate.inference.execution.plan import ExecutionPlan
from bedplate.inference.native.library import load as library
from bedplate.inference.predict.loaded import load
from bedplate.inference.predict.local import LocalModel
from bedplate.inference.predict.skin_bases import LoadedSkin
from bedplate.skins.files import read_skin

RUNGS = ["zero_shot", "probe"]
MARGIN = 0.05
EASY = {"target": {"value": 0.3, "confidence": 0.9}}

needs_native = pytest.mark.skipif(isinstance(library(), str), reason=f"no native kernel here: {library()}")


@pytest.fixture(scope="session")
def bf16_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("wide") / "wide", dtype=torch.bfloat16, **NATIVE_SHAPE)


@pytest.fixture(scope="session")
def row_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("many") / "rows.jsonl", groups=260)


@pytest.fixture(scope="module", autouse=True)
def same_plan() -> Iterator[None]:
    """The base itself runs natively in bfloat16, whatever else keeps this machine busy."""

    def fake_choice(spec: object, plans: Sequence[ExecutionPlan], **_: object) -> PlanTimings:
        ranks = {plan: 1.0 + (plan.weights != "bfloat16") + (plan.kernel != "native") for plan in plans}
        uses = ("decode_1", "decode_16", "prefill")
        return PlanTimings({plan: dict.fromkeys(uses, rank) for plan, rank in ranks.items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "plan_timings", fake_choice)
        yield


@pytest.fixture(scope="module", autouse=True)
def own_weights() -> Iterator[None]:
    """The base answers in its own weights, so that formats are tried of nominees."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base_format, "_compared", lambda _: (None, "not considered"))
        yield


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine measures: int8 is twice as fast as now, int4 half as fast, and any call fast enough."""
    make_quick(monkeypatch)


def make_quick(patch: pytest.MonkeyPatch) -> None:
    seconds = {"float32": 1.0, "bfloat16": 1.0, "int8": 0.5, "int4": 2.0}

    def fake_speeds(spec: object, weight_formats: Sequence[ExecutionPlan]) -> PlanTimings:
        return PlanTimings(
            {
                weight_format: dict.fromkeys(("decode_1", "decode_16", "prefill"), seconds[weight_format.weights])
                for weight_format in weight_formats
            }
        )

    patch.setattr(throughput, "plan_timings", fake_speeds)
    patch.setattr(formats, "CLEARLY", 0.0)


@pytest.fixture(scope="module")
def int8_run(
    tmp_path_factory: pytest.TempPathFactory, bf16_base: Path, row_file: Path, same_plan: None
) -> tuple[Report, Path, Path]:
    """A ladder whose nominees keep int8: report, task file, home."""
    root = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEDPLATE_HOME", str(new_home(root / "home")))
        make_quick(patch)
        task = write_task(root / "task", bf16_base, rows=row_file, formats={"margin": MARGIN}, **EASY)
        return adapt(task, root / "out", rungs=RUNGS), task, root / "home"


@pytest.fixture(scope="module")
def probed_run(tmp_path_factory: pytest.TempPathFactory, bf16_base: Path, row_file: Path, same_plan: None) -> Path:
    """The directory of a ladder of one rung for which no format was tried."""
    root = tmp_path_factory.mktemp("probed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEDPLATE_HOME", str(new_home(root / "home")))
        task = write_task(root / "task", bf16_base, rows=row_file, formats="none", **EASY)
        adapt(task, root / "out", rungs=["probe"])
    return root / "out"


@pytest.fixture
def probed(probed_run: Path, tmp_path: Path) -> Path:
    """A copy of it, where the rung is finished."""
    return shutil.copytree(probed_run, tmp_path / "out")


# --- the ladder


@needs_native
def test_a_format_that_loses_nothing_is_kept_judged_and_exported(int8_run: tuple[Report, Path, Path]):
    report = int8_run[0]
    format_choices = report.data["formats"]
    assert set(report.data["nominees"]["nominees"]) <= format_choices.keys()
    passed = report.verdict["rung"]
    assert passed == "probe" or format_choices[passed]["kept"] == "int8"
    chosen = format_choices["probe"]
    assert (chosen["weights"], chosen["kept"], chosen["left_out"]) == ("bfloat16", "int8", [])
    (tried,) = chosen["tried"]  # int4 was measured to be slower, so that it was not
    assert (tried["weights"], tried["kernel"], tried["kept"]) == ("int8", "native", True)
    assert tried["lower"] > -MARGIN
    assert tried["difference"] == pytest.approx(tried["estimate"] - tried["own_estimate"])
    assert tried["reason"] == chosen["reason"]
    assert f"under {MARGIN:g}" in chosen["reason"]
    for split in ("valid", "test"):
        row = report.row("probe", split)
        assert (row["weights"], row["kernel"], row["skin"]) == ("int8", "native", "skins/probe-int8")
    assert report.row("probe")["estimate"] == tried["estimate"]
    assert report.row("probe")["p50_ms"] == tried["p50_ms"]
    assert report.row("probe")["usd_per_1k_calls"] == pytest.approx(tried["usd_per_1k_calls"])
    assert report.data["timing"]["formats"].keys() == format_choices.keys()
    page = (report.directory / "report.html").read_text()
    assert "int8" in page
    assert chosen["reason"] in page


@needs_native
def test_what_was_judged_is_what_is_loaded_evaluated_and_made_again(
    int8_run: tuple[Report, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    report, task, home = int8_run
    monkeypatch.setenv("BEDPLATE_HOME", str(home))
    place = report.directory / "skins" / "probe-int8"
    original, skin = read_skin(report.directory / "skins" / "probe"), read_skin(place)
    assert (original.evaluated_with.weights, skin.evaluated_with.weights) == ("bfloat16", "int8")
    assert replace(skin, evaluated_with=original.evaluated_with).output == original.output  # nothing was fitted again
    assert torch.equal(skin.probe.head.weight, original.probe.head.weight)
    assert (place / "report.json").is_file()
    data = load_examples(load_task(task))
    loaded = load(place)
    assert isinstance(loaded, LoadedSkin)
    with loaded:
        assert (loaded.engine.weights, loaded.engine.kernel) == ("int8", "native")
        evaluation = evaluate(loaded, load_task(task), split="valid", data=data)
        answers = loaded.predict([e.inputs for e in data.test.open("compare")], one_by_one=True)
    assert evaluation.estimate == report.row("probe")["estimate"]
    rows = report.data["rows"]["test"]["probe"]
    assert [a.output for a in answers] == [row["prediction"] for row in rows]
    reproduction = reproduce(place, tmp_path / "again", task_file=None)
    assert (reproduction.status, reproduction.equal_answers) == ("identical", reproduction.rows)
    assert Path(reproduction.directory).name == "probe-int8"


@needs_native
def test_the_same_command_tries_nothing_again_and_mends_what_is_gone(
    int8_run: tuple[Report, Path, Path], monkeypatch: pytest.MonkeyPatch
):
    report, task, home = int8_run
    monkeypatch.setenv("BEDPLATE_HOME", str(home))
    make_quick(monkeypatch)
    shutil.rmtree(report.directory / "skins" / "probe-int8")

    def refuse(*_: object) -> object:
        raise AssertionError("a format was tried again")

    monkeypatch.setattr(formats, "make_trial", refuse)
    rerun = adapt(task, report.directory, rungs=RUNGS)
    for key in report.data:
        if key == "ledger":  # its notes are of the home, which is another one
            assert {**rerun.data[key], "notes": []} == {**report.data[key], "notes": []}
        elif key != "timing":
            assert rerun.data[key] == report.data[key], key
    assert rerun.data["timing"]["seconds"] >= sum(report.data["timing"]["formats"].values()) / 2
    assert read_skin(report.directory / "skins" / "probe-int8").evaluated_with.weights == "int8"


def poisoned(self: TaskBase, weights: Any) -> LocalModel:
    """The same base on quantised weights, every one of which was turned round."""
    base = self.model.base
    model = trainable_copy(base)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.neg_()
    if weights not in self._formats:
        self._formats[weights] = LocalModel(replace(base, raw_model=model), weights=weights)
    return self._formats[weights]


@needs_native
def test_a_format_that_is_shown_to_be_worse_is_refused(
    bf16_base: Path, row_file: Path, tmp_path: Path, probed: Path, quick: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(TaskBase, "in_format", poisoned)
    task = write_task(tmp_path, bf16_base, rows=row_file, formats={"margin": MARGIN}, **EASY)
    report = adapt(task, probed, rungs=["probe"])
    chosen = report.data["formats"]["probe"]
    assert chosen["kept"] is None
    (tried,) = chosen["tried"]
    assert (tried["weights"], tried["kept"]) == ("int8", False)
    assert tried["difference"] < -MARGIN
    assert "worse by at least" in tried["reason"]
    assert chosen["reason"] == f"int8: {tried['reason']}"
    assert not (tmp_path / "out" / "skins" / "probe-int8").exists()
    for split in ("valid", "test"):
        row = report.row("probe", split)
        assert (row["weights"], row["skin"]) == ("bfloat16", "skins/probe")
    assert report.row("probe", "valid")["estimate"] == tried["own_estimate"]


@needs_native
@pytest.mark.parametrize("why", slow_unless(("rows", "time").__contains__, ["rows", "time", "slow", "failed"]))
def test_why_a_skin_stays_in_its_own_weights(
    bf16_base: Path,
    row_file: Path,
    tmp_path: Path,
    probed: Path,
    quick: None,
    monkeypatch: pytest.MonkeyPatch,
    why: str,
):
    formats_spec: Any = {"margin": MARGIN}
    if why == "rows":
        formats_spec = "auto"  # the default margin is too narrow for so few rows

        def refuse(*_: object) -> object:
            raise AssertionError("valid could not have shown anything")

        monkeypatch.setattr(formats, "make_trial", refuse)
    if why == "time":
        monkeypatch.setattr(formats, "expected_seconds", lambda candidate, times: 1e9)
    if why == "slow":
        monkeypatch.setattr(formats, "CLEARLY", 1e9)
    if why == "failed":

        def broken(self: TaskBase, weights: object) -> LocalModel:
            raise UsageError("no room for it")

        monkeypatch.setattr(TaskBase, "in_format", broken)
    task = write_task(tmp_path, bf16_base, rows=row_file, formats=formats_spec, **EASY)
    report = adapt(task, probed, rungs=["probe"], budget=600)
    row = report.row("probe", "test")
    assert (row["weights"], row["skin"]) == ("bfloat16", "skins/probe")
    chosen = report.data["formats"]["probe"]
    assert chosen["kept"] is None
    parts = [omission["reason"] for omission in report.data["not_tried"] if omission["what"] == "part"]
    if why == "rows":
        assert "cannot rule out a loss above 0.01 (about" in chosen["reason"]
        assert chosen["tried"] == []
    if why == "time":
        assert [omission["kind"] for omission in chosen["left_out"]] == ["budget"]
        assert any(reason.startswith("int8 was not tried: it needs about") for reason in parts)
    if why == "slow":
        assert "but it is not faster" in chosen["reason"]
        assert chosen["tried"][0]["lower"] > -MARGIN
    if why == "failed":
        assert parts == ["int8 was not tried: no room for it"]


def test_a_base_that_no_format_is_for_says_so(tmp_path: Path):
    base = write_tiny_base(tmp_path / "odd", layers=2)
    task = write_task(tmp_path, base, groups=40, formats=["int8"], **EASY)
    report = adapt(task, tmp_path / "out", rungs=["probe"])
    chosen = report.data["formats"]["probe"]
    assert chosen["kept"] is None
    assert chosen["tried"] == []
    assert "native path" in chosen["reason"]
    assert report.row("probe", "test")["skin"] == "skins/probe"


@needs_native
def test_what_only_its_calls_keep_out_is_tried_in_a_format(
    bf16_base: Path, row_file: Path, tmp_path: Path, probed: Path, quick: None, monkeypatch: pytest.MonkeyPatch
):
    """Over the budget by half: a format that is ten times as fast brings it in, on a busy machine too, and so it is
    nominated after all. Where none is asked for, none is tried."""
    make_trial = formats.make_trial

    def fast(candidate: Any, skin: Any, weights: Any) -> Any:
        trial = make_trial(candidate, skin, weights)
        return replace(trial, latency=candidate.climbed.result.latency.scaled(0.1))

    monkeypatch.setattr(formats, "make_trial", fast)
    task = write_task(tmp_path, bf16_base, rows=row_file, formats={"margin": MARGIN}, **EASY)
    first = adapt(task, shutil.copytree(probed, tmp_path / "first"), rungs=["probe"], overrides=["adapt.formats=none"])
    row = first.row("probe", "test")
    assert (first.data["formats"], row["weights"], row["skin"]) == ({}, "bfloat16", "skins/probe")
    p95_low, _ = first.row("probe")["p95_bounds_ms"]
    override = f"adapt.budget={{p95_ms: {p95_low / 1.5}, max_prompt_tokens: 400}}"
    alone = adapt(task, tmp_path / "first", rungs=["probe"], overrides=[override, "adapt.formats=none"])
    assert alone.data["nominees"]["nominees"] == []
    report = adapt(task, probed, rungs=["probe"], overrides=[override])
    assert report.data["formats"]["probe"]["kept"] == "int8"
    assert report.data["nominees"]["nominees"] == ["probe"]


# --- the bound


def test_no_change_in_independent_rows_hides_what_an_exact_bound_says():
    n = 400
    rows = evaluation([i % 3 > 0 for i in range(n)], split="valid")
    drop = drop_between(rows, rows, 0.95)
    assert independent_rows(rows) == pytest.approx(n)
    exact = stats.binomtest(0, n, alternative="less").proportion_ci(0.95, "exact").high
    assert (drop.value, drop.upper, drop.lower) == pytest.approx((0.0, exact, -exact))
    assert drop.is_within(0.01) is True
    small_evaluation = evaluation([i % 3 > 0 for i in range(200)], split="valid")
    assert drop_between(small_evaluation, small_evaluation, 0.95).is_within(0.01) is None


def test_answers_that_rounding_changed_are_scattered_over_groups():
    """Four rows lost, each in a group of its own. Of another skin, groups that lose more may have been missed."""
    groups = [i // 10 for i in range(1200)]
    right = [i % 6 > 0 for i in range(1200)]
    before = evaluation(right, groups, split="valid")
    after = evaluation(
        [is_right and i not in (1, 201, 401, 601) for i, is_right in enumerate(right)], groups, split="valid"
    )
    fast, slow = Latency(0.01, 0.01, 0.01, 20), Latency(0.02, 0.02, 0.02, 20)
    target, machine = SimpleNamespace(confidence=0.95), SimpleNamespace(usd_per_hour=0.1)
    spec = SimpleNamespace(formats=FormatsSpec(margin=0.008), target=target, machine=machine)
    result = SimpleNamespace(evaluation=before, price=lambda rate, seconds: rate * seconds / 3600)
    trial = SimpleNamespace(weights="int8", kernel="native", evaluation=after, own=slow, latency=fast)
    judge: Any = formats.judged
    assert judge(SimpleNamespace(spec=spec, seed=0), result, trial).kept
    assert drop_between(before, after, 0.95).is_within(0.008) is None


def test_rows_in_groups_are_worth_fewer():
    right = [(i // 10) % 3 > 0 for i in range(600)]  # whole groups of ten are right or wrong
    rows = evaluation(right, [i // 10 for i in range(600)], split="valid")
    assert independent_rows(rows) == pytest.approx(60, rel=0.05)
    assert drop_between(rows, rows, 0.95).upper == pytest.approx(1 - 0.05 ** (1 / independent_rows(rows)))
    small_evaluation = evaluation(right[:390], [i // 10 for i in range(390)], split="valid")
    assert drop_between(small_evaluation, small_evaluation, 0.95).upper is None


@pytest.mark.parametrize(("gain", "power"), [pytest.param(0.0, 0.7, marks=pytest.mark.slow), (0.01, 0.35)])
def test_a_format_that_is_as_much_worse_as_the_margin_is_seldom_kept(gain: float, power: float):
    """Groups as the reviews have them, in which both what is right and what a format changes hang together. Few rows
    change, so t is skewed: at the margin itself somewhat more than 5% are kept, and the others are in vain."""
    rng = np.random.default_rng(5)
    sizes, margin, confidence, rho, runs = np.array(VALID_SIZES), 0.01, 0.95, 0.05, 400
    codes = np.repeat(np.arange(sizes.size), sizes)

    def drawn(p: float) -> np.ndarray:
        if not p:
            return np.zeros(codes.size, bool)
        rates = rng.beta(p * (1 / rho - 1), (1 - p) * (1 / rho - 1), sizes.size)
        return rng.random(codes.size) < rates[codes]

    def keep_rate(worse: float) -> float:
        count = 0
        for _ in range(runs):
            before = drawn(0.85)
            after = np.where(before, ~drawn((worse + gain) / 0.85), drawn(gain / 0.15))
            effect = max(1.0, *(design_effect(x.astype(float), codes) for x in (before, after)))
            drop = mean_drop(before, after, codes.tolist(), confidence, units=codes.size / effect, scattered=True)
            count += drop.is_within(margin) is True
        return count / runs

    assert keep_rate(margin) < 0.09
    assert keep_rate(2 * margin) < 0.03
    assert keep_rate(0.0) > power


def test_statistics_of_all_rows_have_a_bound_as_well():
    task = load_task_of("macro_f1")
    labels = ["a", "b"]
    examples = [Example(str(i), {"x": str(i)}, labels[i % 4 == 0], str(i), f"{i:064d}") for i in range(800)]
    right = [example.target for example in examples]
    perfect = evaluate_predictions(task, examples, right, split="valid")
    assert independent_rows(perfect) == pytest.approx(200)  # of the rarer label
    unseen = drop_between(perfect, perfect, 0.95)
    assert unseen.upper == pytest.approx(1 - 0.05 ** (1 / 200))
    worse = evaluate_predictions(task, examples, ["a" if i % 8 == 0 else t for i, t in enumerate(right)], split="valid")
    drop = drop_between(perfect, worse, 0.95)
    assert drop.value == pytest.approx(perfect.estimate - worse.estimate)
    assert drop.lower > 0.05
    assert drop.is_within(0.05) is False


def load_task_of(metric: str) -> Any:
    return Task.model_validate(
        {
            "task": "toy",
            "inputs": {"x": {"column": "x"}},
            "output": {"kind": "label", "labels": ["a", "b"]},
            "data": {"source": "rows.jsonl", "target": "y", "split": {"train": 0.5, "valid": 0.25, "test": 0.25}},
            "metric": metric,
        }
    )


# --- what the task file says


@pytest.mark.parametrize(
    ("raw_spec", "allowed", "margin"),
    [
        ("auto", ("int8", "int4"), 0.01),
        ({}, ("int8", "int4"), 0.01),
        ("none", (), 0.01),
        (None, (), 0.01),
        (False, (), 0.01),
        ("int4", ("int4",), 0.01),
        (["int4", "int8"], ("int4", "int8"), 0.01),
        ({"weights": ["int8"], "margin": 0.02}, ("int8",), 0.02),
    ],
)
def test_formats_in_a_task_file(raw_spec: Any, allowed: tuple[str, ...], margin: float):
    spec = FormatsSpec.model_validate(raw_spec)
    assert (spec.allowed, spec.margin) == (allowed, margin)


@pytest.mark.parametrize("raw_spec", ["int3", ["int8", "int8"], {"margin": 0}, {"margin": 1.5}, {"formats": "auto"}])
def test_formats_that_cannot_be(raw_spec: Any):
    with pytest.raises(ValidationError):
        FormatsSpec.model_validate(raw_spec)


def test_what_the_measurement_makes_worth_trying(quick: None, monkeypatch: pytest.MonkeyPatch):
    def model(weights: str, kernel: str = "native") -> Any:
        return SimpleNamespace(
            engine=SimpleNamespace(weights=weights, kernel=kernel),
            base=SimpleNamespace(dtype=torch.bfloat16, device=torch.device("cpu"), spec=None),
        )

    monkeypatch.setattr(throughput, "impossible", lambda *_: None)

    auto, named = FormatsSpec(), FormatsSpec.model_validate(["int4", "int8"])
    assert throughput.worth_trying(model("bfloat16"), auto, writes=False) == {"int8": 2.0}
    assert list(throughput.worth_trying(model("bfloat16"), named, writes=True)) == ["int8", "int4"]
    assert "times as fast as now: int4 0.25" in throughput.worth_trying(model("int8"), auto, writes=True)
    assert throughput.worth_trying(model("int8"), FormatsSpec.model_validate("int8"), writes=True) == (
        "its own weights are int8 already"
    )
    assert throughput.worth_trying(model("bfloat16"), FormatsSpec.model_validate("none"), writes=True) == (
        "adapt.formats is none"
    )


@pytest.mark.real
@pytest.mark.slow
@needs_native
def test_on_the_real_base_a_prompt_keeps_the_format_that_is_measured_to_be_faster(
    smollm2_gguf: Path, vader_amazon: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Which is faster is this machine's to say; that the file's own 4-bit blocks lose nothing that shows is not."""
    monkeypatch.setattr(formats, "CLEARLY", 0.0)
    task = Path(__file__).parents[2] / "examples" / "reviews" / "task.yaml"
    overrides = ["adapt.formats={weights: [int4], margin: 0.05}", "adapt.target.value=0.5", "adapt.budget={}"]
    report = adapt(task, tmp_path / "out", rungs=["zero_shot"], overrides=overrides)
    chosen = report.data["formats"]["zero_shot"]
    if not chosen["tried"]:
        pytest.skip(f"no format could be tried on this machine: {chosen['reason']}")
    (tried,) = chosen["tried"]
    assert tried["n"] == 587
    assert tried["groups"] == 60
    assert abs(tried["difference"]) < 0.05
    assert chosen["kept"] == ("int4" if tried["lower"] > -0.05 else None)
    values = json.loads((tmp_path / "out" / "report.json").read_text())
    assert values["rungs"][0]["weights"] == (chosen["kept"] or chosen["weights"])
