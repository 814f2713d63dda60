"""Which ways to ask are left where there is no time for all."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from tests.adaptation.written import write_task

from bedplate.adaptation.context.outcome import RungPlan, Skip
from bedplate.adaptation.ladder import adapt
from bedplate.adaptation.rungs.zero_shot import ZeroShot
from bedplate.evaluation.task import load_task


@pytest.mark.parametrize(
    ("output_type", "chat", "prefix"), [("text", True, "chat"), ("json", True, "chat"), ("text", False, "plain/")]
)
def test_written_answers_are_asked_for_through_the_chat_template(
    tmp_path: Path, output_type: str, chat: bool, prefix: str
):
    """A base that was tuned for chat ends its answers there; where it has no template, a plain form is left."""
    task = load_task(write_task(tmp_path, Path("nowhere"), output_type))
    tokenizer = SimpleNamespace(chat=object() if chat else None)
    context: Any = SimpleNamespace(
        task=task,
        labels=(),
        model=SimpleNamespace(tokenizer=tokenizer),
        valid=range(40),
        room=lambda share: 1.0,
        throughput=SimpleNamespace(rows=float),
        timing=0.0,
        seconds_left=1000.0,
    )
    plan = ZeroShot().plan(context)
    assert isinstance(plan, RungPlan)
    (only,) = plan.settings["variants"]
    assert only.startswith(prefix)
    assert all(part.endswith("was not tried: no time") for part in plan.left_out)


@pytest.mark.parametrize(("seconds_left", "rows"), [(500.0, None), (100.0, 83), (64.5, 64), (60.0, 0)])
def test_fewer_rows_are_asked_before_nothing_is_asked(tmp_path: Path, seconds_left: float, rows: int | None) -> None:
    context: Any = SimpleNamespace(
        task=load_task(write_task(tmp_path, Path("nowhere"), "text")),
        labels=(),
        model=SimpleNamespace(tokenizer=SimpleNamespace(chat=None)),
        valid=range(400),
        room=lambda share: share * seconds_left,
        throughput=SimpleNamespace(rows=float),
        timing=0.25,
        seconds_left=seconds_left,
    )
    plan = ZeroShot().plan(context)
    if rows == 0:
        assert isinstance(plan, Skip)
        assert plan.seconds == 64.25  # what its smallest version takes
        return
    assert isinstance(plan, RungPlan)
    assert plan.settings.get("rows") == rows
    assert (f"{400 - (rows or 400)} of 400 valid rows were left out: no time" in plan.left_out) == (rows is not None)
    assert plan.seconds == (rows or 400) + 0.25


def test_a_part_of_valid_is_reported_as_such(toy_task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside rungs that answered all rows: in the table, the comparisons, the examples and the cascade."""
    settings = {"variants": ["plain/form"], "first_rows": 8, "rows": 12}
    monkeypatch.setattr(
        ZeroShot, "plan", lambda rung, context: RungPlan(settings, 1.0, ("8 of 20 valid rows were left out: no time",))
    )
    task = yaml.safe_load(toy_task.read_text())
    task["adapt"] |= {"rungs": ["zero_shot", "from_scratch", "probe", "few_shot", "cascade"]}
    task["adapt"]["target"] = {"against": "from_scratch", "margin": 0.5, "confidence": 0.9}
    task["output"]["abstain"] = {"min_confidence": 0.4, "answer": "unsure"}
    toy_task.write_text(yaml.safe_dump(task))
    report = adapt(toy_task, tmp_path / "out")
    row = report.row("zero_shot")
    assert (row["status"], row["n"], report.row("probe")["n"]) == ("done", 12, 20)
    assert "judged on 12 of 20 valid rows" in row["reason"]
    assert len(report.data["rows"]["valid"]["zero_shot"]) == 12
    assert any(part["rung"] == "zero_shot" and "8 of 20" in part["reason"] for part in report.data["not_tried"])
