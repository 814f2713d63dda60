"""Which sets of demonstrations are tried."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bedplate.adaptation.context.outcome import RungPlan
from bedplate.adaptation.rungs.few_shot import SETS, FewShot


def planned(monkeypatch: pytest.MonkeyPatch, fitting: set[int], room: float) -> RungPlan:
    """Of written answers whose sets have two demonstrations: those of these numbers fit."""
    monkeypatch.setattr(FewShot, "_sizes", lambda self, context: [2])
    monkeypatch.setattr(FewShot, "_variant", lambda self, context, form, size, number: number)
    monkeypatch.setattr(FewShot, "_fits", lambda self, context, variant: variant in fitting)
    context: Any = SimpleNamespace(
        labels=(),
        model=SimpleNamespace(
            tokenizer=SimpleNamespace(chat=None), base=SimpleNamespace(spec=SimpleNamespace(context_length=512))
        ),
        spec=SimpleNamespace(budget=SimpleNamespace(max_prompt_tokens=None)),
        valid=range(40),
        room=lambda share: room,
        throughput=SimpleNamespace(rows=float, passes=float),
        timing=0.0,
        seconds_left=1000.0,
    )
    plan = FewShot().plan(context)
    assert isinstance(plan, RungPlan)
    return plan


@pytest.mark.parametrize("fitting", [{5}, {1, 3}, set(range(SETS))])
def test_a_set_that_fits_is_left_where_there_is_no_time(monkeypatch: pytest.MonkeyPatch, fitting: set[int]) -> None:
    assert planned(monkeypatch, fitting, 0.0).settings["sets"] == [["plain", 2, min(fitting)]]


def test_sets_that_do_not_fit_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(monkeypatch, {1, 3}, 1e9)
    assert plan.settings["sets"] == [["plain", 2, 1], ["plain", 2, 3]]
    assert plan.left_out == ("4 of 6 sets of demonstrations do not fit 512 prompt tokens",)
