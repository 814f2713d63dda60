"""Measurements of a machine are kept, bound to all they depend on; a home that cannot be written costs a warning."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tests.core.clocks import set_monotonic

from bedplate.core import measurements
from bedplate.core.measurements import Allowance, measured_once, patience
from bedplate.core.processor import processor

pytestmark = pytest.mark.usefixtures("own_machine")


def test_kept_by_kind_and_key(isolated_home: Path) -> None:
    measurements: list[float] = []

    def measure(category: str, **key: object) -> float:
        return measured_once(
            category, key, lambda: measurements.append(float(len(measurements))) or measurements[-1], str, float
        )

    assert [measure("a", cpu="x"), measure("a", cpu="x"), measure("a", cpu="y"), measure("b", cpu="x")] == [
        0.0,
        0.0,
        1.0,
        2.0,
    ]
    files = sorted((isolated_home / "machine").iterdir())
    assert [file.name.partition("-")[0] for file in files] == ["a", "a", "b"]
    for file in files:
        file.write_text('{"key": {"cpu": "z"}, "found": "9"}')  # of another machine, under this one's name
    assert measure("b", cpu="x") == 3.0
    assert measure("b", cpu="x") == 3.0


def test_an_allowance_is_spent_once_by_what_is_nested_and_shortens_what_follows(
    isolated_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, loads = [0.0], [100.0]
    set_monotonic(monkeypatch, measurements, lambda: clock[0])
    monkeypatch.setattr("bedplate.core.measurements.load_average", lambda: loads[0])

    def measure() -> float:
        clock[0] += 4.0
        return clock[0]

    def found(cpu: str) -> float:
        return measured_once("a", {"cpu": cpu}, measure, str, float)

    allowance = Allowance(6.0)
    with allowance.applied():
        assert patience(3.0) == 3.0
        with allowance.spending():
            assert found("x") == 4.0
        assert (allowance.left, patience(3.0)) == (2.0, 2.0)
        assert found("y") == 8.0
        assert (allowance.left, patience(3.0)) == (0.0, 0.0)
        assert found("y") == 8.0
    assert patience(3.0) == 3.0
    loads[0] = 60.0  # still busy, and more than half of what it was
    assert (found("x"), found("y")) == (4.0, 8.0)
    loads[0] = 0.0
    assert found("y") == 12.0  # what was cut short


def test_nobody_waits_for_the_disk(monkeypatch: pytest.MonkeyPatch, isolated_home: Path) -> None:
    waited: list[int] = []
    monkeypatch.setattr(os, "fsync", waited.append)
    assert measured_once("a", {}, lambda: 1.5, str, float) == 1.5
    assert waited == []
    (path,) = (isolated_home / "machine").iterdir()
    path.write_bytes(b"")  # as a crash may leave it
    assert measured_once("a", {}, lambda: 2.5, str, float) == 2.5


def test_a_home_that_cannot_be_written(monkeypatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BEDPLATE_HOME", str(tmp_path / "file"))
    assert measured_once("a", {}, lambda: 1.5, str, float) == 1.5
    assert "is not kept, and is made again next time" in caplog.text


def test_what_other_work_had_disturbed_is_measured_again_once_that_is_gone(
    isolated_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measurements: list[float] = []
    loads: list[float] = []
    monkeypatch.setattr(os, "getloadavg", lambda: (loads[0], 0.0, 0.0))
    processors = processor().online

    def measure(load: float, *, timed: bool = True) -> float:
        """Under a load average of so many processes for each processor."""
        loads[:] = [load * processors]
        category = "times" if timed else "hash"
        return measured_once(
            category,
            {},
            lambda: measurements.append(float(len(measurements))) or measurements[-1],
            str,
            float,
            timed=timed,
        )

    assert [measure(5.0), measure(5.0), measure(3.0)] == [0.0, 0.0, 0.0]  # busy still: nothing better can be had
    assert [measure(0.5), measure(5.0), measure(0.1)] == [1.0, 1.0, 1.0]  # measured in quiet, which stands
    (path,) = (isolated_home / "machine").iterdir()
    assert json.loads(path.read_text())["load"] == 0.5 * processors

    path.write_text('{"key": {}, "found": "9"}')  # of an earlier version, which did not say its load
    assert [measure(5.0), measure(0.5), measure(0.5)] == [9.0, 2.0, 2.0]

    assert [measure(5.0, timed=False), measure(0.5, timed=False)] == [3.0, 3.0]  # a hash is the same under any load


def test_a_system_that_does_not_say_its_load(isolated_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "getloadavg")
    calls: list[int] = []
    for _ in range(2):
        measured_once("a", {}, lambda: calls.append(1), lambda _: 0, lambda _: 0)
    assert calls == [1]
