"""What a machine is set up with takes nothing of a climb's time, and a climb that had too little goes on with more."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from tests.adaptation.conftest import write_task

from bedplate.adaptation import ladder
from bedplate.adaptation.context import clock
from bedplate.adaptation.context.outcome import no_time
from bedplate.adaptation.ladder import adapt
from bedplate.adaptation.rungs import RUNGS
from bedplate.core.errors import DataError
from bedplate.inference.native import library


def test_a_kernel_that_has_to_be_compiled_takes_none_of_the_time(
    toy_task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    passed, open_level = [0.0], library._open
    later = SimpleNamespace(**vars(time) | {"monotonic": lambda: time.monotonic() + passed[0]})
    monkeypatch.setattr(clock, "time", later)

    def compiling(level: Any) -> Any:
        passed[0] = 500.0
        return open_level(level)

    monkeypatch.setattr(library, "_open", compiling)
    report = adapt(toy_task, tmp_path / "out", rungs=["majority", "probe"], budget=300)
    assert passed == [500.0]
    assert re.search(r"set-up took 5\d\d s; the time limit of 300 s begins now", capsys.readouterr().err)
    assert report.row("probe")["status"] == "done"
    assert report.data["timing"]["seconds"] < 300


def test_a_climb_goes_on_with_more_time(
    toy_task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing with a base has the time: test stays closed, for the next verdict would otherwise be the second on its
    rows. With more time what is finished is taken over, and that verdict is the first."""
    slow, fitted = 1e3, list[str]()
    plans = {name: type(RUNGS[name]).plan for name in ("zero_shot", "probe")}
    fits = {name: type(RUNGS[name]).fit for name in ("from_scratch", "zero_shot", "probe")}
    for name, plan in plans.items():

        def slowed(self: Any, context: Any, plan: Any = plan) -> Any:
            return plan(self, context) if context.clock.limit > slow else no_time(slow)

        monkeypatch.setattr(type(RUNGS[name]), "plan", slowed)
    for name, fit in fits.items():

        def counted(self: Any, *arguments: Any, fit: Any = fit) -> Any:
            fitted.append(self.name)
            return fit(self, *arguments)

        monkeypatch.setattr(type(RUNGS[name]), "fit", counted)
    rungs = ["majority", "from_scratch", "zero_shot", "probe"]
    report = adapt(toy_task, tmp_path / "out", rungs=rungs, budget=120)
    assert report.verdict["status"] == "OUT_OF_BUDGET"
    assert report.data["ledger"] is None
    assert {row["split"] for row in report.rungs} == {"valid"}
    assert report.verdict["reason"] == (
        "No rung with a base had the time, so test stays closed. Continue with --budget 17m: what is finished is kept. "
        "Or judge what there is: --rungs from_scratch."
    )
    assert report.data["nominees"]["reasons"] == {"from_scratch": "not judged before a rung with a base has a result"}
    assert fitted == ["from_scratch"]
    shown = capsys.readouterr().err
    assert shown.startswith(
        "no PASS is possible on 20 test rows in 10 groups: at least 40 groups are needed to show accuracy"
    )
    assert "opening" not in shown
    assert "\nfrom_scratch  accuracy " in shown  # a line for each rung, also where there is no terminal
    assert "\nprobe         skipped" in shown
    report = adapt(toy_task, tmp_path / "out", rungs=rungs, budget=1200)
    assert fitted == ["from_scratch", "probe", "zero_shot"]
    assert report.data["ledger"]["number"] == 1
    assert {report.row(name)["status"] for name in rungs} == {"done"}
    adapt(toy_task, tmp_path / "out", rungs=rungs, budget=2400)
    assert fitted == ["from_scratch", "probe", "zero_shot"]


def test_what_a_look_at_test_costs_is_said_before(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    task = write_task(tmp_path / "task", tiny_base, groups=160)
    monkeypatch.setattr(type(RUNGS["lora"]), "plan", lambda self, context: no_time(1e3))
    adapt(task, tmp_path / "out", rungs=["probe", "lora"], budget=120)
    shown = capsys.readouterr().err
    assert "\nopening 80 test rows for verdict 1 on them; without lora, for lack of time." in shown
    assert "needs 98.5% confidence instead of 93.9%: about 58% more rows for the same power" in shown
    adapt(task, tmp_path / "out", rungs=["probe", "lora"], budget=120)
    assert "opening" not in capsys.readouterr().err  # the same question costs nothing again
    first = (tmp_path / "out" / "report.json").read_bytes()
    assert not list((tmp_path / "out").glob("report-*"))
    adapt(task, tmp_path / "out", overrides=["adapt.target.value=0.31"], rungs=["probe"], budget=120)
    assert "opening 80 test rows for verdict 2 on them: it is exploratory and needs" in capsys.readouterr().err
    assert (tmp_path / "out" / "report-1.json").read_bytes() == first
    assert (tmp_path / "out" / "report-1.html").is_file()
    assert json.loads((tmp_path / "out" / "report.json").read_bytes())["ledger"]["number"] == 2


@pytest.mark.slow
def test_what_test_takes_beyond_the_limit_is_said_before(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    task = write_task(tmp_path / "task", tiny_base, groups=160)
    monkeypatch.setattr(ladder, "seconds_on_test", lambda *_: 100.0)
    adapt(task, tmp_path / "out", rungs=["majority", "probe"], budget=60)
    shown = capsys.readouterr().err
    assert re.search(r"test takes about 100 s, \d\d s beyond the time limit: it is not cut short", shown)


def test_a_label_that_test_lacks_or_has_hardly_is_told_before_anything_is_tried(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """macro-F1 weighs every label alike: with one that no row of test has, nothing can be told of any skin."""
    task = write_task(tmp_path / "task", tiny_base, groups=100, rungs=["majority"])
    rows = [json.loads(line) for line in (task.parent / "rows.jsonl").read_text().splitlines()]
    values = yaml.safe_load(task.read_text())
    values["metric"], values["output"]["labels"] = "macro_f1", ["negative", "positive", "positiv"]

    def written(times: int) -> None:
        changed = [row | {"label": "positiv"} if i < times else row for i, row in enumerate(rows)]
        (task.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
        task.write_text(yaml.safe_dump(values))

    written(0)
    with pytest.raises(
        DataError, match=r"^no row has the label 'positiv'; add such rows, or take it off output\.labels"
    ):
        adapt(task, tmp_path / "none")
    written(2)  # of one group, which is in train
    with pytest.raises(DataError, match=r"no verdict is possible by macro_f1.* of 25 test groups 0 have the label"):
        adapt(task, tmp_path / "one")
    assert not (tmp_path / "one").exists()
    written(24)
    report = adapt(task, tmp_path / "few")
    told = (
        r"no verdict is possible by macro_f1.* of 25 test groups [1-9] have the label 'positiv', and at least 10 must\."
    )
    assert re.search(told, capsys.readouterr().err)
    assert report.verdict["status"] in ("INSUFFICIENT_DATA", "FAIL")
