"""Constraints rule out by their stated rule whatever the price; bars look at the evidence's own range."""

from __future__ import annotations

from typing import Any

import pytest
from tests.economics.decisions.builders import HOSTED, MACHINE, decided

from bedplate.economics.costs.decisions.explanation import answer, reasons
from bedplate.economics.costs.decisions.question import NOTHING_FEASIBLE, RULES

OWN_RETRIEVAL = {"retrieval": {"passages": 10, "embed_tokens_per_second": 1000}}
SENT_RETRIEVAL = {"retrieval": {"passages": 10, "embedder": "embed"}}
TUNED = {"tuning": {"labels": 10, "machine_hours": 1}}
OPTIONS: dict[str, dict[str, Any]] = {
    "prompt_hosted": HOSTED,
    "tune_hosted": {**HOSTED, "tuning": {"labels": 10}},
    "retrieve_hosted": {**HOSTED, **SENT_RETRIEVAL},
    "prompt_open": MACHINE,
    "tune_open": {**MACHINE, **TUNED},
    "retrieve_open": {**MACHINE, **OWN_RETRIEVAL},
    "retrieve_open_elsewhere": {**MACHINE, **SENT_RETRIEVAL},
    "own": {**MACHINE, "pretraining": {"usd": 1e6}},
    "own_retrieval": {**MACHINE, "pretraining": {"usd": 1e6}, **SENT_RETRIEVAL},
}
SELF_HOSTED = {"prompt_open", "tune_open", "retrieve_open", "own"}
ALLOWED = {
    "regulatory_isolation": {"own"},
    "data_may_not_leave": SELF_HOSTED,
    "latency": SELF_HOSTED,
    "highly_proprietary_data": {*SELF_HOSTED, "prompt_hosted"},
    "frontier_research": {"own", "own_retrieval"},
}


def test_every_constraint_is_tested() -> None:
    assert set(ALLOWED) == set(RULES)


@pytest.mark.parametrize("name", ALLOWED)
def test_a_constraint_rules_out_what_it_says(name: str) -> None:
    decision = decided(OPTIONS, constraints={name: "because"})
    assert {outcome.name for outcome in decision.outcomes if not outcome.broken} == ALLOWED[name]
    assert decision.answer in ALLOWED[name]
    assert decision.unconstrained == "prompt_hosted"
    why = "\n".join(reasons(decision))
    assert f"{name} (because): {RULES[name].explanation}" in why  # pyright: ignore[reportArgumentType]
    out = decision.outcome("tune_hosted")
    assert out.broken == (name,)
    assert out.name in why
    assert {break_even.option for break_even in decision.break_evens} | {
        break_even.against for break_even in decision.break_evens
    } <= ALLOWED[name]


def test_the_price_of_a_constraint_is_said() -> None:
    decision = decided(OPTIONS, constraints={"regulatory_isolation": "the supervisor"})
    free, own_outcome = decision.outcome("prompt_hosted"), decision.outcome("own")
    assert own_outcome.net_usd - free.net_usd == pytest.approx(1e6 + 4800 - 165)
    line = next(reason for reason in reasons(decision) if reason.startswith("Without"))
    assert line == (
        "Without regulatory_isolation it would be prompt_hosted at $165: regulatory_isolation costs $1.00 million."
    )


@pytest.mark.parametrize(
    ("quality", "feasible", "sure", "message"),
    [
        ({"value": 0.92, "low": 0.90, "high": 0.94}, True, None, ""),
        ({"value": 0.92, "low": 0.89, "high": 0.94}, False, False, "may be as low as 0.89, and the bar is 0.9"),
        ({"value": 0.85, "low": 0.83, "high": 0.87}, False, True, "is at most 0.87, and the bar is 0.9"),
        (0.9, True, None, ""),
        (0.899, False, True, "is at most 0.899"),
    ],
)
def test_the_low_end_of_quality_must_clear_the_bar(
    quality: object, feasible: bool, sure: bool | None, message: str
) -> None:
    decision = decided({"it": {**HOSTED, "quality": quality}}, bar={"quality": 0.9})
    outcome = decision.outcome("it")
    assert outcome.feasible is feasible
    assert [short.shown for short in outcome.short] == ([] if sure is None else [sure])
    assert message in "".join(short.text for short in outcome.short)
    assert (decision.answer == NOTHING_FEASIBLE) is not feasible


def test_an_unknown_latency_is_none_that_clears() -> None:
    bar = {"p95_ms": 100}
    decision = decided({"a": HOSTED, "b": {"model": "small", "p95_ms": {"value": 90, "low": 80, "high": 120}}}, bar=bar)
    assert decision.answer == NOTHING_FEASIBLE
    assert answer(decision) == (
        "None of the 2 options will do: a (its p95_ms is not known, and the bar is 100), "
        "b (its p95 latency is up to 120 ms, and the bar is 100)."
    )
    latency = next(sensitivity for sensitivity in decision.sensitivities if sensitivity.input.name == "bar.p95_ms")
    assert latency.above is not None
    assert (latency.above.at, latency.above.to) == (pytest.approx(120), "b")
