"""The planner: money and time before a rung starts, what is left out and why, and rules of thumb that are scored."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.adaptation.conftest import write_task
from tests.adaptation.test_gate import evaluation, rate
from tests.core.clocks import set_monotonic

from bedplate.adaptation.context import clock as clock_module
from bedplate.adaptation.context.clock import Clock, Stopwatch
from bedplate.adaptation.context.outcome import Latency, RungOutcome, RungPlan, RungResult
from bedplate.adaptation.context.outcome import Tested as OnTest
from bedplate.adaptation.context.throughput import CallTimings, read_texts
from bedplate.adaptation.ladder import adapt
from bedplate.adaptation.rungs import RUNGS
from bedplate.adaptation.search import planner
from bedplate.adaptation.task.adapt_parts import GuardsSpec
from bedplate.adaptation.task.spec import BudgetSpec
from bedplate.adaptation.verdict import rules_of_thumb
from bedplate.core.processor import processor


def context(
    call: float = 0.1,
    rows: int = 500,
    exhaustive: bool = False,
    usd_left: float = 1.0,
    gain: float = 1.0,
    retimed: float | None = None,
    **budget: Any,
) -> Any:
    return SimpleNamespace(
        exhaustive=exhaustive,
        train=[None] * rows,
        throughput=SimpleNamespace(call=call),
        cached_reading=lambda *_: CallTimings(call if retimed is None else retimed, 3, 2.5),
        default_prompt=lambda: (None, None),
        pace=1.0,
        slower=1.0,
        format_gain=gain,
        spec=SimpleNamespace(budget=BudgetSpec(**budget), machine=SimpleNamespace(usd_per_hour=3.6)),
        usd_left=usd_left,
    )


def outcome(name: str, right: int, seconds: float = 0.1, **changes: Any) -> RungOutcome:
    result = RungResult(name, evaluation(rate(right, 400), split="valid"), Latency(seconds, 0.1, 0.1, 10), 0.0, "made")
    return RungOutcome(name, "done", "made", result, **changes)


def rung(name: str) -> Any:
    """A rung of the table with a lightest prompt that needs no base."""
    return SimpleNamespace(name=name, traits=RUNGS[name].traits, lightest=lambda context: (None, None))


# --- time and money


def test_a_wait_for_processors_that_other_work_has_excludes_no_rung() -> None:
    def skipped(reading: CallTimings) -> Any:
        fake_context = context(call=2.0, p95_ms=150)
        fake_context.cached_reading = lambda *_: reading
        return planner.ruled_out(fake_context, rung("lora"))

    busy, quiet = 1e4, 0.1
    assert skipped(CallTimings(0.9, 3, busy, 0.12)) is None
    assert skipped(CallTimings(0.9, 3, quiet, 0.12)) is not None  # it waits for something else: memory, a disk
    assert skipped(CallTimings(0.9, 3, None, 0.12)) is not None
    over = skipped(CallTimings(0.9, 3, busy, 0.2))
    assert "takes 200 ms here (the least of 3 medians; load average 10000.0, without 700 ms of waiting" in over.reason
    assert over.needs == {"p95_ms": pytest.approx(200)}


def test_calls_are_timed_by_the_wall_and_by_their_own_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    wall, worked, load = [0.0], [0.0], [1e4]
    module = "bedplate.adaptation.context.throughput"
    monkeypatch.setattr(f"{module}.time.process_time", lambda: worked[0])
    monkeypatch.setattr(f"{module}.time.perf_counter", lambda: wall[0])
    monkeypatch.setattr(f"{module}.load_average", lambda: load[0])

    def embed(texts: list[str]) -> None:
        wall[0] += 0.9 * len(texts)
        worked[0] += 0.12 * processor().threads * len(texts)

    model: Any = SimpleNamespace(embed=embed)
    reading = read_texts(model, ["a", "b", "c"], limit=0.15)
    assert (reading.call, reading.times, reading.load) == (pytest.approx(0.9), 3, 1e4)
    assert reading.quiet == pytest.approx(0.12)
    load[0] = 0.0
    assert read_texts(model, ["a", "b", "c"], limit=0.15).quiet == pytest.approx(0.9)
    assert read_texts(model, ["a", "b", "c"], limit=1.0).times == 1


def test_the_clock_stops_at_whichever_is_spent_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clock_time = [0.0]
    set_monotonic(monkeypatch, clock_module, lambda: clock_time[0])
    clock = Clock(1000.0, usd=0.5, usd_per_hour=3.6)  # a dollar is 1,000 seconds
    assert clock.seconds_left == pytest.approx(500.0)
    clock_time[0] = 100.0
    clock.charge(0.3)
    assert clock.spent == pytest.approx(0.4)
    assert clock.usd_left == pytest.approx(0.1)
    assert clock.seconds_left == pytest.approx(100.0)
    clock.charge(0.2)
    assert clock.seconds_left == 0.0
    nested_clock = Clock(None, clock)
    nested_clock.add(50.0)
    nested_clock.charge(1.0)
    assert clock.used == pytest.approx(150.0)
    assert clock.usd_left < -0.5
    assert Clock(None).seconds_left == float("inf")
    assert Clock(10.0, usd=1.0).seconds_left == pytest.approx(10.0)  # a machine without a price spends no money


def test_a_rung_that_costs_more_than_is_left_does_not_start() -> None:
    plan = RungPlan({}, seconds=100.0, usd=0.05)
    assert planner.over_budget(context(usd_left=0.2), plan) is None
    skip = planner.over_budget(context(usd_left=0.1), plan)
    assert skip is not None
    assert (skip.kind, skip.reason) == ("budget", "it needs about $0.1500, $0.1000 of the climb's money are left")


def test_rungs_whose_calls_cannot_meet_the_budget_are_not_planned_unless_asked() -> None:
    slow = context(call=0.2, p95_ms=150)
    skip = planner.ruled_out(slow, rung("lora"))
    assert skip is not None
    assert skip.kind == "budget"
    expected_reason = "takes 200 ms here (the least of 3 medians; load average 2.5); the budget's p95 is 150"
    assert expected_reason in skip.reason
    assert skip.needs == {"p95_ms": pytest.approx(200)}
    # what another process had slowed down is within the budget when it is timed again
    assert planner.ruled_out(context(call=0.2, retimed=0.1, p95_ms=150), rung("lora")) is None
    assert planner.ruled_out(slow, rung("zero_shot")) is None  # always measured: the rest is compared with it
    assert planner.ruled_out(slow, rung("probe")) is None  # stops half-way through the base
    assert planner.ruled_out(context(call=0.2, exhaustive=True, p95_ms=150), rung("lora")) is None
    dear = planner.ruled_out(context(call=0.2, usd_per_1k_calls=0.1), rung("few_shot"))
    assert dear is not None
    assert "1,000 calls may cost $0.1 and cost $0.2000" in dear.reason
    assert dear.needs == {"usd_per_1k_calls": pytest.approx(0.2)}
    # a format that is faster here may bring the calls into the budget, where nominees are tried in it
    assert planner.ruled_out(context(call=0.2, p95_ms=150, gain=1.5), rung("lora")) is None
    slower = planner.ruled_out(context(call=0.2, p95_ms=90, gain=2.0), rung("lora"))
    assert slower is not None
    assert "load average 2.5), and 2.0 times less in a format" in slower.reason
    assert slower.needs == {"p95_ms": pytest.approx(100)}
    rule_skip = planner.ruled_out(context(rows=40), rung("full"))
    assert rule_skip is not None
    assert rule_skip.kind == "rule"
    assert planner.ruled_out(context(rows=64), rung("full")) is None
    assert planner.ruled_out(context(rows=40, exhaustive=True), rung("full")) is None


def test_a_child_is_planned_within_what_its_guards_leave() -> None:
    """The rung sees less time than there is, by what its guards are expected to take; others see all of it."""

    class FakeContext:
        clock = SimpleNamespace(used=100.0)
        exhaustive, usd_left, train = False, float("inf"), [None] * 500
        format_gain = pace = slower = 1.0
        throughput = SimpleNamespace(call=0.1, token=0.001)
        spec = SimpleNamespace(
            budget=BudgetSpec(),
            machine=SimpleNamespace(usd_per_hour=0.0),
            guards=GuardsSpec.model_validate({"loss": {}}),
        )
        until = float("inf")

        @property
        def seconds_left(self) -> float:
            return min(1000.0, self.until - self.clock.used)

    fake_context: Any = FakeContext()
    lefts: dict[str, float] = {}
    for name in ("full", "lora"):

        def plan(context: Any, name: str = name) -> RungPlan:
            lefts[name] = context.seconds_left
            return RungPlan()

        fake_rung = SimpleNamespace(name=name, plan=plan, traits=RUNGS[name].traits)
        planner.planned(fake_context, fake_rung)  # type: ignore[arg-type]
    assert lefts == {"full": pytest.approx(1000 - planner.guard_seconds(fake_context)), "lora": 1000.0}
    assert 100 < planner.guard_seconds(fake_context) < 400
    assert fake_context.until == float("inf")
    fake_context.spec.guards = GuardsSpec(retention=None, loss=None)
    assert planner.guard_seconds(fake_context) == 0


def test_forecasts_stand_beside_what_was_taken_and_omissions_have_reasons() -> None:
    finished = outcome("lora", 300, seconds=0.1, plan=RungPlan({}, 90.0, ("half the rows", "two seeds"), 0.01))
    finished = RungOutcome(**{**vars(finished), "seconds": 100.0})
    assert finished.result is not None
    partial_result = RungResult(**{**vars(finished.result), "left_out": ("two seeds",), "usd": 0.02})
    outcomes = {
        "majority": RungOutcome("majority", "skipped", "no labels", skip="impossible"),
        "few_shot": RungOutcome("few_shot", "skipped", "no time", skip="budget"),
        "lora": RungOutcome(**{**vars(finished), "result": partial_result}),
    }
    forecasts = planner.forecasts(context(), outcomes)
    assert [forecast.expected_seconds for forecast in forecasts] == [None, None, 90.0]
    assert forecasts[2].expected_usd == pytest.approx(0.1)
    assert forecasts[2].usd == pytest.approx(0.12)
    assert [(omission.rung, omission.what, omission.kind) for omission in planner.not_tried(outcomes)] == [
        ("majority", "rung", "impossible"),
        ("few_shot", "rung", "budget"),
        ("lora", "part", "budget"),
    ]


@given(st.permutations([*RUNGS, "prompt_search", "dora"]).map(lambda n: list(dict.fromkeys(n))))
def test_rules_order_and_leave_nothing_out(names: list[str]) -> None:
    for favours in ("tuning", "prompting"):
        ordered = planner.order(names, favours)
        assert sorted(ordered) == sorted(names)
        assert [n for n in ordered if n != "prompt_search"] == [n for n in names if n != "prompt_search"]
        trained = [ordered.index(n) for n in ("soft_prompt", "lora", "dora", "full") if n in ordered]
        place = ordered.index("prompt_search")
        assert place < min(trained) if favours == "prompting" else place > max(trained)


def test_a_stopwatch_adds_up() -> None:
    watch = Stopwatch()
    for _ in range(2):
        with watch.timed("tests", "lora"):
            sum(range(100_000))
    assert set(watch.parts["tests"]) == {"lora"}
    assert watch.parts["tests"]["lora"] > 0
    assert watch.processor > 0
    assert watch.of("guards") == {}


# --- rules of thumb

LABELS = rules_of_thumb.Expectation("labels", "tuned beats prompted", "many", "tuning", "tuned_beats_prompted")
FEW_LABELS = rules_of_thumb.Expectation("labels", "prompted beats tuned", "few", "prompting", "prompted_beats_tuned")
LENGTH = rules_of_thumb.Expectation("prompt length", "cheaper", "long", "tuning", "tuned_is_cheaper")
STRUCTURE = rules_of_thumb.Expectation("structure", "tuned beats prompted", "labels", "tuning", "tuned_beats_prompted")


def rule_outcome(expected: rules_of_thumb.Expectation, outcomes: dict[str, RungOutcome], tested: Any = None) -> str:
    return rules_of_thumb.score([expected], outcomes, tested or {}, 0)[0]["held"]


def test_a_rule_holds_only_where_the_difference_is_shown() -> None:
    better = {
        "few_shot": outcome("few_shot", 260),
        "lora": outcome("lora", 340),
        "zero_shot": outcome("zero_shot", 240),
    }
    assert (rule_outcome(LABELS, better), rule_outcome(FEW_LABELS, better), rule_outcome(STRUCTURE, better)) == (
        "true",
        "false",
        "true",
    )
    worse = {name: outcome(name, right) for name, right in (("few_shot", 340), ("lora", 260), ("zero_shot", 258))}
    assert (rule_outcome(LABELS, worse), rule_outcome(FEW_LABELS, worse), rule_outcome(STRUCTURE, worse)) == (
        "false",
        "true",
        "false",
    )
    tied = {"few_shot": outcome("few_shot", 300), "lora": outcome("lora", 302)}
    assert rule_outcome(LABELS, tied) == "undecided"


@pytest.mark.parametrize("rule", [LABELS, FEW_LABELS, STRUCTURE])
def test_a_rule_is_not_tested_where_one_side_never_used_the_labels(rule: rules_of_thumb.Expectation) -> None:
    plain = {"zero_shot": outcome("zero_shot", 240), "own_prompt": outcome("own_prompt", 250)}
    skipped = RungOutcome("few_shot", "skipped", "no example fits")
    outcomes = {**plain, "lora": outcome("lora", 340), "few_shot": skipped}
    row = rules_of_thumb.score([rule], outcomes, {}, 0)[0]
    assert (row["held"], row["rests_on"]) == (
        "not_tested",
        "no prompted rung used the labels (few_shot: no example fits)",
    )
    only = {**plain, "few_shot": outcome("few_shot", 300)}
    row = rules_of_thumb.score([rule], only, {}, 0)[0]
    assert (row["held"], row["rests_on"]) == ("not_tested", "no tuned rung used the labels (none was on the ladder)")
    assert rule_outcome(rule, {}) == "not_tested"
    assert rule_outcome(LENGTH, only) == "not_tested"


def test_candidates_on_other_bases_count_and_references_do_not() -> None:
    outcomes = {
        "from_scratch": outcome("from_scratch", 390),
        "few_shot": outcome("few_shot", 260),
        "lora@small": outcome("lora@small", 340),
    }
    assert rule_outcome(LABELS, outcomes) == "true"


def test_test_rows_are_used_where_both_were_judged_on_them() -> None:
    outcomes = {"few_shot": outcome("few_shot", 340), "lora": outcome("lora", 260)}
    latency = Latency(0.1, 0.1, 0.1, 1)
    tested = {
        "few_shot": OnTest(evaluation(rate(250, 400)), latency),
        "lora": OnTest(evaluation(rate(350, 400)), latency),
    }
    row = rules_of_thumb.score([LABELS], outcomes, tested, 0)[0]
    assert row["held"] == "true"
    assert row["rests_on"].endswith("on 400 rows of test")
    assert rule_outcome(LABELS, outcomes, {"lora": tested["lora"]}) == "false"  # not both: valid


@pytest.mark.parametrize(
    ("tuned", "prompted", "expected"), [(0.1, 0.2, "true"), (0.2, 0.1, "false"), (0.1, 0.102, "undecided")]
)
def test_costs_of_a_call_are_compared(tuned: float, prompted: float, expected: str) -> None:
    outcomes = {"few_shot": outcome("few_shot", 300, prompted), "lora": outcome("lora", 300, tuned)}
    assert rule_outcome(LENGTH, outcomes) == expected


def test_what_most_rules_favour_and_ties_go_to_the_labels() -> None:
    assert rules_of_thumb.favoured([LABELS, STRUCTURE]) == "tuning"
    assert rules_of_thumb.favoured([FEW_LABELS, STRUCTURE]) == "prompting"
    assert rules_of_thumb.favoured([FEW_LABELS, STRUCTURE, LENGTH]) == "tuning"


# --- the ladder


def test_a_ladder_without_money_says_what_it_left_out_and_an_exhaustive_one_climbs_it(
    tmp_path: Path, tiny_base: Path
) -> None:
    task = write_task(tmp_path / "task", tiny_base, groups=40, budget={"max_prompt_tokens": 400, "train_usd": 1e-9})
    rungs = ["majority", "zero_shot", "lora"]
    poor = adapt(task, tmp_path / "poor", rungs=rungs)
    omitted = {omission["rung"]: omission["kind"] for omission in poor.data["not_tried"] if omission["what"] == "rung"}
    assert omitted["lora"] == "budget"
    assert poor.data["settings"]["exhaustive"] is False
    whole = adapt(task, tmp_path / "whole", rungs=rungs, exhaustive=True)
    assert {row["rung"]: row["status"] for row in whole.rungs if row["split"] == "valid"} == dict.fromkeys(
        rungs, "done"
    )
    assert not [omission for omission in whole.data["not_tried"] if omission["kind"] != "impossible"]
    predictions = json.loads((tmp_path / "whole" / rules_of_thumb.PREDICTIONS_FILE).read_text())
    assert [prediction["rule"] for prediction in predictions] == [
        prediction["rule"] for prediction in whole.data["predictions"]
    ]
    assert predictions[0]["favours"] == "prompting"  # few labels
    forecast = {row["rung"]: row for row in whole.data["forecasts"]}
    assert forecast["lora"]["expected_seconds"] > 0
    timing = whole.data["timing"]
    assert timing["seconds"] >= sum(timing["rungs"].values())
    assert not timing["resumed"]
    rerun = adapt(task, tmp_path / "whole", rungs=rungs, exhaustive=True)
    assert rerun.data["timing"]["resumed"]
