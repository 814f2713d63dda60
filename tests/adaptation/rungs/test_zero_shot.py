"""Which ways to ask are left where there is no time for all."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.adaptation.written import write_task

from bedplate.adaptation.context.outcome import RungPlan
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
