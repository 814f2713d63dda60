"""Flipping points: the answer really changes there, looked at anew from the files; and draws."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tests.economics.decisions.builders import HOSTED, PRICES, TODAY, answer_of, decided
from tests.rows import slow_unless

from bedplate.core.errors import ConfigError
from bedplate.economics.costs.decisions import Decision, decide, load_case
from bedplate.economics.costs.decisions.decision import Sensitivity, solve
from bedplate.economics.costs.decisions.decision_file import DecisionInputs, triangle
from bedplate.economics.costs.decisions.explanation import answer, break_even, reasons
from bedplate.economics.costs.decisions.question import NOTHING_PAYS, read_question
from bedplate.economics.numbers.formula import ZERO
from bedplate.economics.numbers.prices import Amount, NonNegative
from bedplate.economics.serving.simulation import percentile

EXAMPLES = Path(__file__).parents[3] / "examples/decide"
CASES = slow_unless(
    ("hosted_at_low_volume.yaml", "from_scratch_for_isolation.yaml").__contains__,
    sorted(path.name for path in EXAMPLES.glob("*.yaml") if path.name != "prices.yaml"),
)


def override(sensitivity: Sensitivity, value: float) -> str:
    """As written on a command line; a quality or latency keeps the width of its range."""
    quantity = sensitivity.input
    if quantity.name.endswith((".quality", ".p95_ms")) and not quantity.exact:
        low, high = value - (quantity.value - quantity.low), value + (quantity.high - quantity.value)
        return f"{quantity.name}=" + json.dumps({"value": value, "low": low, "high": high})
    return f"{quantity.name}={value!r}"


@pytest.mark.parametrize("name", CASES)
def test_at_every_flipping_point_the_answer_really_changes(name: str) -> None:
    decision = decide(*load_case(EXAMPLES / name), TODAY)
    looked_at = 0
    for sensitivity in decision.sensitivities:
        for flip in (sensitivity.below, sensitivity.above):
            if flip is None or sensitivity.input.name.endswith("device_hours_per_token"):
                continue
            looked_at += 1
            step = 1e-6 * (flip.at - sensitivity.input.value)
            beyond, before = (
                answer_of(*load_case(EXAMPLES / name, None, [override(sensitivity, flip.at + sign * step)]))
                for sign in (1, -1)
            )
            if sensitivity.input.name.endswith(".quality") and flip.at + step > 1:
                continue
            assert before == decision.answer, sensitivity.input.name
            assert beyond == flip.to, sensitivity.input.name
            assert beyond != decision.answer
    assert looked_at >= 3


@pytest.mark.parametrize("name", CASES)
def test_what_does_not_flip_does_not_at_the_ends_it_was_looked_for(name: str) -> None:
    decision = decide(*load_case(EXAMPLES / name), TODAY)
    for sensitivity in decision.sensitivities[::6]:  # each is two files read anew
        if sensitivity.flips or sensitivity.input.name.endswith(("device_hours_per_token", ".quality")):
            continue
        for end in sensitivity.input.search:
            try:
                case, prices = load_case(EXAMPLES / name, None, [override(sensitivity, end)])
            except ConfigError:  # a file may not have cached input dearer than input, a range may
                assert sensitivity.input.name.endswith(("million_input", "cached_input"))
                continue
            assert answer_of(case, prices) == decision.answer


@pytest.mark.parametrize("name", CASES)
def test_numbers_that_are_moved_are_what_overrides_say(name: str) -> None:
    question, rng = read_question(*load_case(EXAMPLES / name), TODAY), random.Random(name)
    rows = [row for row in question.inputs if row.name.startswith(("traffic.", "prices.staff", "prices.machines"))]
    values = {row.name: rng.uniform(*row.search) for row in rng.sample(rows, 3)}
    stated = decide(*load_case(EXAMPLES / name, None, [f"{key}={value!r}" for key, value in values.items()]), TODAY)
    moved = solve(question.moved(values))
    assert answer(moved) == answer(stated)
    assert reasons(moved) == reasons(stated)
    assert list(map(break_even, moved.break_evens)) == list(map(break_even, stated.break_evens))
    flips = [
        {row.input.name: (row.below, row.above) for row in decision.sensitivities if row.input.name not in values}
        for decision in (moved, stated)
    ]
    assert flips[0] == flips[1]


RANGED = PRICES.replace(
    "small: {usd_per_million_input: 1", "small: {usd_per_million_input: {value: 1, low: 1, high: 4}"
)
TWO = {
    "a": {"model": "small"},
    "b": {**HOSTED, "text": {"instructions": 0, "examples": 0}, "setup": {"usd": 50}},
}


def two(**changes: Any) -> Decision:
    return decided(TWO, **changes)


def test_a_flip_by_hand() -> None:
    """a: 750 a million per call; b: 1,400 and 50 USD. Dearer input makes b the answer."""
    decision = two()
    assert decision.answer == "a"
    price = next(
        sensitivity
        for sensitivity in decision.sensitivities
        if sensitivity.input.name.endswith("small.usd_per_million_input")
    )
    # 100,000 × (600 p + 150) / 10⁶ = 50 + 100,000 × 1,400 / 10⁶
    assert price.above is not None
    assert price.above.at == pytest.approx(((50 + 140) * 10 - 150) / 600)
    assert (price.above.to, price.below) == ("b", None)
    assert not price.above.within
    assert price.nearness == pytest.approx(price.above.at)
    volume = next(
        sensitivity for sensitivity in decision.sensitivities if sensitivity.input.name == "traffic.calls_per_day"
    )
    assert not volume.flips  # b costs more to start and per call


def test_ranges_say_whether_a_flip_lies_within() -> None:
    decision = decided(TWO, prices=RANGED)
    price = next(
        sensitivity
        for sensitivity in decision.sensitivities
        if sensitivity.input.name.endswith("small.usd_per_million_input")
    )
    assert price.above is not None
    assert price.above.within
    assert 0 < decision.outcome("b").best_in < 0.5
    assert decision.outcome("a").best_in + decision.outcome("b").best_in == pytest.approx(1)


def test_share_of_draws_that_win_is_the_share_of_the_triangle() -> None:
    flip = ((50 + 140) * 10 - 150) / 600
    beyond = ((4 - flip) / 3) ** 2  # of a triangle that falls from 1 to 4
    assert decided(TWO, prices=RANGED).outcome("b").best_in == pytest.approx(beyond, abs=0.006)


def test_an_interval_is_the_triangles_percentiles_and_repeats_with_its_seed() -> None:
    option = {"it": {"model": "small", "setup": {"usd": {"value": 1000, "low": 400, "high": 2000}}}}
    outcome = decided(option).outcome("it")
    calls = 100_000 * 750 / 1e6
    low = 400 + (0.05 * 1600 * 600) ** 0.5
    high = 2000 - (0.05 * 1600 * 1000) ** 0.5
    assert outcome.total_interval == pytest.approx((low + calls, high + calls), rel=0.02)
    assert decided(option).outcome("it").total_interval == outcome.total_interval
    assert decided(option, "seed=1").outcome("it").total_interval != outcome.total_interval


def test_none_that_pays_is_an_answer_and_revenue_can_flip_it() -> None:
    options = {"a": {"model": "small"}}
    decision = decided(options, value={"usd_per_call": 0.0005})
    assert decision.answer == NOTHING_PAYS
    assert decision.chosen is None
    revenue = next(
        sensitivity for sensitivity in decision.sensitivities if sensitivity.input.name == "value.usd_per_call"
    )
    assert revenue.above is not None
    assert revenue.above.at == pytest.approx(750 / 1e6)
    assert revenue.above.to == "a"


def test_the_triangle_and_percentiles_against_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for u in (0.0, 0.01, 0.3, 0.5, 0.99, 1.0):
        expected = stats.triang.ppf(u, (3 - 1) / (7 - 1), loc=1, scale=6)
        assert triangle(u, 1, 3, 7) == pytest.approx(expected)
        assert triangle(u, 1, 1, 7) == pytest.approx(stats.triang.ppf(u, 0, loc=1, scale=6))
    assert percentile([1, 2, 4, 8], 0.5) == 3
    assert percentile([1, 2, float("inf")], 0.4) == pytest.approx(1.8)
    assert percentile([1, 2, float("inf")], 0.9) == float("inf")


def test_draws_fill_every_stratum_and_leave_exact_numbers() -> None:
    inputs = DecisionInputs()
    inputs.add("a", Amount(value=2, low=1, high=3), "test")
    inputs.add("b", Amount.exactly(5), "test")
    assert inputs.add("c", NonNegative.exactly(0), "test") == ZERO  # which is no input
    draws = inputs.draws(50, seed=3)
    assert list(draws) == [0]
    ordered = sorted(draws[0])
    for i, value in enumerate(ordered):
        assert triangle(i / 50, 1, 2, 3) <= value <= triangle((i + 1) / 50, 1, 2, 3)
