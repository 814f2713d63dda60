"""Measurements of a machine are kept, bound to all they depend on; a home that cannot be written costs a warning."""

from __future__ import annotations

from pathlib import Path

import pytest

from bedplate.core.measured import measured_once

pytestmark = pytest.mark.usefixtures("own_machine")


def test_kept_by_kind_and_key(isolated_home: Path) -> None:
    made: list[float] = []

    def once(kind: str, **key: object) -> float:
        return measured_once(kind, key, lambda: made.append(float(len(made))) or made[-1], str, float)

    assert [once("a", cpu="x"), once("a", cpu="x"), once("a", cpu="y"), once("b", cpu="x")] == [0.0, 0.0, 1.0, 2.0]
    files = sorted((isolated_home / "machine").iterdir())
    assert [file.name.partition("-")[0] for file in files] == ["a", "a", "b"]
    for file in files:
        file.write_text('{"key": {"cpu": "z"}, "found": "9"}')  # of another machine, under this one's name
    assert once("b", cpu="x") == 3.0
    assert once("b", cpu="x") == 3.0


def test_a_home_that_cannot_be_written(monkeypatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BEDPLATE_HOME", str(tmp_path / "file"))
    assert measured_once("a", {}, lambda: 1.5, str, float) == 1.5
    assert "is not kept, and is made again next time" in caplog.text
