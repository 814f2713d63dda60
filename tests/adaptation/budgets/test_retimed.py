"""Calls that are timed again before test: the quicker reading stands, and what is opened for it is closed again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bedplate.adaptation.context.outcome import Latency, latency
from bedplate.adaptation.search import run_rung
from bedplate.core.files import sha256_json
from bedplate.inference.predict.callable_skin import SkinPredictor


class TwoSkins(SkinPredictor):
    """As much as a cascade's predictor is asked here: its skins' weights are in their engines while it is open."""

    def __init__(self) -> None:
        self.open, self.warnings = True, list[str]()

    def predict(self, rows: Any, *, one_by_one: bool = False, tenant: str = "") -> list[Any]:
        raise AssertionError("the calls of a cascade are those of its parts")

    def close(self) -> None:
        self.open = False


def test_a_cascade_is_closed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_rung.rung_files, "config_of", lambda *_: "configuration")
    opened = TwoSkins()
    rung = SimpleNamespace(name="cascade", predictor=lambda *_: opened)
    candidate: Any = SimpleNamespace(
        rung=rung, context=SimpleNamespace(out=tmp_path), rung_result=lambda result: result
    )
    result: Any = SimpleNamespace(skin_id="skin")
    assert run_rung.retimed(candidate, result) is result
    assert not opened.open


@dataclass(frozen=True)
class Result:
    """As much as is asked of a result."""

    latency: Latency
    skin_id: str = "skin"


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_the_quicker_reading_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Calls that were timed again are on disk, so that the same command says the same."""
    monkeypatch.setattr(run_rung.rung_files, "config_of", lambda *_: "configuration")
    first = latency([0.1, 0.2, 0.3])
    key = sha256_json(["configuration", "skin"])
    run_rung.rung_files.write_saved(
        tmp_path / "latency" / "lora.json", key, {"latency": vars(first.scaled(factor)), "load": 0.5}
    )
    candidate: Any = SimpleNamespace(rung=SimpleNamespace(name="lora"), context=SimpleNamespace(out=tmp_path))
    result: Any = run_rung.retimed(candidate, Result(first))  # type: ignore[arg-type]
    assert result.latency.p95 == pytest.approx(first.p95 * min(factor, 1.0))
