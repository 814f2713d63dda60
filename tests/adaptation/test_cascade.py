"""Cascades: the threshold against every other one, the pair that is found, the skin on disk and in the ladder."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.adaptation.conftest import NATIVE_SHAPE, write_rows, write_task
from tests.adaptation.test_bases import endpoint
from tests.homes import new_home
from tests.inference.fake_labeller import Labeller
from tests.inference.fake_server import fake_server
from tests.tiny import write_tiny_base

from bedplate.adaptation.context.backbone import Backbone
from bedplate.adaptation.ladder import adapt
from bedplate.adaptation.rungs.cascade import confidences, threshold_for
from bedplate.core.errors import SkinError, UsageError
from bedplate.evaluation.examples import Example, load_examples
from bedplate.evaluation.harness import Evaluation, evaluate_predictions
from bedplate.evaluation.task import Task, load_task
from bedplate.inference.predict.callable_skin import CascadePredictor
from bedplate.inference.predict.loaded import load
from bedplate.inference.predict.predictor import Prediction
from bedplate.inference.predict.skin_bases import LoadedSkin
from bedplate.skins.files import read_skin, skin_id, write_skin
from bedplate.skins.skin import cascaded

TASK = Task.model_validate(
    {
        "task": "t",
        "inputs": {"x": {"column": "x"}},
        "output": {"kind": "label", "labels": ["no", "yes"]},
        "data": {"source": "d", "target": "y", "split": {"train": 0.6, "valid": 0.2, "test": 0.2}},
        "metric": "accuracy",
    }
)


def evaluation(rows: list[tuple[bool, float]]) -> Evaluation:
    """Rows that are right or not, with a confidence of at least one half."""
    examples = [Example(str(i), {"x": str(i)}, "yes", str(i), str(i)) for i in range(len(rows))]
    predictions: list[Prediction] = []
    for right, confidence in rows:
        label, alternative = ("yes", "no") if right else ("no", "yes")
        scores = {label: math.log(confidence), alternative: math.log(1 - confidence)}
        predictions.append(Prediction(label, label, scores))
    return evaluate_predictions(TASK, examples, predictions)


levels = st.sampled_from([0.5, 0.6, 0.7, 0.8, 0.9, 0.99])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), levels, st.booleans()), min_size=2, max_size=30))
def test_the_threshold_is_the_lowest_that_is_as_good(rows: list[tuple[bool, float, bool]]):
    cheap, dear = evaluation([(r, c) for r, c, _ in rows]), evaluation([(d, 0.9) for _, _, d in rows])
    cutoff = threshold_for(cheap, dear)
    sure = confidences(cheap)
    ours, theirs = (np.array([row.score for row in e.rows]) for e in (cheap, dear))

    def mixed(threshold: float) -> float:
        return float(np.where(sure < threshold, theirs, ours).mean())

    thresholds = [0.0, *(0.55, 0.65, 0.75, 0.85, 0.95), 1.0]
    good = [t for t in thresholds if mixed(t) >= dear.estimate - 1e-9]
    if cutoff is None:  # the cheap one alone will do, or all is passed on
        shares = [float((sure < t).mean()) for t in good]
        assert shares[0] in (0.0, 1.0)
    else:
        assert 0 < float((sure < cutoff).mean()) < 1
        assert mixed(cutoff) >= dear.estimate - 1e-9
        assert (sure < cutoff).sum() == (sure < good[0]).sum()


def test_without_probabilities_there_is_none():
    cheap = evaluate_predictions(
        TASK, [Example(str(i), {"x": "x"}, "yes", str(i), str(i)) for i in range(4)], ["yes", "no", "yes", "no"]
    )
    assert threshold_for(cheap, evaluation([(True, 0.9)] * 4)) is None


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("two")
    return (
        write_tiny_base(place / "one", **NATIVE_SHAPE),
        write_tiny_base(place / "two", seed=5, layers=4, **NATIVE_SHAPE),
    )


@pytest.fixture(scope="module")
def skins(tmp_path_factory: pytest.TempPathFactory, bases: tuple[Path, Path]) -> tuple[Path, Path]:
    """Two probes of one task on two bases, made by the ladder."""
    place = tmp_path_factory.mktemp("skins")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEDPLATE_HOME", str(new_home(place / "home")))
        task = write_task(place, bases[0], bases=[str(base) for base in bases], rungs=["zero_shot", "probe"])
        report = adapt(task, place / "out")
    shutil.copytree(place / "out" / report.row("probe@two")["skin"], place / "dear")
    shutil.copytree(place / "out" / report.row("zero_shot")["skin"], place / "cheap")
    return place / "cheap", place / "dear"


def rows_of(task: Path) -> list[dict[str, str]]:
    return [e.inputs for e in load_examples(load_task(task)).valid]


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_cascade_on_disk_answers_as_its_two_skins_do(skins: tuple[Path, Path], tmp_path: Path, share: float):
    first, second = (read_skin(place) for place in skins)
    rows = rows_of(skins[0].parent / "task.yaml")[:40]
    alone: list[list[Prediction]] = []
    for place in skins:
        with load(place) as subject:
            assert isinstance(subject, LoadedSkin)
            alone.append(subject.predict(rows))
    threshold = float(np.quantile([math.exp(p.scores[p.output]) for p in alone[0]], share)) + 1e-6
    skin = cascaded("both", first, second, threshold)
    write_skin(skin, tmp_path / "both")
    restored = read_skin(tmp_path / "both")
    assert skin_id(restored) == skin_id(skin)
    assert restored.cascade is not None
    assert [skin_id(part) for part in (restored.cascade.first, restored.cascade.second)] == [
        skin_id(first),
        skin_id(second),
    ]
    with load(tmp_path / "both") as loaded:
        assert isinstance(loaded, CascadePredictor)
        predictions = loaded.predict(rows)
        assert loaded(rows[0]) == predictions[0].output
    for a, b, subject in zip(*alone, predictions, strict=True):
        unsure = math.exp(a.scores[a.output]) < threshold
        assert subject.passed_on == unsure
        assert subject.output == (b.output if unsure else a.output)
        assert subject.prompt_tokens == a.prompt_tokens + (b.prompt_tokens if unsure else 0)
    assert {prediction.passed_on for prediction in predictions} == ({True} if share == 1.0 else {True, False})
    with pytest.raises(UsageError, match="loaded as it was judged"):
        load(tmp_path / "both", dtype="bfloat16")


def test_a_part_that_was_changed_or_exchanged_is_refused(skins: tuple[Path, Path], tmp_path: Path):
    first, second = (read_skin(place) for place in skins)
    write_skin(cascaded("both", first, second, 0.7), tmp_path / "both")
    for name in ("first/prompt.jinja", "second/head.safetensors", "first/skin.json"):
        shutil.copytree(tmp_path / "both", tmp_path / "spoiled")
        path = tmp_path / "spoiled" / name
        path.write_bytes(path.read_bytes() + b" ")
        with pytest.raises(SkinError, match="sha256 differs"):
            read_skin(tmp_path / "spoiled")
        path.unlink()
        with pytest.raises(SkinError):
            read_skin(tmp_path / "spoiled")
        shutil.rmtree(tmp_path / "spoiled")
    shutil.copytree(tmp_path / "both", tmp_path / "more")
    (tmp_path / "more" / "first" / "notes.txt").write_text("x")
    with pytest.raises(SkinError, match="not listed"):
        read_skin(tmp_path / "more")
    manifest = json.loads((tmp_path / "both" / "skin.json").read_text())
    manifest["cascade"]["first"] = "0" * 64
    (tmp_path / "both" / "skin.json").write_text(json.dumps(manifest))
    with pytest.raises(SkinError, match="was exchanged"):
        read_skin(tmp_path / "both")


def test_skins_that_do_not_go_together(skins: tuple[Path, Path]):
    first, second = (read_skin(place) for place in skins)
    cascade = cascaded("both", first, second, 0.7)
    with pytest.raises(SkinError, match="which does not choose one label"):
        cascaded("more", cascade, second, 0.7)
    with pytest.raises(SkinError, match="not a probability"):
        cascaded("both", first, second, 1.5)


def test_the_ladder_finds_a_cascade_that_costs_less_than_the_best(
    tmp_path: Path, bases: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Backbone, "poolings", ("last",))  # good, but not as good as the remote model
    data = write_rows(tmp_path / "rows.jsonl", noise=0.0)
    with fake_server(Labeller()) as server:
        assert isinstance(server, Labeller)
        rungs = ["majority", "zero_shot", "probe", "hosted", "cascade"]
        task = write_task(tmp_path, bases[0], rows=data, hosted=[endpoint(server)], rungs=rungs)
        report = adapt(task, tmp_path / "out")
        row, hosted = report.row("cascade"), report.row("hosted")
        assert row["status"] == "done", row["reason"]
        details = report.data["details"]["cascade"]
        assert details["dear"] == "hosted"
        assert 0 < details["passed_on"] < 1
        assert row["estimate"] >= hosted["estimate"]
        cheap = report.row(details["cheap"])
        expected = cheap["usd_per_1k_calls"] + details["passed_on"] * hosted["usd_per_1k_calls"]
        # the cheap skin may have been timed once more since
        assert row["usd_per_1k_calls"] == pytest.approx(expected, rel=0.01)
        assert row["usd_per_1k_calls"] < hosted["usd_per_1k_calls"]
        request_count = len(server.requests)
        rerun = adapt(task, tmp_path / "out")
        assert rerun.data["rungs"] == report.data["rungs"]
        assert len(server.requests) == request_count
        with load(tmp_path / "out" / row["skin"]) as skin:
            assert isinstance(skin, CascadePredictor)
            answers = skin.predict(rows_of(task)[:10])
        assert [a.output for a in answers] == [
            reported["prediction"] for reported in report.data["rows"]["valid"]["cascade"][:10]
        ]


def test_alone_and_for_other_outputs_it_is_skipped(tmp_path: Path, tiny_base: Path):
    report = adapt(write_task(tmp_path, tiny_base, rungs=["majority", "zero_shot", "cascade"]), tmp_path / "out")
    assert report.row("cascade")["status"] == "skipped"
    assert "needs two skins" in report.row("cascade")["reason"]
