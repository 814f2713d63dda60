"""The weights that a base answers in from before the first rung on: taken where a sample shows that little is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.adaptation.conftest import NATIVE_SHAPE, write_rows, write_task
from tests.adaptation.test_formats import make_quick, needs_native, poisoned
from tests.tiny import write_tiny_base

from bedplate.adaptation.context.bases import TaskBase
from bedplate.adaptation.ladder import adapt
from bedplate.adaptation.postprocess.reproduce import reproduce
from bedplate.adaptation.search import base_format, formats, start
from bedplate.inference.predict.loaded import load
from bedplate.skins.files import read_skin

EASY = {"target": {"value": 0.3, "confidence": 0.9}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("wide") / "wide", dtype=torch.bfloat16, **NATIVE_SHAPE)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """int8 is twice as fast as now, whatever this machine measures, and any call fast enough."""
    make_quick(monkeypatch)
    monkeypatch.setattr(base_format, "CLEARLY", 0.0)


@pytest.fixture
def task(base: Path, tmp_path: Path) -> Path:
    rows = write_rows(tmp_path / "rows.jsonl", groups=260)
    return write_task(tmp_path, base, rows=rows, formats={"weights": ["int8"], "margin": 0.05}, **EASY)


def refuse(*_: Any) -> Any:
    raise AssertionError("asked again")


@needs_native
def test_rungs_are_fitted_judged_and_served_in_the_format(
    task: Path, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(formats, "make_trial", refuse)
    report = adapt(task, tmp_path / "out", rungs=["zero_shot", "probe", "lora"])
    assert "the base answers in int8: " in capsys.readouterr().err
    rows = [row for row in report.data["rungs"] if row["rung"] in {"zero_shot", "probe", "lora"}]
    assert len(rows) >= 4
    assert {(row["weights"], row["kernel"]) for row in rows} == {("int8", "native")}
    assert report.data["lineage"]["bases"][0]["weights"] == "int8"
    for name, chosen in report.data["formats"].items():
        assert (chosen["weights"], chosen["kept"], chosen["tried"]) == ("int8", None, []), name
        assert chosen["reason"].startswith("the base answers in int8: ")
        assert " of 128 answers to the plain prompt changed, worse by at most " in chosen["reason"]
    skin = tmp_path / "out" / "skins" / "lora"
    assert read_skin(skin).evaluated_with.weights == "int8"
    with load(skin) as loaded:
        assert loaded.engine.weights == "int8"
    # the same command asks nothing again, and neither does a process that fits one rung of it
    monkeypatch.setattr(base_format, "_compared", refuse)
    again = adapt(task, tmp_path / "out", rungs=["zero_shot", "probe", "lora"])
    assert [row["estimate"] for row in again.data["rungs"]] == [row["estimate"] for row in report.data["rungs"]]
    with start.reopened(tmp_path / "out") as contexts:
        assert contexts[0].at.facts.weights == contexts[0].model.engine.weights == "int8"
    reproduction = reproduce(skin, tmp_path / "again")
    assert (reproduction.status, reproduction.differences) == ("identical", ())


@needs_native
def test_of_several_formats_the_one_with_the_fastest_calls_is_taken(
    task: Path, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the measurement of plans made of them: it was of other prompts."""
    tenants: list[str] = []

    def judged(*_: Any, tenant: str) -> tuple[float, str]:
        tenants.append(tenant)
        return {"format int8": 1.4, "format int4": 1.9}[tenant], "so much"

    monkeypatch.setattr(base_format, "_judged", judged)
    report = adapt(task, tmp_path / "out", rungs=["zero_shot"], overrides=["adapt.formats=[int8, int4]"])
    assert tenants == ["format int8", "format int4"]
    assert report.row("zero_shot")["weights"] == "int4"
    assert json.loads((tmp_path / "out/formats/base.json").read_text())["reason"] == "int4: so much; int8: so much"


@needs_native
@pytest.mark.parametrize("why", ["worse", "slower", "rows", "time", "asked", "none"])
def test_a_base_keeps_its_weights(
    why: str, task: Path, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides: list[str] = []
    if why == "worse":
        monkeypatch.setattr(TaskBase, "in_format", poisoned)
    if why == "slower":
        monkeypatch.setattr(base_format, "CLEARLY", 1e9)
    if why == "rows":
        monkeypatch.setattr(base_format, "ROWS", 20)
    if why == "time":
        monkeypatch.setattr(base_format, "SHARE", 1e-9)
    if why == "asked":
        overrides = ["adapt.weights=float32"]
    if why == "none":
        overrides = ["adapt.formats=none"]
    report = adapt(task, tmp_path / "out", rungs=["zero_shot"], overrides=overrides, budget=600)
    assert report.data["lineage"]["bases"][0]["weights"] != "int8"
    recorded = tmp_path / "out" / "formats" / "base.json"
    assert recorded.exists() is (why not in {"asked", "none"})
    if recorded.exists():
        chosen = json.loads(recorded.read_text())
        assert chosen["weights"] is None
        reasons = {
            "worse": "which does not rule out a loss of 0.05",
            "slower": "; the median call takes ",
            "rows": "20 validation rows are too few",
            "time": "quantising takes about",
        }
        assert reasons[why] in chosen["reason"]
