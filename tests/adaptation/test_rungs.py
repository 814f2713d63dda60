"""What others need to know of a rung stands on the rung: one row in the table is all that a new one takes."""

from __future__ import annotations

import ast
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from tests.adaptation.conftest import write_task

import bedplate.adaptation
from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import RungPlan, RungResult
from bedplate.adaptation.curve import learning_curve
from bedplate.adaptation.ladder import adapt
from bedplate.adaptation.rungs import RUNGS
from bedplate.adaptation.rungs.rung import Rung, Traits
from bedplate.adaptation.rungs.successive_halving import HalvingStage, Variant, choose
from bedplate.adaptation.rungs.zero_shot import finish
from bedplate.adaptation.search import run_rung
from bedplate.adaptation.task.rung_table import RUNG_TABLE, RungRow
from bedplate.adaptation.task.spec import AdaptSpec
from bedplate.core.executor import Job, LocalExecutor, Outcome

ROOM = Path(bedplate.adaptation.__path__[0])
LATER = {"own_prompt"}
"""A key of the task file that is refused by name."""


class Toy(Rung):
    """The prompt that there is, and nothing is tried."""

    name = "toy"
    traits = Traits(side="prompt")

    def plan(self, context: Context) -> RungPlan:
        return RungPlan({"labels": len(context.train)})

    def fit(self, context: Context, plan: RungPlan, directory: Path) -> RungResult:
        start = time.perf_counter()
        winner, order, tried = choose(context, [Variant("toy", *context.default_prompt())], [HalvingStage(None, 1)])
        return finish(context, self.name, winner, order, tried, plan, start)


class Travelling(LocalExecutor):
    """Sends every job through JSON before it runs."""

    def run(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        return super().run(Job.from_json(json.loads(json.dumps(job.to_json()))) for job in jobs)


def test_a_new_rung_is_one_row(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RUNG_TABLE, "toy", RungRow("a toy", f"{__name__}:Toy"))
    monkeypatch.setattr(run_rung, "LocalExecutor", Travelling)
    monkeypatch.setattr(learning_curve, "DRAWS", 1)
    task, out = write_task(tmp_path / "task", tiny_base, groups=24), tmp_path / "out"
    report = adapt(task, out, rungs=["majority", "zero_shot", "toy"], curve=[20])
    row = report.row("toy")
    assert row is not None
    assert (row["status"], row["skin"]) == ("done", "skins/toy")
    assert "toy" in report.data["nominees"]["reasons"]
    assert report.data["lineage"]["skins"]["toy"]["plan"] == {"labels": 24}
    assert [(point["rung"], point["size"]) for point in report.data["curve"]["points"]] == [("toy", 20)]
    with monkeypatch.context() as patch:
        patch.setattr(Toy, "fit", None)  # the same command takes over what is there
        rerun = adapt(task, out, rungs=["majority", "zero_shot", "toy"])
    assert rerun.row("toy") == row


def test_no_rung_is_named_outside_its_room() -> None:
    """Keys of the task file that are called as a rung is are no rungs; one table has a line on each."""
    assert list(RUNG_TABLE) == list(RUNGS) == [rung.name for rung in RUNGS.values()]
    keys = LATER | AdaptSpec.model_fields.keys()
    mentions = [
        (path.relative_to(ROOM).as_posix(), node.lineno, node.value)
        for path in sorted(ROOM.rglob("*.py"))
        if path.parent.name != "rungs" and path.name != "rung_table.py"
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in RUNGS
    ]
    assert [mention for mention in mentions if not (mention[0].startswith("task/") and mention[2] in keys)] == []


def test_what_the_rungs_are() -> None:
    """Who is climbed on what, and what the planner goes by."""

    def having(trait: str, *values: object) -> set[str]:
        return {name for name, rung in RUNGS.items() if getattr(rung.traits, trait) in values}

    references = {"majority", "from_scratch"}
    assert having("side", "reference") == having("needs", "nothing") == references
    assert having("needs", "endpoint") == {"hosted"}
    assert having("needs", "skins") == having("side", "both") == {"cascade"}
    assert having("needs", "base") == {"probe", "lora", "dora"}
    assert having("own_prompt", True) == {*references, "zero_shot", "own_prompt", "probe"}
    trained = {"soft_prompt", "lora", "dora"}
    shown = {"few_shot", "knn_few_shot", "retrieval", "prompt_search"}
    assert having("whole_prompt", True) == shown | trained
    assert having("trained", True) == {*trained, "full"}
    assert having("dear", True) == {"prompt_search"}
    assert having("makes_child", True) == {"full", "continued_pretrain"}
    assert {name: rung.traits.least_labels for name, rung in RUNGS.items() if rung.traits.least_labels} == {"full": 64}
