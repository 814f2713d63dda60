"""The gate's promises, as properties, and its error rate by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.signal import lfilter
from scipy.special import ndtri
from tests.adaptation import ladders

from bedplate.adaptation.context.outcome import Latency, RungOutcome, latency
from bedplate.adaptation.task.spec import BudgetSpec
from bedplate.adaptation.verdict import gate
from bedplate.adaptation.verdict.decision import (
    POSTPONED,
    BudgetChanges,
    GateDecision,
    GateVerdict,
    Nominable,
    Nomination,
    admissions,
    infeasible,
    round_up,
)
from bedplate.core.statistics import clusters, multiplicity, paired
from bedplate.evaluation.costs import PLAIN, Scale
from bedplate.evaluation.examples import Example
from bedplate.evaluation.harness import Evaluation, evaluate_predictions
from bedplate.evaluation.task import Task

TASK = Task.model_validate(
    {
        "task": "t",
        "inputs": {"x": {"column": "x"}},
        "output": {"kind": "label", "labels": ["a", "b"]},
        "data": {"source": "s", "target": "y", "split": {"train": 0.6, "valid": 0.2, "test": 0.2}},
        "metric": "accuracy",
    }
)


def evaluation(right: list[bool], groups: list[int] | None = None, split: str = "test") -> Evaluation:
    owners = groups or list(range(len(right)))
    examples = [Example(str(i), {"x": str(i)}, "a", str(g), f"{i:064d}") for i, g in enumerate(owners)]
    return evaluate_predictions(TASK, examples, ["a" if r else "b" for r in right], split=split)


def rate(right: int, n: int) -> list[bool]:
    return [i < right for i in range(n)]


candidates = st.lists(
    st.builds(
        Nominable,
        rung=st.sampled_from(["zero_shot", "few_shot", "probe", "lora", "x", "y"]),
        estimate=st.floats(0, 1),
        design_effect=st.floats(0.5, 4),
        usd_per_1k_calls=st.floats(0, 1),
        p95_ms=st.floats(0, 1000),
        prompt_tokens=st.integers(1, 1000),
    ),
    max_size=6,
    unique_by=lambda c: c.rung,
)


@given(candidates, st.floats(0.05, 0.95), st.integers(10, 5000))
@settings(deadline=None)
def test_nominees_are_few_feasible_and_the_cheapest_of_what_looks_good(nominables, target, n):
    budget = BudgetSpec(p95_ms=500, usd_per_1k_calls=0.5, max_prompt_tokens=600)
    nomination = gate.nominate(nominables, budget, target=target, confidence=0.95, test_n=n)
    by_name = {c.rung: c for c in nominables}
    chosen = [by_name[name] for name in nomination.nominees]
    assert len(chosen) <= 3
    assert set(nomination.reasons) == set(by_name)
    assert all(infeasible(c, budget) is None for c in chosen)
    costs = [c.usd_per_1k_calls for c in chosen[:-1]]
    assert costs == sorted(costs)
    feasible = [c for c in nominables if infeasible(c, budget) is None]
    assert bool(chosen) == bool(feasible)
    if chosen:
        assert nomination.primary in nomination.nominees
        above_bar = [c for c in feasible if c.estimate > target]
        if (
            above_bar
        ):  # nobody is sent to test whom valid already holds to be below the bar, unless there is nobody else
            assert all(c.estimate > target for c in chosen)
        assert max(c.estimate for c in chosen) == max(c.estimate for c in feasible)


def test_a_candidate_over_any_budget_is_named_with_the_number():
    budget = BudgetSpec(p95_ms=100)
    slow = Nominable("lora", 0.9, 1.0, 0.01, 250.0, 10)
    nomination = gate.nominate([slow], budget, target=0.8, confidence=0.95, test_n=500)
    assert nomination.nominees == ()
    assert "p95 latency 250 ms is over the budget of 100 ms" in nomination.reasons["lora"]
    kept_out = admissions([slow], {}, budget, {})
    decision = GateVerdict(nomination, [], metric="accuracy", target=0.8, n=500, groups=500, kept_out=kept_out).decision
    assert decision.status == "OUT_OF_BUDGET"
    assert "p95_ms: 100 → 250 would admit lora (0.900 on valid)" in decision.reason
    assert "250 ms" in decision.reason


def test_what_is_below_the_bar_fails_unless_the_budget_kept_out_something_above_it():
    budget = BudgetSpec(p95_ms=100, train_minutes=5)
    low = {"probe": evaluation(rate(100, 300))}
    nomination = Nomination(("probe",), "probe", None, {})
    confirmations = gate.confirm(list(low.items()), low, target=0.8, alpha=0.05)
    skipped = RungOutcome("dora", "skipped", "no time", skip="budget", needs={"train_minutes": 7.31})
    kept_out = admissions([Nominable("lora", 0.9, 1.0, 0.01, 241.0, 10)], {"dora": skipped}, budget, {})
    assert [admission.rung for admission in kept_out] == ["lora", "dora"]
    assert kept_out[1].summary == "train_minutes: 5 → 7.4 would admit dora (which was not tried)"
    slow = Nominable("lora", 0.9, 1.0, 0.01, 241.0, 10)
    busy, quiet = (admissions([slow], {}, budget, {}, loads={"lora": load})[0].summary for load in (1e4, 0.1))
    assert busy.endswith("(0.900 on valid, timed beside other work at a load average of 10000.0)")
    assert quiet == kept_out[0].summary

    def decided(kept_out: list[BudgetChanges]) -> GateDecision:
        return GateVerdict(
            nomination, confirmations, metric="accuracy", target=0.8, n=300, groups=300, kept_out=kept_out
        ).decision

    assert decided([]).status == "FAIL"
    assert decided(kept_out[1:]).status == "FAIL"  # nothing says that it would be better
    beyond = decided(kept_out)
    assert beyond.status == "OUT_OF_BUDGET"
    assert "p95_ms: 100 → 250 would admit lora" in beyond.reason


def test_nothing_to_judge_is_out_of_budget_only_where_a_budget_would_help():
    nomination = Nomination((), None, None, {})
    late = RungOutcome("zero_shot", "skipped", "no time", skip="budget", needs={"train_minutes": 0.4})
    for outcome, status in ((late, "OUT_OF_BUDGET"), (RungOutcome("probe", "skipped", "no labels"), "FAIL")):
        kept_out = admissions([], {outcome.rung: outcome}, BudgetSpec(train_minutes=0.1), {})
        decision = GateVerdict(nomination, [], metric="accuracy", target=0.8, n=9, groups=9, kept_out=kept_out).decision
        assert decision.status == status
        assert ("train_minutes: 0.1 → 0.4 would admit zero_shot" in decision.reason) == (status == "OUT_OF_BUDGET")


def test_where_test_stays_closed_for_lack_of_money_the_budget_that_would_help_is_named():
    nomination = Nomination((), None, None, {"from_scratch": POSTPONED, "lookup": POSTPONED})
    late = RungOutcome("probe", "skipped", "no money", skip="budget", needs={"train_usd": 0.4})
    kept_out = admissions([], {"probe": late}, BudgetSpec(train_usd=0.1), {})
    decision = GateVerdict(nomination, [], metric="accuracy", target=0.8, n=9, groups=9, kept_out=kept_out).decision
    assert decision.status == "OUT_OF_BUDGET"
    assert "test stays closed. Of the budget, train_usd: 0.1 → 0.4 would admit probe" in decision.reason
    assert decision.reason.endswith("Or judge what there is: --rungs from_scratch,lookup.")


@given(st.floats(1e-6, 1e6))
def test_a_round_value_admits_what_it_is_made_for(value: float):
    rounded = round_up(value)
    assert value <= rounded * (1 + 1e-9)
    assert rounded <= value * 1.11
    assert float(f"{rounded:.1e}") == pytest.approx(rounded, rel=1e-9)


def judge(tested: dict[str, Evaluation], target: float, alpha: float = 0.05, scale: Scale = PLAIN) -> GateDecision:
    names = tuple(tested)
    nomination = Nomination(names, names[0], None, {})
    confirmations = gate.confirm(list(tested.items()), tested, target=target, alpha=alpha)
    first = tested[names[0]]
    of = {"n": first.n, "groups": first.groups}
    return GateVerdict(nomination, confirmations, metric="accuracy", target=target, scale=scale, **of).decision


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 300), st.integers(0, 300), st.floats(0.3, 0.95))
def test_the_verdict_follows_from_the_bounds(first: int, second: int, target: float):
    tested = {"cheap": evaluation(rate(first, 300)), "dear": evaluation(rate(second, 300))}
    decision = judge(tested, target)
    lower = {k: v.bound(0.975) for k, v in tested.items()}
    upper = {k: v.bound(0.975, "upper") for k, v in tested.items()}
    if decision.status == "PASS":
        assert tested[decision.rung].bound(0.95) > target
    if max(lower.values()) > target:
        assert decision.status == "PASS"
    if lower["cheap"] > target:
        assert decision.rung == "cheap"
    assert (decision.status == "FAIL") == (max(upper.values()) < target)


def test_few_groups_are_insufficient_whatever_the_estimate():
    right = rate(200, 200)
    decision = judge({"lora": evaluation(right, [i // 10 for i in range(200)])}, 0.5)
    assert decision.status == "INSUFFICIENT_DATA"
    assert "20 groups are too few" in decision.reason


def test_a_nominee_without_a_bound_takes_it_from_no_other():
    """It counts among the nominees; the others are judged as if it had failed."""
    grouped = evaluation(rate(200, 200), [i // 10 for i in range(200)])
    good, bad = evaluation(rate(195, 200)), evaluation(rate(90, 200))
    decision = judge({"lora": grouped, "probe": good}, 0.8)
    assert (decision.status, decision.rung) == ("PASS", "probe")
    evaluations = {"lora": grouped, "probe": good}
    confirmation_by_rung = {
        c.rung: c for c in gate.confirm(list(evaluations.items()), evaluations, target=0.8, alpha=0.05)
    }
    assert confirmation_by_rung["probe"].lower == good.bound(0.975)
    assert (confirmation_by_rung["lora"].lower, confirmation_by_rung["lora"].passed) == (None, False)
    assert judge({"lora": grouped, "probe": bad}, 0.8).status == "INSUFFICIENT_DATA"


def test_insufficient_data_says_how_many_rows_would_do_and_promises_none_below_the_target():
    undecided = judge({"lora": evaluation(rate(170, 200))}, 0.82)
    needed_rows = multiplicity.needed_n(0.85, 0.82, 0.95)
    assert undecided.status == "INSUFFICIENT_DATA"
    assert (
        f"put lora at 0.850: if that is right, a verdict on about {needed_rows:,} test rows in all would pass it"
        in undecided.reason
    )
    below = judge({"lora": evaluation(rate(160, 200))}, 0.82)
    assert below.status == "INSUFFICIENT_DATA"
    assert "no number of rows is promised" in below.reason
    upper = 10 * (1 - evaluation(rate(170, 200)).bound(0.95))
    dollars = judge({"lora": evaluation(rate(170, 200))}, 0.82, scale=Scale(10.0))
    assert "clears the target of $1.8 on 200 test rows" in dollars.reason
    assert f"is above it (best: lora, $1.5000, at most ${upper:.4f})" in dollars.reason


def test_where_groups_that_fail_may_have_been_missed_it_is_said_how_many_would_do():
    rows = evaluation(rate(593, 600), [i % 60 for i in range(600)])
    decision = judge({"lora": rows}, 0.98)
    needed_groups = clusters.groups_needed(0.98, 0.95)
    assert decision.status == "INSUFFICIENT_DATA"
    assert f"may have been missed: {needed_groups} groups without a failure would show 0.98" in decision.reason
    shown, short = (
        evaluation([1.0] * (10 * g), [i % g for i in range(10 * g)]) for g in (needed_groups, needed_groups - 2)
    )
    assert shown.bound(0.95) > 0.98 > short.bound(0.95)


def test_rows_that_are_promised_suffice_though_the_best_of_eight_was_chosen():
    """Eight candidates of truth 0.83 at a bar of 0.8. By the best of their estimates on valid, a third of next verdicts
    would pass at the rows that are told."""
    rng = np.random.default_rng(4)
    truth, rows, level = 0.83, 587, 1 - multiplicity.spent_alpha(0.05, 2)
    promised, naive = [], []
    for _ in range(60):
        # what is hard for one is for the others
        valid, test = (
            (np.sqrt(0.5) * rng.standard_normal((1, rows)) + np.sqrt(0.5) * rng.standard_normal((8, rows)))
            < stats.norm.ppf(truth)
            for _ in range(2)
        )
        on_valid = {str(i): ladders.Judged(x, np.arange(rows), float(x.mean()), 1.0) for i, x in enumerate(valid * 1.0)}
        names = sorted(on_valid, key=lambda name: -on_valid[name].estimate)[:3]
        tested = [
            (name, ladders.Judged(x, np.arange(rows), float(x.mean()), 1.0))
            for name in names
            for x in [test[int(name)] * 1.0]
        ]
        confirmations = gate.confirm(
            tested, on_valid, target=0.8, alpha=multiplicity.spent_alpha(0.05, 1), next_alpha=1 - level
        )
        if any(confirmation.passed for confirmation in confirmations):
            continue
        promised.append(next(confirmation.needed_n for confirmation in confirmations if confirmation.rung == names[0]))
        naive.append(multiplicity.needed_n(on_valid[names[0]].estimate, 0.8, confirmations[0].upper_confidence))

    def power(n: int | None) -> float:
        """Of the exact test of one nominee, taken as normal; 1 where no number was promised, so that none is bought."""
        if n is None:
            return 1.0
        critical = 0.8 + stats.norm.ppf(level) * np.sqrt(0.16 / n)
        return float(stats.norm.sf((critical - truth) / np.sqrt(truth * (1 - truth) / n)))

    assert len(promised) > 15
    assert np.mean([power(n) for n in promised]) > 0.75
    assert np.mean([power(n) for n in naive]) < 0.5


def test_three_nominees_at_the_bar_pass_falsely_no_more_often_than_alpha():
    """All three exactly at the target, rows in groups that go wrong together: false PASS at most 5%, within noise."""
    rng = np.random.default_rng(0)
    owners = [i // 4 for i in range(240)]
    passes, ladders = 0, 80
    for _ in range(ladders):
        tested = {}
        for name in ("a", "b", "c"):
            tilt = np.repeat(rng.beta(0.8 * 6, 0.2 * 6, 60), 4)
            tested[name] = evaluation(list(rng.random(240) < tilt), owners)
        passes += judge(tested, 0.8).status == "PASS"
    assert passes / ladders <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / ladders)


def test_a_repeated_verdict_needs_a_higher_bound():
    tested = {"lora": evaluation(rate(336, 400))}
    assert judge(tested, 0.8, alpha=multiplicity.spent_alpha(0.05, 1)).status == "PASS"
    assert judge(tested, 0.8, alpha=multiplicity.spent_alpha(0.05, 6)).status == "INSUFFICIENT_DATA"


def test_nominees_are_compared_on_the_same_rows_and_corrected():
    tested = {"zero_shot": evaluation(rate(150, 300)), "a": evaluation(rate(200, 300)), "b": evaluation(rate(155, 300))}
    comparisons = gate.compare_with(tested, ["a", "b"], "zero_shot", 0)
    raw = {
        name: paired.mcnemar_exact([r.score for r in tested[name].rows], [r.score for r in tested["zero_shot"].rows])
        for name in ("a", "b")
    }
    assert [(a, b) for a, b, _, _ in comparisons] == [("a", "zero_shot"), ("b", "zero_shot")]
    assert comparisons[0][3] == pytest.approx(2 * raw["a"])
    assert comparisons[1][3] == pytest.approx(raw["b"])


def test_what_passed_is_expected_to_be_lower_than_it_reads():
    """Candidates that read alike on valid are drawn together; test counts by its rows: the formula, by hand."""
    on_valid = {name: evaluation(rate(k, 400), split="valid") for name, k in (("a", 350), ("b", 330), ("c", 320))}
    test = evaluation(rate(356, 400))
    read = np.array([0.875, 0.825, 0.8])
    share = np.array([351, 331, 321]) / 402
    noise = share * (1 - share) / 400
    spread = max(0.0, read.var(ddof=1) - noise.mean())
    shrunk = read.mean() + spread / (spread + noise[0]) * (read[0] - read.mean())
    by_hand = (shrunk + 0.89) / 2
    assert gate.expected("a", test, on_valid) == pytest.approx(by_hand)
    small = evaluation(rate(20, 100))
    alone = {"a": evaluation(rate(99, 100), split="valid")}
    assert gate.expected("a", small, alone) == pytest.approx(119 / 200)  # nor does the higher of two count more
    assert by_hand < 0.885 < test.estimate
    nomination = Nomination(("a",), "a", None, {})
    confirmations = gate.confirm([("a", test)], on_valid, target=0.8, alpha=0.05)
    decision = GateVerdict(nomination, confirmations, metric="accuracy", target=0.8, n=400, groups=400).decision
    sentence = f"Expect about {by_hand:.3f} in use: of several, the one that passes was partly lucky."
    assert sentence in decision.reason


# --- what a call takes


def timed(*seconds: float) -> Latency:
    return latency(seconds)


@pytest.mark.parametrize(
    ("calls", "within_budget", "phrase"),
    [
        (
            timed(*[0.05] * 100),
            True,
            "p95 of 100 calls is 50 ms, at most 50 ms with 95.0% confidence, within the budget",
        ),
        (timed(*[0.2] * 100), False, "at least 200 ms with 95.0% confidence, over the budget of 100 ms"),
        (timed(*[0.05] * 58), None, "59 independent calls are the least that can show the budget of 100 ms"),
        (
            timed(*([0.05] * 15 + [0.3]) * 4),
            None,
            "from 50 to 300 ms, so that they do not decide on the budget of 100 ms",
        ),
    ],
)
def test_a_p95_is_within_the_budget_over_it_or_undecided(calls: Latency, within_budget: bool | None, phrase: str):
    limit = gate.p95_limit(calls, 100.0, 0.95)
    assert limit.holds is within_budget
    assert phrase in limit.reason
    tested = {"lora": evaluation(rate(360, 400))}
    nomination = Nomination(("lora",), "lora", None, {})
    confirmed = gate.confirm(list(tested.items()), tested, target=0.8, alpha=0.05)
    decision = GateVerdict(
        nomination, confirmed, metric="accuracy", target=0.8, n=400, groups=400, limits={"lora": [limit]}
    ).decision
    assert decision.status == {True: "PASS", False: "FAIL", None: "INSUFFICIENT_DATA"}[within_budget]
    assert phrase in decision.reason


def test_an_undecided_p95_on_valid_is_decided_on_test():
    """Nobody is out of the ladder for a percentile of 64 calls that another 64 would read as half of it."""
    seconds = ([0.09] * 15 + [0.15]) * 4  # reads 150 ms, and is at least 90
    measured = latency(seconds)
    p95_low, _ = measured.p95_bounds(0.95)
    assert p95_low is not None
    assert 1000 * measured.p95 > 100 > 1000 * p95_low
    slow = Nominable("lora", 0.9, 1.0, 0.01, 1000 * measured.p95, 10, p95_least_ms=1000 * p95_low)
    budget = BudgetSpec(p95_ms=100)
    assert gate.nominate([slow], budget, target=0.8, confidence=0.95, test_n=500).nominees == ("lora",)
    budget = BudgetSpec(p95_ms=80)
    assert gate.nominate([slow], budget, target=0.8, confidence=0.95, test_n=500).nominees == ()


@pytest.mark.parametrize(("correlation", "rows"), [(0.5, None), (0.9, None), (0.0, 30)])
def test_calls_that_follow_each_other_or_repeat_rows_rarely_pass_at_the_limit(correlation: float, rows: int | None):
    """As independent calls of 64 rows they do in 8, 43 and 20% of runs."""
    rng, within = np.random.default_rng(4), 0
    for _ in range(200):
        noise = np.asarray(lfilter([1.0], [1.0, -correlation], rng.standard_normal(64 if rows is None else rows)))
        noise[1:] *= (1 - correlation**2) ** 0.5
        seconds = np.exp(np.resize(noise, 64) - ndtri(0.95))
        within += gate.p95_limit(latency(seconds.tolist(), rows), 1000.0, 0.95).holds is True
    assert within <= 10


def test_slow_calls_in_one_spell_do_not_show_that_the_limit_is_broken():
    spell = timed(*[0.05] * 60, *[0.2] * 15, *[0.05] * 25)
    assert gate.p95_limit(spell, 100.0, 0.95).holds is None
    assert gate.p95_limit(timed(*([0.05] * 5 + [0.2]) * 16), 100.0, 0.95).holds is False


def test_what_varies_far_below_the_limit_needs_no_more_calls():
    slowly = 0.01 + 0.002 * np.sin(np.arange(80) / 10)
    limit = gate.p95_limit(latency(slowly.tolist()), 100.0, 0.95)
    assert limit.holds is True
    assert gate.p95_limit(latency(slowly.tolist()), 12.0, 0.95).holds is None


def test_a_p95_is_called_over_the_budget_with_the_error_that_other_conditions_leave():
    calls = timed(*([0.05] * 7 + [0.2]) * 8)  # a fifth of the error is not enough for what all of it shows
    assert gate.p95_limit(calls, 100.0, 0.95).holds is False
    shared = gate.p95_limit(calls, 100.0, 0.95, claims=5)
    assert shared.holds is None
    assert shared.lower == 50
    assert gate.p95_limit(timed(*[0.05] * 80), 100.0, 0.95, claims=5).holds is True
