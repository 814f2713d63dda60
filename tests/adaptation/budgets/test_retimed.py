"""What is opened to time its calls again is closed again, whatever it is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bedplate.adaptation.search import evaluate_on_test


class TwoSkins:
    """As much as a cascade's predictor is asked here: its skins' weights are in their engines while it is open."""

    skin, warnings = SimpleNamespace(kind="cascade"), list[str]()

    def __init__(self) -> None:
        self.open = True

    def predict(self, rows: Any, *, one_by_one: bool = False, tenant: str = "") -> list[Any]:
        raise AssertionError("the calls of a cascade are those of its parts")

    def close(self) -> None:
        self.open = False


def test_a_cascade_is_closed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate_on_test, "config_of", lambda *_: "configuration")
    opened = TwoSkins()
    rung = SimpleNamespace(name="cascade", predictor=lambda *_: opened)
    candidate: Any = SimpleNamespace(
        rung=rung, context=SimpleNamespace(out=tmp_path), rung_result=lambda result: result
    )
    result: Any = SimpleNamespace(skin_id="skin")
    assert evaluate_on_test.retimed(candidate, result) is result
    assert not opened.open
