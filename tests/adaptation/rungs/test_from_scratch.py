"""The classical rung as any other: its skin is nominated, confirmed, priced, made again, compared and looked after, and
a cascade begins with it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from tests.adaptation.conftest import write_rows, write_task
from tests.homes import new_home

import bedplate
from bedplate.adaptation.ladder import adapt
from bedplate.adaptation.postprocess.evaluate import evaluate
from bedplate.adaptation.postprocess.monitor import drift
from bedplate.adaptation.postprocess.reproduce import reproduce
from bedplate.adaptation.report.report import Report
from bedplate.cli.main import main
from bedplate.core.errors import ConfigError, DataError, UsageError
from bedplate.evaluation.examples import load_examples
from bedplate.evaluation.task import load_task
from bedplate.inference.predict.callable_skin import CascadePredictor
from bedplate.inference.predict.classical import ClassicalPredictor
from bedplate.inference.predict.loaded import load
from bedplate.skins.catalog import Catalog
from bedplate.skins.files import read_skin, write_skin
from bedplate.skins.skin import cascaded

SKIN = "skins/from_scratch"


@pytest.fixture(scope="module")
def ladder_run(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> tuple[Report, Path]:
    """A ladder with enough test rows for a verdict."""
    place = tmp_path_factory.mktemp("classical")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEDPLATE_HOME", str(new_home(place / "home")))
        task = write_task(place, tiny_base, groups=200)
        report = adapt(task, place / "out", rungs=["majority", "from_scratch", "probe"])
    return report, place


def test_it_passes_as_the_cheapest_nominee(ladder_run: tuple[Report, Path]) -> None:
    report, place = ladder_run
    rows = {split: report.row("from_scratch", split) for split in ("valid", "test")}
    assert report.verdict["status"] == "PASS"
    assert (report.verdict["rung"], report.verdict["skin"]) == ("from_scratch", SKIN)
    assert report.data["nominees"]["nominees"][0] == "from_scratch"
    assert "majority" not in report.data["nominees"]["reasons"]
    assert "classical model" not in report.verdict["reason"]  # of which there is nothing to say beside itself
    for row in rows.values():
        assert row is not None
        assert (row["skin"], row["base"], row["weights"], row["kernel"]) == (SKIN, None, None, None)
        assert row["usd_per_1k_calls"] > 0
    timed = report.data["rows"]["calls"]["test"]["from_scratch"]
    assert rows["test"]["usd_per_1k_calls"] == pytest.approx(np.mean(timed) * 0.1 / 3.6)
    assert report.data["lineage"]["skins"]["from_scratch"]["bases"] == {}
    assert report.data["export"]["from_scratch"]["difference"] == 0.0
    skin = read_skin(place / "out" / SKIN)
    assert (skin.name, skin.kind, skin.bases, skin.evaluated_with) == (
        "toy-sentiment-from-scratch",
        "classical",
        {},
        None,
    )
    assert (skin.provenance.rung, skin.provenance.task) == ("from_scratch", "toy-sentiment")
    assert "has no base, so no weights to quantize" in report.data["formats"]["from_scratch"]["reason"]
    page = (place / "out" / "report.html").read_text()
    assert "toy-sentiment" in page


def test_it_answers_as_a_pipeline_of_scikit_learn_does(ladder_run: tuple[Report, Path]) -> None:
    """Fitted here on the same rows, with the regularisation that was chosen."""
    report, place = ladder_run
    data = load_examples(load_task(place / "task.yaml"))
    pipeline = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b|[^\w\s]"),
        LogisticRegression(
            C=report.data["details"]["from_scratch"]["C"], solver="liblinear", max_iter=2000, random_state=0
        ),
    ).fit([e.inputs["review"] for e in data.train], [e.target for e in data.train])
    with load(place / "out" / SKIN) as skin:
        assert isinstance(skin, ClassicalPredictor)
        predictions = skin.predict([e.inputs for e in data.valid])
    assert list(pipeline.classes_) == ["negative", "positive"]
    expected_log_probs = pipeline.predict_log_proba([e.inputs["review"] for e in data.valid])
    np.testing.assert_allclose(
        [list(prediction.scores.values()) for prediction in predictions], expected_log_probs, atol=1e-5
    )
    reported = [row["prediction"] for row in report.data["rows"]["valid"]["from_scratch"]]
    assert sorted(reported) == sorted(pipeline.predict([e.inputs["review"] for e in data.valid]))


def test_the_same_command_takes_it_over_and_it_is_made_again_bit_for_bit(
    ladder_run: tuple[Report, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, place = ladder_run
    monkeypatch.setenv("BEDPLATE_HOME", str(place / "home"))
    reproduction = reproduce(place / "out" / SKIN, tmp_path / "again")
    assert reproduction.status == "identical"
    assert (reproduction.equal_answers, reproduction.rows) == (reproduction.rows, report.row("from_scratch")["n"])  # type: ignore[index]
    with Catalog.open() as catalog:
        catalog.add([place / "out"])
        (catalog_entry,) = (
            candidate
            for candidate in catalog.entries("skin")
            if candidate.name == "toy-sentiment-from-scratch" and candidate.path
        )
    assert (catalog_entry.details["kind"], catalog_entry.details["base"]) == ("classical", None)


def test_it_is_evaluated_predicted_with_compared_and_looked_after(
    ladder_run: tuple[Report, Path], tmp_path: Path
) -> None:
    report, place = ladder_run
    task = load_task(place / "task.yaml")
    with load(place / "out" / SKIN) as skin:
        valid = report.row("from_scratch")
        assert valid is not None
        assert evaluate(skin, task, split="valid").estimate == valid["estimate"]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(["great", "broke"])))
    with pytest.raises(SystemExit) as stopped:
        main(["predict", str(place / "out" / SKIN), str(rows), "--out", str(tmp_path / "out.jsonl")])
    assert not stopped.value.code
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [answer["output"] for answer in answers] == ["positive", "negative"]
    fresh = write_rows(tmp_path / "fresh.jsonl", groups=60, seed=77)
    comparison = bedplate.compare(place / "out" / SKIN, place / "out" / "skins" / "probe", fresh, usd_per_hour=1.0)
    assert comparison.a.evaluation.estimate > 0.85
    assert comparison.a.usd_per_1k_calls > 0  # type: ignore[operator]
    frame = pd.read_json(fresh, lines=True)
    by_table = bedplate.compare(place / "out" / SKIN, place / "out" / "skins" / "probe", frame)
    assert by_table.comparison.difference == comparison.comparison.difference
    assert not by_table.exploratory  # the same question about the same rows is one look
    on_part = bedplate.compare(place / "out" / SKIN, place / "out" / "skins" / "probe", frame.iloc[:80])
    assert repr(on_part).startswith("<comparison EXPLORATORY")  # another, about some of them
    relabelled = yaml.safe_load((place / "task.yaml").read_text())
    relabelled["output"]["labels"] = ["yes", "no"]
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(relabelled))
    with pytest.raises(UsageError, match="its labels are yes, no, and the skin answers negative, positive"):
        bedplate.compare(place / "out" / SKIN, place / "out" / "skins" / "probe", frame, task_file=other)
    with pytest.raises(DataError, match="rows has no column 'label' with the right answers; add it"):
        bedplate.compare(place / "out" / SKIN, place / "out" / "skins" / "probe", frame.drop(columns="label"))
    watched = drift(place / "out" / SKIN, fresh)
    assert any("compared by their words" in note for note in watched.notes)
    assert watched.quality is not None


def test_a_cascade_begins_with_it(ladder_run: tuple[Report, Path], tmp_path: Path) -> None:
    _, place = ladder_run
    first, second = (read_skin(place / "out" / "skins" / rung) for rung in ("from_scratch", "probe"))
    texts = ["great works", "it broke", "nothing known", "terrible great", "quality"]
    with load(place / "out" / SKIN) as classical, load(place / "out" / "skins" / "probe") as two:
        alone = [classical.predict(texts), two.predict(texts)]  # type: ignore[union-attr]
    sure = sorted(math.exp(p.scores[p.output]) for p in alone[0])
    threshold = (sure[1] + sure[2]) / 2
    cascade = cascaded("both", first, second, threshold)
    with load(write_skin(cascade, tmp_path / "both")) as loaded:
        assert isinstance(loaded, CascadePredictor)
        predictions = loaded.predict(texts)
    for a, b, answer in zip(*alone, predictions, strict=True):
        unsure = math.exp(a.scores[a.output]) < threshold
        assert (answer.passed_on, answer.output) == (unsure, (b if unsure else a).output)


def test_a_task_that_abstains_has_it_withhold_what_it_is_unsure_of(tmp_path: Path, tiny_base: Path) -> None:
    task = write_task(tmp_path, tiny_base)
    report = adapt(task, tmp_path / "out", rungs=["from_scratch"], overrides=["output.abstain={coverage: 0.8}"])
    skin = read_skin(tmp_path / "out" / SKIN)
    assert skin.output.abstain.answer == "abstain"  # type: ignore[union-attr]
    row = report.row("from_scratch")
    assert row is not None
    assert 0.8 <= row["coverage"] < 1.0


def test_overrides_do_not_name_it_a_base(tmp_path: Path, tiny_base: Path) -> None:
    """It needs no base, and a task without any is refused as before: nothing else could be compared with it."""
    with pytest.raises(ConfigError, match="bases"):
        adapt(write_task(tmp_path, tiny_base, bases=[]), tmp_path / "out", rungs=["from_scratch"])
