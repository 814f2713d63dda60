"""The advice with a verdict: why cheaper nominees did not pass, which candidates were not tried, the comparison with a
classical model, and the skin to serve."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.adaptation.test_gate import evaluation, rate
from tests.report.sample import report
from tests.serving.conformance.test_classical import words

from bedplate.adaptation.context.outcome import Latency, RungOutcome, latency
from bedplate.adaptation.task.spec import BudgetSpec
from bedplate.adaptation.verdict import advice, gate
from bedplate.adaptation.verdict.decision import GateDecision, GateVerdict, Nomination
from bedplate.cli.adapt import show
from bedplate.report.run_report import Report
from bedplate.report.schema_parts import NotTried
from bedplate.skins.files import write_skin


def verdict(
    right: dict[str, int],
    calls: dict[str, Latency] | None = None,
    *,
    target: float = 0.8,
    primary: str | None = None,
    reasons: dict[str, str] | None = None,
) -> GateVerdict:
    """The verdict on nominees, cheapest first, each with a number of right rows of 400; p95 is limited to 500 ms."""
    tested = {name: evaluation(rate(count, 400)) for name, count in right.items()}
    nomination = Nomination(tuple(right), primary or next(iter(right)), None, reasons or {})
    limits = {name: [gate.p95_limit(timed, 500.0, 0.95)] for name, timed in (calls or {}).items()}
    confirmations = gate.confirm(list(tested.items()), tested, target=target, alpha=0.0304)
    shape = {"metric": "accuracy", "target": target, "n": 400, "groups": 400}
    return GateVerdict(nomination, confirmations, confidence=0.95, limits=limits, **shape)


def decided(right: dict[str, int], calls: dict[str, Latency] | None = None) -> GateDecision:
    return verdict(right, calls).decision


FAST, SLOW = latency([0.05] * 100), latency([0.9] * 100)
UNDECIDED = latency(([0.11] * 15 + [0.934]) * 4)


def test_a_cheaper_nominee_with_an_undecided_p95_is_named_with_what_would_decide_it() -> None:
    decision = decided({"probe": 370, "lora": 380}, {"probe": UNDECIDED, "lora": FAST})
    assert (decision.status, decision.rung) == ("PASS", "lora")
    assert decision.reason.startswith("lora is the cheapest nominee that clears the bar: accuracy 0.950")
    assert "probe costs less per call and clears the target (0.925, at least" in decision.reason
    assert "but its p95 of 64 calls is 934 ms, from 110 to 934 ms" in decision.reason
    remedy = re.search(r"\(about ([\d,]+) calls would decide \(`adapt.budget.(\w+)`\); these show", decision.reason)
    assert remedy is not None
    assert "these show p95_ms: 500 → 940)." in decision.reason
    needed = int(remedy[1].replace(",", ""))
    assert BudgetSpec(**{remedy[2]: needed}).p95_calls == needed > 64
    enough = latency(([0.11] * 15 + [0.934]) * 4 * (needed // 64))
    assert decided({"probe": 370, "lora": 380}, {"probe": enough, "lora": FAST}).status == "PASS"
    assert gate.p95_limit(enough, 500.0, 0.95).holds is not None


def test_every_cheaper_nominee_has_its_own_reason() -> None:
    calls = dict.fromkeys(("low", "near", "slow", "lora"), FAST) | {"slow": SLOW}
    reason = decided({"low": 250, "near": 330, "lora": 380}, calls).reason
    assert "low costs less per call, but is below the target (0.625, at most" in reason
    assert "near costs less per call, but is not shown to clear the target (0.825, at least" in reason
    assert "test rows in all would show it, if 0.8" in reason
    reason = decided({"slow": 380, "lora": 380}, calls).reason
    assert "slow costs less per call and clears the target (0.950, at least" in reason
    assert "over the budget of 500 ms (p95_ms: 500 → 900 would admit it)" in reason
    assert "costs less" not in decided({"lora": 380, "slow": 380}, calls).reason


def test_a_confidence_above_the_requested_one_is_explained_where_it_is_shown() -> None:
    reason = decided({"lora": 380}, {"lora": FAST}).reason
    assert "with 97.0% confidence (so that all verdicts on these rows hold with 95%)" in reason
    reason = decided({"low": 100, "lower": 90}, None).reason
    assert "% confidence (so that both nominees and all verdicts on these rows hold with 95%)" in reason


def test_needed_rows_are_reported_with_their_power_if_the_estimate_is_too_high() -> None:
    undecided = verdict({"lora": 332})
    confirmation = undecided.confirmations[0]
    assert confirmation.expected_low is not None
    assert confirmation.expected is not None
    assert confirmation.power_at_low is not None
    assert 0.8 < confirmation.expected_low < confirmation.expected
    assert confirmation.power_at_low < 0.4
    reason = undecided.decision.reason
    rows = f"{confirmation.needed_n:,} test rows in all"
    assert f"if that is right, a verdict on about {rows} would pass it 80% of the time" in reason
    low = f"if it is {confirmation.expected_low:.3f}, the lower end of an 80% interval"
    assert f"{low}, {confirmation.power_at_low:.0%} of the time" in reason


# --- candidates that were not tried


def omission(rung: str, kind: str) -> NotTried:
    return NotTried.model_validate({"rung": rung, "what": "rung", "kind": kind, "reason": "why"})


def test_untried_candidates_are_listed_by_cause_with_pass_and_fail() -> None:
    outcomes = {
        "lora": RungOutcome("lora", "skipped", "no time", skip="budget", needs={"train_minutes": 7.0}),
        "dora": RungOutcome("dora", "skipped", "slow", skip="budget", needs={"p95_ms": 700.0}),
        "few_shot": RungOutcome("few_shot", "skipped", "few labels", skip="rule"),
        "cascade": RungOutcome("cascade", "skipped", "one skin", skip="impossible"),
    }
    left_out = [omission(name, outcome.skip or "") for name, outcome in outcomes.items()]
    text = advice.untried(left_out, outcomes, "PASS")
    assert text == (
        "Untested for lack of time: lora; because a call is over the budget: dora; by a rule of thumb: few_shot (a "
        "cheaper skin may be among these)."
    )
    for status in ("FAIL", "INSUFFICIENT_DATA"):
        text = advice.untried(left_out, outcomes, status)  # pyright: ignore[reportArgumentType]
        assert text is not None
        assert text.endswith("(a skin that reaches the target may be among these).")
    assert advice.untried(left_out[3:], outcomes, "FAIL") is None


# --- the classical model


def compared(judged: int, classical: int, *, servable: bool = True, **of: object) -> str | None:
    gate_verdict = verdict({"lora": judged}, **of)  # pyright: ignore[reportArgumentType]
    on_test = {"lora": evaluation(rate(judged, 400)), "from_scratch": evaluation(rate(classical, 400))}
    return advice.classical(gate_verdict, on_test, 0, servable=servable)


def test_a_classical_model_that_did_not_pass_is_never_recommended() -> None:
    refused = {"from_scratch": "not nominated: 0.790 on valid does not reach the target of 0.8"}
    equal = compared(380, 381, reasons=refused)
    assert equal is not None
    assert "scores 0.953 on the same rows, no worse than lora" in equal
    assert "but was not nominated: 0.790 on valid does not reach the target of 0.8" in equal
    unwritten = compared(380, 381, servable=False)
    assert unwritten is not None
    assert unwritten.endswith("but cannot be served: no skin was written for it.")
    for text in (equal, unwritten, compared(380, 372, reasons=refused)):
        assert text is not None
        assert "use that" not in text
        assert "consider it" not in text
    assert compared(380, 200) == (
        "A classical model of the task's own labels (from_scratch) scores 0.500 on the same rows (p = 1.3e-54 for the "
        "difference)."
    )


@pytest.mark.parametrize("status", ["PASS", "FAIL", "INSUFFICIENT_DATA", "OUT_OF_BUDGET"])
def test_only_the_skin_that_passed_has_a_line_that_serves_it(
    status: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = report()
    if status != "PASS":
        values["verdict"] |= {"status": status, "rung": None, "skin": None}
    show(Report(values, tmp_path))
    printed = capsys.readouterr().out
    assert (f"--skin {tmp_path / 'skins/lora'}" in printed) == (status == "PASS")
    assert ("no skin to recommend: none has passed" in printed) == (status != "PASS")


def test_a_classical_skin_is_served_without_a_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = report()
    skin = write_skin(words("from_scratch"), tmp_path / "skins" / "from_scratch")
    values["verdict"] |= {"rung": "from_scratch", "skin": "skins/from_scratch"}
    values["rungs"] = [
        {**row, "rung": "from_scratch", "base": None} for row in values["rungs"] if row["rung"] == "lora"
    ]
    show(Report(values, tmp_path))
    assert f"serve --skin {skin}" in capsys.readouterr().out
