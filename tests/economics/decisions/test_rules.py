"""Constraints rule out by their stated rule whatever the price; bars look at the evidence's own range."""

from __future__ import annotations

from typing import Any

import pytest
from tests.economics.decisions.builders import HOSTED, MACHINE, decided

from bedplate.economics.bills.decisions.exclusions import RULES
from bedplate.economics.bills.decisions.sensitivity import NOTHING_FEASIBLE
from bedplate.economics.bills.decisions.words import answer, reasons

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
HERE = {"prompt_open", "tune_open", "retrieve_open", "own"}
ALLOWED = {
    "regulatory_isolation": {"own"},
    "data_may_not_leave": HERE,
    "latency": HERE,
    "highly_proprietary_data": {*HERE, "prompt_hosted"},
    "frontier_research": {"own", "own_retrieval"},
}


def test_every_constraint_is_tested() -> None:
    assert set(ALLOWED) == set(RULES)


@pytest.mark.parametrize("name", ALLOWED)
def test_a_constraint_rules_out_what_it_says(name: str) -> None:
    found = decided(OPTIONS, constraints={name: "because"})
    assert {one.name for one in found.outcomes if not one.broken} == ALLOWED[name]
    assert found.answer in ALLOWED[name]
    assert found.unconstrained == "prompt_hosted"
    why = "\n".join(reasons(found))
    assert f"{name} (because): {RULES[name].says}" in why  # pyright: ignore[reportArgumentType]
    out = found.outcome("tune_hosted")
    assert out.broken == (name,)
    assert out.name in why
    assert {one.option for one in found.break_evens} | {one.against for one in found.break_evens} <= ALLOWED[name]


def test_the_price_of_a_constraint_is_said() -> None:
    found = decided(OPTIONS, constraints={"regulatory_isolation": "the supervisor"})
    free, own = found.outcome("prompt_hosted"), found.outcome("own")
    assert own.net_usd - free.net_usd == pytest.approx(1e6 + 4800 - 165)
    line = next(one for one in reasons(found) if one.startswith("Without"))
    assert line == (
        "Without regulatory_isolation it would be prompt_hosted at $165: regulatory_isolation costs $1.00 million."
    )


@pytest.mark.parametrize(
    ("quality", "feasible", "sure", "says"),
    [
        ({"value": 0.92, "low": 0.90, "high": 0.94}, True, None, ""),
        ({"value": 0.92, "low": 0.89, "high": 0.94}, False, False, "only shown to be at least 0.89; 0.9 is wanted"),
        ({"value": 0.85, "low": 0.83, "high": 0.87}, False, True, "is at most 0.87; 0.9 is wanted"),
        (0.9, True, None, ""),
        (0.899, False, True, "is at most 0.899"),
    ],
)
def test_the_low_end_of_quality_must_clear_the_bar(
    quality: object, feasible: bool, sure: bool | None, says: str
) -> None:
    found = decided({"it": {**HOSTED, "quality": quality}}, bar={"quality": 0.9})
    one = found.outcome("it")
    assert one.feasible is feasible
    assert [short.shown for short in one.short] == ([] if sure is None else [sure])
    assert says in "".join(short.text for short in one.short)
    assert (found.answer == NOTHING_FEASIBLE) is not feasible


def test_an_unknown_latency_is_none_that_clears() -> None:
    bar = {"p95_ms": 100}
    found = decided({"a": HOSTED, "b": {"model": "small", "p95_ms": {"value": 90, "low": 80, "high": 120}}}, bar=bar)
    assert found.answer == NOTHING_FEASIBLE
    assert answer(found) == (
        "None of the 2 options will do: a (its p95_ms is not known; at most 100 is wanted), "
        "b (its p95 latency is up to 120 ms; at most 100 is wanted)."
    )
    latency = next(each for each in found.sensitivities if each.input.name == "bar.p95_ms")
    assert latency.above is not None
    assert (latency.above.at, latency.above.to) == (pytest.approx(120), "b")
