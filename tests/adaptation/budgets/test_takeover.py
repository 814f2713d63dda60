"""What is finished of a rung is taken over: by the same command after an interruption, and by a larger fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import RungPlan, Skip
from bedplate.adaptation.ladder import adapt
from bedplate.adaptation.report.report import Report
from bedplate.adaptation.rungs import RUNGS

LORA: Any = type(RUNGS["lora"])


@pytest.fixture(scope="module", autouse=True)
def fewest_seeds() -> None:
    """Low-rank weights are fitted from three seeds."""


def test_no_finished_seed_is_trained_again(toy_task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first fit has one seed of three, the larger one takes it over; both of its own are made in two runs."""
    plan, train, trained = LORA.plan, LORA.train, list[str]()

    def one_seed(self: Any, context: Context) -> RungPlan | Skip:
        planned = plan(self, context)
        if isinstance(planned, Skip) or context.before is not None:
            return planned
        settings = {**planned.settings, "seeds": 1, "prompts": planned.settings["prompts"][:1]}
        return RungPlan(settings, planned.seconds / 3, ("2 of 3 seeds were left out: no time",))

    def counted(self: Any, context: Context, lessons: Any, config: Any, work: Path, output: Any) -> Any:
        trained.append(str(work.relative_to(tmp_path / "out")))
        if len(trained) == 3:
            raise KeyboardInterrupt
        return train(self, context, lessons, config, work, output)

    monkeypatch.setattr(LORA, "plan", one_seed)
    monkeypatch.setattr(LORA, "train", counted)

    def climb() -> Report:
        return adapt(toy_task, tmp_path / "out", rungs=["zero_shot", "lora"], budget=600)

    with pytest.raises(KeyboardInterrupt):
        climb()
    assert trained[0] == "rungs/lora/seed-0"
    assert [place.partition("/rungs/")[0] for place in trained[1:]] == ["larger", "larger"]
    report, again = climb(), climb()
    assert len(trained) == 4
    assert trained[3] == trained[2]
    (row,) = (row for row in report.rungs if row["rung"] == "lora" and row["split"] == "valid")
    assert len(row["seeds"]) == 3
    assert "a smaller fit before scored" in row["reason"] or "a larger fit in the time that was left" in row["reason"]
    assert again.data["rungs"] == report.data["rungs"]
    growth = json.loads((tmp_path / "out" / "larger.json").read_text())
    assert (growth["names"], growth["done"]) == (["lora"], True)
    assert not (tmp_path / "out" / "larger").exists()
