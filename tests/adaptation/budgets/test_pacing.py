"""What is planned for long is planned by how fast the machine is now, not when the base's speed was measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.core.clocks import set_monotonic

from bedplate.adaptation.context.backbone import Backbone
from bedplate.adaptation.context.clock import Clock
from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import RungPlan, Skip, no_time
from bedplate.adaptation.context.throughput import Throughput
from bedplate.adaptation.rungs import RUNGS
from bedplate.adaptation.search import planner

Planned = Callable[..., tuple[RungPlan | Skip, int]]


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Planned:
    """The plan of a rung, and how often calls were timed for it. A row takes a second where the machine is as it was;
    10 rows are the least."""
    timed: list[float] = []
    set_monotonic(monkeypatch, planner, lambda: 1000.0)
    monkeypatch.setattr(planner, "load_average", lambda: 9.5)

    def plan(context: Any, rung: Any) -> RungPlan | Skip:
        rows = min(400, int(context.seconds_left / context.slower))
        return no_time(10 * context.slower) if rows < 10 else RungPlan({"rows": rows}, rows * context.slower)

    monkeypatch.setattr(planner, "planned", plan)

    def plan_rung(left: float, call: float = 0.1, age: float = 60.0, name: str = "lora", **context_fields: Any) -> Any:
        timed.clear()
        monkeypatch.setattr(planner, "calls_now", lambda _: timed.append(call) or call)
        speed = replace(Throughput(1e-3, 0.12, 40.0, first_calls=0.1), at=1000.0 - age)
        context: Any = SimpleNamespace(seconds_left=left, slower=1.0, throughput=speed, outer_clock=None, settled=False)
        context.__dict__.update(context_fields)
        outcome = planner.planned_now(context, RUNGS[name])
        assert context.slower == 1.0
        return outcome, len(timed)

    return plan_rung


def test_a_fit_is_smaller_where_the_machine_has_become_slower(planned: Planned) -> None:
    plan, timed = planned(300.0, call=0.3)
    assert isinstance(plan, RungPlan)
    assert (plan.settings, plan.seconds, timed) == ({"rows": 100}, pytest.approx(300.0), 1)
    assert plan.left_out[-1] == (
        "the machine is 3.0 times slower than when the base's speed was measured (load average 9.5)"
    )
    hardly, timed = planned(300.0, call=0.11)
    assert (hardly, timed) == (RungPlan({"rows": 300}, 300.0), 1)
    faster, _ = planned(300.0, call=0.03)  # what is left in the end goes to a larger fit
    assert faster == RungPlan({"rows": 300}, 300.0)
    wild, _ = planned(300.0, call=50.0)  # a few calls are not believed beyond bounds
    assert isinstance(wild, RungPlan)
    assert wild.settings == {"rows": 75}
    whole, _ = planned(4000.0, call=0.2)  # all rows fit nevertheless: nothing is left out
    assert (whole.settings, whole.left_out) == ({"rows": 400}, ())  # type: ignore[union-attr]
    none, _ = planned(25.0, call=0.4)
    assert isinstance(none, Skip)
    assert none.kind == "budget"


@pytest.mark.parametrize(
    "arguments",
    [
        {"left": 15.0},
        {"left": 300.0, "age": 5.0},
        {"left": 300.0, "settled": True},
        {"left": 300.0, "outer_clock": object()},
        {"left": 300.0, "name": "probe"},
    ],
    ids=" ".join,
)
def test_nothing_is_timed_again_where_it_would_change_little(planned: Planned, arguments: dict[str, Any]) -> None:
    plan, timed = planned(call=9.0, **arguments)
    assert isinstance(plan, RungPlan)
    assert (plan.left_out, timed) == ((), 0)
    assert not math.isinf(plan.seconds)


@pytest.mark.parametrize(("now", "fits"), [(0.02, True), (0.09, False), (0.3, False)])
def test_what_there_is_no_time_for_is_planned_by_the_speed_of_now(
    monkeypatch: pytest.MonkeyPatch, now: float, fits: bool
) -> None:
    """A base whose speed was measured beside other work for a moment is not closed for the whole of a run."""
    speed = replace(Throughput(1e-3, 0.12, 40.0, first_calls=0.1))
    context: Any = SimpleNamespace(
        seconds_left=100.0, slower=1.0, throughput=speed, outer_clock=None, settled=False, hosted=None
    )
    timed: list[float] = []
    monkeypatch.setattr(planner, "calls_now", lambda _: timed.append(now) or now)

    def plan(context: Any, rung: Any) -> RungPlan | Skip:
        seconds = 215 * context.throughput.call / 0.12
        return no_time(seconds) if seconds > context.seconds_left else RungPlan({}, seconds)

    monkeypatch.setattr(planner, "planned", plan)
    outcome = planner.planned_now(context, RUNGS["zero_shot"])
    assert isinstance(outcome, RungPlan) is fits
    assert context.throughput.call == pytest.approx(0.12 * now / 0.1 if fits else 0.12)
    assert len(timed) == 1
    context.throughput, timed[:] = speed, []
    context.hosted = object()
    assert isinstance(planner.planned_now(context, RUNGS["zero_shot"]), Skip)
    assert not timed, "calls of a remote model cost money"


@pytest.mark.parametrize(
    ("medians", "slower"),
    [([0.4, 0.105], None), ([0.4, 0.3, 0.11], None), ([0.4, 0.3, 0.2], 2.0)],
    ids=["one disturbed", "two disturbed", "slower"],
)
def test_calls_that_something_short_disturbed_change_no_plan(
    monkeypatch: pytest.MonkeyPatch, medians: list[float], slower: float | None
) -> None:
    """A tenth of a second of calls says nothing of minutes: they are timed again, for a tenant that nothing is cached
    for, until they are as they were, or a few times."""
    set_monotonic(monkeypatch, planner, lambda: 1000.0)
    monkeypatch.setattr(planner, "planned", lambda context, _: RungPlan({"rows": int(100 / context.slower)}, 100.0))
    tenants: list[str] = []

    def predict(rows: list[Any], *, one_by_one: bool = False, tenant: str = "") -> list[Any]:
        if not one_by_one:
            return []
        tenants.append(tenant)
        return [SimpleNamespace(seconds=medians[len(tenants) - 1]) for _ in rows]

    context: Any = SimpleNamespace(
        seconds_left=300.0,
        slower=1.0,
        outer_clock=None,
        settled=False,
        valid=(),
        throughput=replace(Throughput(1e-3, 0.12, 40.0, first_calls=0.1), at=900.0),
        clock=Clock(None),
        model=SimpleNamespace(predictor=lambda _: nullcontext(SimpleNamespace(predict=predict))),
        ordered=lambda *_: [SimpleNamespace(inputs={"text": str(i)}) for i in range(20)],
        plain_prompt=lambda: (None, None),
        skin=lambda *_: None,
    )
    context.backbone = Backbone(cast(Any, None), cast(Any, None))
    context._timed = partial(Context._timed, context)
    context.calls = partial(Context.calls, context)
    plan = planner.planned_now(context, RUNGS["lora"])
    assert isinstance(plan, RungPlan)
    assert plan.settings == {"rows": 100 if slower is None else int(100 / slower)}
    assert bool(plan.left_out) == (slower is not None)
    assert len(tenants) == len(set(tenants)) == len(medians)
