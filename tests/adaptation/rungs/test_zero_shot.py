"""Which ways to ask are left where there is no time for all."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.adaptation.written import write_task

from bedplate.adaptation.context.outcome import Plan
from bedplate.adaptation.rungs.zero_shot import ZeroShot
from bedplate.evaluation.task import load_task


@pytest.mark.parametrize(
    ("kind", "chat", "kept"), [("text", True, "chat"), ("json", True, "chat"), ("text", False, "plain/")]
)
def test_written_answers_are_asked_for_through_the_chat_template(tmp_path: Path, kind: str, chat: bool, kept: str):
    """A base that was tuned for chat ends its answers there; where it has no template, a plain form is left."""
    task = load_task(write_task(tmp_path, Path("nowhere"), kind))
    tokenizer = SimpleNamespace(chat=object() if chat else None)
    context: Any = SimpleNamespace(
        task=task,
        labels=(),
        model=SimpleNamespace(tokenizer=tokenizer),
        valid=range(40),
        room=lambda share: 1.0,
        throughput=SimpleNamespace(rows=float),
        timing=0.0,
        left=1000.0,
    )
    plan = ZeroShot().plan(context)
    assert isinstance(plan, Plan)
    (only,) = plan.settings["variants"]
    assert only.startswith(kept)
    assert all(part.endswith("was not tried: no time") for part in plan.left_out)
