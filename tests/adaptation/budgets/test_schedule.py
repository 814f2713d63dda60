"""Who comes next and with how much of the time, on candidates that only say what they take; and which of two fits
stands."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.adaptation.context.clock import seconds_on_test
from bedplate.adaptation.context.outcome import KEPT_WITHIN, RungOutcome, RungPlan, no_time
from bedplate.adaptation.context.throughput import Throughput
from bedplate.adaptation.rungs import RUNGS
from bedplate.adaptation.rungs.tuning import best_of
from bedplate.adaptation.search import run_all
from bedplate.adaptation.search.run_all import Schedule, climb_larger, larger_context, wants_more

NAMES = ["majority", "zero_shot", "few_shot", "probe", "lora", "dora", "cascade"]
MIN_SECONDS = {"zero_shot": 5.0, "few_shot": 8.0, "probe": 6.0, "lora": 10.0, "dora": 12.0}


class FakeContext:
    """As much of a context as time is given out by. Rungs take their least, or what they have if they are trained."""

    def __init__(self, remaining: float, suffix: str = "") -> None:
        self.clock = SimpleNamespace(used=0.0, seconds_left=remaining)
        self.until, self.test_reserve, self.exhaustive, self.suffix = math.inf, 0.0, False, suffix
        self.chosen = SimpleNamespace(prompt=None)

    @property
    def seconds_left(self) -> float:
        return min(self.clock.seconds_left, self.until - self.clock.used)


@pytest.fixture(scope="module", autouse=True)
def planning() -> Iterator[None]:
    def planned(context: Any, rung: Any) -> Any:
        needed = MIN_SECONDS.get(rung.name, 0.0)
        if needed > context.seconds_left:
            return no_time(needed)
        return RungPlan(
            {}, max(needed, context.seconds_left) if rung.traits.trained and context.seconds_left < math.inf else needed
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_all.planner, "planned", planned)
        yield


def ladder(remaining: float, names: list[str] = NAMES, bases: int = 1) -> tuple[Schedule, dict[str, RungOutcome]]:
    contexts = [FakeContext(remaining, "" if i == 0 else f"b{i}") for i in range(bases)]
    for extra_context in contexts[1:]:
        extra_context.clock = contexts[0].clock
    candidates: dict[str, Any] = {}
    for context in contexts:
        for name in names:
            traits = RUNGS[name].traits
            on_base = traits.needs in ("base", "decoder")
            if context.suffix and not on_base:
                continue
            full = f"{name}@{context.suffix}" if context.suffix else name
            rung = SimpleNamespace(name=name, traits=traits)
            candidates[full] = SimpleNamespace(
                name=full, rung=rung, traits=traits, context=context, on_base=on_base, unfit=None
            )
    outcomes: dict[str, RungOutcome] = {}
    return Schedule(candidates, outcomes, "weights"), outcomes


def climbed(remaining: float, **kwargs: Any) -> list[tuple[str, float]]:
    """Names in order, each with the seconds that it had; each takes them if it is trained, or its least."""
    schedule, outcomes = ladder(remaining, **kwargs)
    allotments: list[tuple[str, float]] = []
    for candidate in iter(schedule.next, None):
        context: Any = candidate.context
        had = context.seconds_left
        allotments.append((candidate.name, had))
        needed = MIN_SECONDS.get(candidate.rung.name, 0.0)
        took = 0.0 if needed > had else (had if candidate.traits.trained and had < math.inf else needed)
        context.clock.used += took
        context.clock.seconds_left -= took
        result = SimpleNamespace(evaluation=None) if needed <= had else None
        status = "skipped" if result is None else "done"
        outcomes[candidate.name] = RungOutcome(candidate.name, status, "", result)  # type: ignore[arg-type]
    return allotments


def test_something_servable_comes_first_and_trained_rungs_have_what_the_others_leave():
    allotments = climbed(100.0)
    names = [name for name, _ in allotments]
    assert names[:2] == ["majority", "probe"]
    assert names.index("zero_shot") < min(names.index("few_shot"), names.index("lora"))
    had = dict(allotments)
    if names.index("lora") < names.index("few_shot"):
        assert had["lora"] == pytest.approx(100 - 6 - 5 - 8)  # the least of few_shot is kept
    assert had["few_shot"] >= 8
    assert "cascade" not in names


def test_a_cheap_servable_skin_is_made_whole_before_others_have_their_least():
    had = dict(climbed(37.0, names=["zero_shot", "few_shot", "probe", "lora", "dora"]))
    assert had["probe"] == pytest.approx(2 * 6)  # it plans with a share of that; else 6 and a share of what is left
    had = dict(climbed(29.0, names=["zero_shot", "few_shot", "probe", "lora", "dora"]))
    assert had["probe"] < 2 * 6  # it is not cheap beside so little


@given(st.floats(1, 500), st.integers(1, 3))
def test_no_rung_takes_what_another_needs_while_there_is_enough(remaining: float, bases: int):
    names = ["zero_shot", "few_shot", "probe", "lora"]
    allotments = climbed(remaining, names=names, bases=bases)
    assert len(allotments) == len({name for name, _ in allotments}) == 4 * bases
    if remaining >= bases * sum(MIN_SECONDS[name] for name in names):
        assert all(had >= MIN_SECONDS[name.partition("@")[0]] - 1e-6 for name, had in allotments)
        tuned = [had for name, had in allotments if name.startswith("lora")]
        assert max(tuned) - min(tuned) <= 0.5 * remaining + 1e-6 if bases == 2 else True


def test_two_bases_share_what_is_left_for_training():
    seconds_by_rung = dict(climbed(200.0, names=["zero_shot", "probe", "lora"], bases=2))
    spare = 200 - 2 * (5 + 6)
    first, second = sorted((seconds_by_rung["lora"], seconds_by_rung["lora@b1"]))
    assert first == pytest.approx(spare / 2, rel=0.05)
    assert second == pytest.approx(spare / 2, rel=0.05)


def test_what_trains_is_planned_at_the_pace_that_training_was_seen_to_have():
    schedule, outcomes = ladder(500.0, names=["zero_shot", "lora", "dora"], bases=2)
    result: Any = SimpleNamespace(evaluation=None)
    min_seconds = schedule.minimum_seconds(schedule.candidates["dora"])
    outcomes["zero_shot"] = RungOutcome("zero_shot", "done", "", result, 50.0, RungPlan({}, 5.0))
    assert schedule.minimum_seconds(schedule.candidates["dora"]) == min_seconds  # answering is no training
    outcomes["lora@b1"] = RungOutcome("lora@b1", "done", "", result, 30.0, RungPlan({}, 10.0))
    assert schedule.minimum_seconds(schedule.candidates["dora"]) == pytest.approx(3 * min_seconds)
    outcomes["lora"] = RungOutcome("lora", "done", "", result, 30.0, RungPlan({}, 20.0))
    assert schedule.minimum_seconds(schedule.candidates["dora"]) == pytest.approx(1.5 * min_seconds)  # its own base's
    assert schedule.minimum_seconds(schedule.candidates["dora@b1"]) == pytest.approx(3 * min_seconds)
    candidate = schedule.next()
    while candidate is not None and candidate.rung.name != "dora":
        outcomes[candidate.name] = RungOutcome(candidate.name, "skipped", "")
        candidate = schedule.next()
    assert candidate is not None
    assert candidate.context.pace == pytest.approx(1.5 if candidate.name == "dora" else 3.0)


def test_a_pace_tells_what_a_rung_itself_had_expected():
    result: Any = SimpleNamespace(evaluation=None)
    assert RungOutcome("lora", "done", "", result, 30.0, RungPlan({}, 20.0, pace=2.0)).pace == 3.0
    assert RungOutcome("lora", "done", "", result, 1e4, RungPlan({}, 20.0)).pace == 4.0  # bounded
    assert RungOutcome("lora", "failed", "", None, 30.0, RungPlan({}, 20.0)).pace is None
    assert RungOutcome("lora", "done", "", result, 30.0).pace is None


def test_without_a_limit_the_order_is_the_tables_with_a_servable_skin_in_front():
    names = [name for name, _ in climbed(math.inf)]
    assert names == ["majority", "probe", "zero_shot", "few_shot", "lora", "dora"]


def test_what_is_kept_for_test_follows_the_skins_there_are():
    def fake_result(call: float, share: float) -> Any:
        rows = [SimpleNamespace(seconds=share)] * 10
        return SimpleNamespace(evaluation=SimpleNamespace(rows=rows), latency=SimpleNamespace(mean=call))

    quick, slow = fake_result(0.1, 0.01), fake_result(1.0, 0.2)
    assert seconds_on_test([], 100, 20, 30.0) == 30.0
    assert seconds_on_test([quick], 100, 20, None) == pytest.approx(21 * 0.1 + 80 * 0.01)
    assert seconds_on_test([quick, slow], 100, 20, 30.0) == pytest.approx(2.9 + 21 * 1.0 + 80 * 0.2 + 30)
    assert seconds_on_test([quick] * 3, 100, 20, 30.0) == pytest.approx(3 * 2.9)
    assert seconds_on_test([fake_result(0.1, 5.0)], 100, 100, None) == pytest.approx(10.1)


def _outcome(**fields: Any) -> RungOutcome:
    return RungOutcome("lora", "skipped", "", skip="budget", **fields)


def test_only_what_time_kept_small_is_climbed_again():
    candidate: Any = SimpleNamespace(on_base=True, unfit=None, traits=RUNGS["lora"].traits)
    assert wants_more(candidate, _outcome(needs={"train_minutes": 3.0}))
    assert not wants_more(candidate, _outcome(needs={"p95_ms": 640.0}))
    assert not wants_more(candidate, RungOutcome("lora", "skipped", "", skip="impossible"))
    partial_result: Any = SimpleNamespace(left_out=("20 rows",))
    whole: Any = SimpleNamespace(left_out=())
    assert wants_more(candidate, RungOutcome("lora", "done", "", partial_result))
    assert not wants_more(candidate, RungOutcome("lora", "done", "", whole))
    for name in ("full", "zero_shot"):  # what others are built on, and what guards have looked at, stays
        other: Any = SimpleNamespace(on_base=True, unfit=None, traits=RUNGS[name].traits)
        assert not wants_more(other, RungOutcome(name, "done", "", partial_result))


@dataclass
class Timed:
    """As much of a context as a larger fit is planned with."""

    out: Path
    pace: float = 1.0
    until: float = 7.0
    readings: dict[str, Any] = field(default_factory=dict[str, Any])
    run_directory: Path | None = None

    def __post_init__(self) -> None:
        self.format_gain, self.throughput = 1.0, Throughput(1e-3, 0.12, 40.0, first_calls=0.3)


def test_what_was_left_out_is_planned_again_at_the_pace_and_speed_of_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(run_all.planner, "calls_now", lambda _: 0.1)
    candidate: Any = SimpleNamespace(context=Timed(tmp_path))
    left_out = larger_context(candidate, _outcome(), 1.4, 9.0)
    assert (left_out.pace, left_out.before) == (1.4, None)
    speed = left_out.throughput
    assert (speed.token, speed.call, speed.tokens) == (pytest.approx(1e-3 / 3), pytest.approx(0.04), 40.0)
    partial_result: Any = SimpleNamespace(left_out=("20 rows",))
    outcome = RungOutcome("lora", "done", "", partial_result, 30.0, RungPlan({}, 10.0))
    context = larger_context(candidate, outcome, 1.4, 9.0)
    assert (context.pace, context.until, context.out, context.before) == (3.0, 9.0, tmp_path / "larger", {})
    assert context.throughput.call == 0.12


def scored(estimate: float, n: int = 40) -> Any:
    evaluation = SimpleNamespace(estimate=estimate, n=n, scale=SimpleNamespace(format_score="{:.3f}".format))

    @dataclass(frozen=True)
    class Result:
        evaluation: Any
        reason: str = "fitted"

    return Result(evaluation)


@pytest.mark.parametrize(("estimate", "rows", "stands"), [(0.9, 40, "larger"), (0.7, 40, "first"), (0.7, 20, "larger")])
def test_the_better_fit_stands_in_the_rungs_own_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, estimate: float, rows: int, stands: str
):
    for directory, text in ((tmp_path, "first"), (tmp_path / "larger", "larger")):
        for folder in ("skins", "rungs"):
            (directory / folder / "lora").mkdir(parents=True)
            (directory / folder / "lora" / "mark").write_text(text)
    refit = RungOutcome("lora", "done", "fitted", scored(estimate), 20.0)
    monkeypatch.setattr(run_all, "climb", lambda *_: refit)
    monkeypatch.setattr(run_all.rung_files, "config_of", lambda *_: "config")
    written: list[Any] = []
    monkeypatch.setattr(run_all.rung_files, "write_result", lambda *arguments: written.append(arguments))
    candidate: Any = SimpleNamespace(
        name="lora",
        context=SimpleNamespace(out=tmp_path),
        rung=SimpleNamespace(name="lora"),
        directory=tmp_path / "rungs" / "lora",
        finish=lambda result: result,
        rung_result=lambda result: result,
    )
    first = RungOutcome("lora", "done", "fitted", scored(0.8, rows), 10.0)  # of 20 rows it says less than of all
    outcome = climb_larger(candidate, Timed(tmp_path / "larger"), first)  # type: ignore[arg-type]
    assert (outcome.result.evaluation.estimate, outcome.seconds) == (0.8 if stands == "first" else estimate, 30.0)  # type: ignore[union-attr]
    assert ("a smaller fit before scored 0.800" in outcome.reason) == (stands == "larger")
    assert written == [(tmp_path / "rungs" / "lora", "config", 30.0, outcome.result)]
    for folder in ("skins", "rungs"):
        assert (tmp_path / folder / "lora" / "mark").read_text() == stands
    assert not (tmp_path / "larger").exists()


@given(st.lists(st.tuples(st.sampled_from(["chosen", "bare"]), st.floats(0, 1)), min_size=1, max_size=5))
def test_the_bare_prompt_is_kept_unless_it_loses_score(fits: list[tuple[str, float]]):
    trained: Any = [
        SimpleNamespace(prompt=prompt, seed=seed, evaluation=SimpleNamespace(estimate=estimate))
        for seed, (prompt, estimate) in enumerate(fits)
    ]
    best = best_of(trained)
    tops = {name: max(e for p, e in fits if p == name) for name in {p for p, _ in fits}}
    assert best.evaluation.estimate == tops[best.prompt]
    assert best.evaluation.estimate >= max(tops.values()) - KEPT_WITHIN
    if "bare" in tops and tops["bare"] >= max(tops.values()) - KEPT_WITHIN:
        assert best.prompt == "bare"
