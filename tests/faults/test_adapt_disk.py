"""A ladder whose disk fills up at any of its writes, that is killed in any of its rungs, or has no time for any."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.adaptation.conftest import NATIVE_SHAPE, write_task
from tests.adaptation.test_bases import endpoint
from tests.inference.fake_labeller import Labeller
from tests.inference.fake_server import fake_server
from tests.tiny import write_tiny_base

from bedplate.adaptation.ladder import adapt
from bedplate.adaptation.report.report import Report
from bedplate.adaptation.rungs import RUNGS
from bedplate.core.errors import UsageError

QUICK = ["majority", "zero_shot", "probe"]
GROUPS = 24


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base") / "tiny", layers=2, **NATIVE_SHAPE)


@pytest.fixture(scope="module", autouse=True)
def fewest_calls() -> Iterator[None]:
    """Latency is read off a few calls, not of up to 64, and p95 off as few as can show it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bedplate.adaptation.context.context.LATENCY_SECONDS", 0.0)
        patch.setattr("bedplate.adaptation.context.context.LATENCY_CALLS", 6)
        yield


class Disk:
    """Refuses the writes from a certain one on, until it is emptied."""

    def __init__(self) -> None:
        self.writes, self.room = 0, 10**9

    def filling(self, call: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **options: object) -> object:
            self.writes += 1
            if self.writes > self.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*arguments, **options)

        return counted


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(os, "fsync", disk.filling(os.fsync))
    monkeypatch.setattr(Path, "write_bytes", disk.filling(Path.write_bytes))
    return disk


def test_wherever_the_disk_fills_up_the_same_command_goes_on(tmp_path: Path, base: Path, disk: Disk):
    task = write_task(tmp_path, base, groups=GROUPS, rungs=QUICK)
    first = disk.writes
    whole = adapt(task, tmp_path / "whole")
    needed = disk.writes - first
    assert needed > 20
    out, report = tmp_path / "out", None
    stopped, messages = list[int](), list[str]()
    room = 0
    while report is None:
        assert room < needed
        disk.writes, disk.room = 0, room
        finished = {path: path.stat().st_mtime_ns for path in out.glob("rungs/*/result.json")}
        try:
            report = adapt(task, out)
        except UsageError as error:
            messages.append(error.message)
            stopped.append(len(finished))
        assert not list(out.rglob("*.tmp"))
        assert all(path.stat().st_mtime_ns == at for path, at in finished.items()), "a finished rung was done again"
        room += max(1, needed // 8)
    assert all("No space left on device" in message and "make room" in message for message in messages)
    assert set(stopped) >= {0, 1}  # before the first rung, and with some of them finished
    assert max(stopped) >= 2
    assert {row["status"] for row in report.rungs} == {"done"}
    assert _answers(report) == _answers(whole)


def _answers(report: Report) -> dict[str, list[str]]:
    return {name: [row["prediction"] for row in rows] for name, rows in report.data["rows"]["valid"].items()}


def _killed_in_each(task: Path, out: Path, monkeypatch: pytest.MonkeyPatch, names: list[str]) -> Report:
    """Each rung is killed once when all its work is done and nothing says so yet."""
    fitted: dict[str, int] = {}
    for name in names:
        rung_class = type(RUNGS[name])
        if getattr(rung_class.fit, "__name__", "") == "killed":  # one class serves several names
            continue
        original = rung_class.fit

        def killed(self, context, plan, directory, fit=original):
            result = fit(self, context, plan, directory)
            fitted[self.name] = fitted.get(self.name, 0) + 1
            if fitted[self.name] == 1:
                raise KeyboardInterrupt
            return result

        monkeypatch.setattr(rung_class, "fit", killed)
    for _ in range(len(names) + 1):
        try:
            report = adapt(task, out)
            break
        except KeyboardInterrupt:
            assert not (out / "report.json").exists()
    else:
        raise AssertionError(f"it does not come to an end: {fitted}")
    completed = [row["rung"] for row in report.rungs if row["split"] == "valid" and row["status"] == "done"]
    assert {name: fitted[name] for name in completed} == dict.fromkeys(completed, 2)
    return report


def test_killed_at_the_end_of_each_rung(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch):
    with fake_server(Labeller()) as server:
        assert isinstance(server, Labeller)
        names = ["zero_shot", "probe", "hosted"]
        task = write_task(tmp_path, base, groups=GROUPS, rungs=names, hosted=[endpoint(server)])
        report = _killed_in_each(task, tmp_path / "out", monkeypatch, names)
        rows = report.data["rows"]
        texts = [body["messages"][-1]["content"] for body in server.requests]
    assert {row["status"] for row in report.rungs} == {"done"}
    assert len(texts) == len(set(texts))  # no answer was paid for twice
    assert len(rows["valid"]["hosted"]) <= len(texts)


@pytest.mark.slow
def test_killed_at_the_end_of_every_rung_there_is(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch):
    with fake_server(Labeller()) as server:
        assert isinstance(server, Labeller)
        task = write_task(tmp_path, base, hosted=[endpoint(server)], prompt="{{ review }}\nSentiment:")
        report = _killed_in_each(task, tmp_path / "out", monkeypatch, list(RUNGS))
    assert {row["rung"].partition("@")[0] for row in report.rungs} == set(RUNGS)
    assert "failed" not in {row["status"] for row in report.rungs}


def test_no_time_for_any_rung_is_said_of_each(tmp_path: Path, base: Path):
    with fake_server(Labeller()) as server:
        assert isinstance(server, Labeller)
        names = ["zero_shot", "few_shot", "probe", "lora", "hosted", "cascade"]
        task = write_task(tmp_path, base, groups=GROUPS, rungs=names, hosted=[endpoint(server)])
        report = adapt(task, tmp_path / "out", budget=0.01)
        assert server.requests == []
    assert {row["status"] for row in report.rungs} == {"skipped"}
    for row in report.rungs[:-1]:
        assert "of the budget are left" in row["reason"], row
    assert "needs two skins" in report.row("cascade")["reason"]
    assert report.verdict["status"] == "OUT_OF_BUDGET"
    assert report.data["data"]["test_openings"] == []
