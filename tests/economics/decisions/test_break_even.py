"""Break-even volumes: closed forms and brute force as oracles; `never` is a value with a reason."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.economics.decisions.builders import HOSTED, PRICES, decided

from bedplate.core.errors import UsageError
from bedplate.economics.costs.decisions.decision import last_change
from bedplate.economics.costs.decisions.explanation import as_values, break_even

DAYS = 100
TUNED = {
    "model": "large",
    "text": {"instructions": 20, "examples": 0},
    "tuning": {"labels": 1000, "epochs": 1, "hours": 10},
}
EXTRA = 1000 * 0.5 + 10 * 100 + 1000 * 170 * 25 / 1e6  # labels, hours, training tokens


def by_hand(prefix: float = 500, input_: float = 100, output: float = 50, multiplier: float = 1.5) -> float | None:
    """Calls a day from which tuning is cheaper: extra / saving per call / days."""
    prompted = (prefix * 0.5 + input_ * 4 + output * 20) / 1e6
    tuned = (20 * 0.5 + input_ * 4 + output * 20) * multiplier / 1e6
    return EXTRA / (prompted - tuned) / DAYS if prompted > tuned else None


def test_a_pair_that_names_no_option_is_refused() -> None:
    with pytest.raises(UsageError, match="no option 'tunned'; its options are prompt, tuned"):
        decided({"prompt": HOSTED, "tuned": TUNED}).break_even("tunned", "prompt")


def test_tuning_never_pays_where_its_premium_is_more_than_the_spared_prompt() -> None:
    """480 tokens at their cached price are 240 in a million; half as much again on 1,400 is more."""
    assert by_hand() is None
    crossing = decided({"prompt": HOSTED, "tuned": TUNED}).break_even("tuned", "prompt")
    assert crossing is not None
    assert (crossing.option, crossing.against) == ("tuned", "prompt")
    assert crossing.calls_per_day is None
    assert crossing.days is None
    assert crossing.reason is not None
    assert "saves $0.000235 on repeated prompt (its prompt is 480 tokens shorter)" in crossing.reason
    assert "but adds $0.0002 on input and $0.0005 on output" in crossing.reason
    assert "never" in break_even(crossing)


def test_tuning_pays_from_the_volume_that_earns_back_what_it_costs() -> None:
    prices = PRICES.replace("price_multiplier: 1.5", "price_multiplier: 1.05")
    crossing = decided({"prompt": HOSTED, "tuned": TUNED}, "traffic.calls_per_day=9000", prices=prices).break_even(
        "prompt", "tuned"
    )
    assert crossing is not None
    expected = by_hand(multiplier=1.05)
    assert expected is not None
    assert crossing.calls_per_day == pytest.approx(expected)
    assert crossing.interval is None  # no number has a range
    saving = EXTRA / expected / DAYS  # of a call
    assert crossing.days == pytest.approx(EXTRA / (9000 * saving))


def test_the_uncached_price_would_have_hidden_a_never() -> None:
    """At the full input price the same prompt seems to pay: the cached price is what decides."""
    uncached = PRICES.replace("    usd_per_million_cached_input: 0.5\n", "")
    crossing = decided({"prompt": HOSTED, "tuned": TUNED}, prices=uncached).break_even("tuned", "prompt")
    assert crossing is not None
    assert crossing.calls_per_day is not None


@given(prefixes=st.tuples(st.floats(0, 1e5), st.floats(0, 1e5)), multiplier=st.floats(0.8, 3))
@settings(deadline=None, max_examples=5)
def test_with_fewer_spared_tokens_it_never_pays_earlier(prefixes: tuple[float, float], multiplier: float) -> None:
    short_prefix, long_prefix = sorted(round(prefix, 6) for prefix in prefixes)
    prices = PRICES.replace("price_multiplier: 1.5", f"price_multiplier: {multiplier!r}")
    volumes: list[float] = []
    for examples in (short_prefix, long_prefix):
        crossing = decided(
            {"prompt": HOSTED, "tuned": TUNED}, f"text.examples={examples!r}", "text.instructions=0", prices=prices
        ).break_even("tuned", "prompt")
        assert crossing is not None
        expected = by_hand(examples, multiplier=multiplier)
        assert crossing.calls_per_day == (None if expected is None else pytest.approx(expected, rel=1e-6))
        volumes.append(math.inf if crossing.calls_per_day is None else crossing.calls_per_day)
    assert volumes[0] >= volumes[1] * (1 - 1e-9)


def test_what_is_cheaper_to_start_and_per_call_leaves_the_other_never() -> None:
    crossing = decided({"a": HOSTED, "b": {**HOSTED, "setup": {"hours": 1}}}).break_even("a", "b")
    assert crossing is not None
    assert (crossing.option, crossing.calls_per_day) == ("b", None)
    assert crossing.reason == "b costs more than a at no volume, and the same per call"


def test_equal_starts_break_even_at_any_volume() -> None:
    crossing = decided({"dear": HOSTED, "cheap": {"model": "small"}}).break_even("dear", "cheap")
    assert crossing is not None
    # neither costs anything at no volume: whichever is named, it is cheaper from the first call on, or never
    assert crossing.calls_per_day in {0.0, None}
    assert (crossing.calls_per_day == 0.0) == (crossing.option == "cheap")
    longer = decided({"dear": {**HOSTED, "text": {"output": 80}}, "cheap": HOSTED}).break_even("dear", "cheap")
    assert longer is not None
    assert longer.reason in {None, "dear costs as much as cheap at no volume, and more per call"}
    assert (longer.reason is None) == (longer.option == "cheap")


RESERVED = {
    "machine": {"name": "box", "seconds_per_call": 0.2, "utilisation": 0.5},
    "setup": {"hours": 40},
}


def brute(volumes: list[float], hosted_call: float, growth: float = 0.0, parts: int = 1) -> float:
    """The last volume at which 40 hours and whole machines at $48 a day cost more than hosted calls; a day in parts."""
    capacity = 86_400 * 0.5 / 0.2
    last = 0.0
    for volume in volumes:
        days = [(i + 0.5) / parts for i in range(DAYS * parts)]
        calls = [volume * (1 + growth) ** (day / 365) / parts for day in days]
        reserved = 4000 + sum(
            48 / parts * max(1, math.ceil(daily_calls * parts / capacity - 1e-9)) for daily_calls in calls
        )
        if reserved >= sum(calls) * hosted_call:
            last = volume
    return last


@pytest.mark.parametrize("price", [0.02, *(pytest.param(price, marks=pytest.mark.slow) for price in (0.05, 4.0)), 0.4])
def test_whole_machines_make_steps_and_every_one_counts(price: float) -> None:
    prices = PRICES.replace("small: {usd_per_million_input: 1", f"small: {{usd_per_million_input: {price}")
    hosted_call = (600 * price + 50 * 3) / 1e6
    crossing = decided({"hosted": {"model": "small"}, "open": RESERVED}, prices=prices).break_even("open", "hosted")
    assert crossing is not None
    steps = [10 * 1.002**i for i in range(8000)]
    machine_call = 48 / (86_400 * 0.5 / 0.2)
    if hosted_call <= machine_call:
        assert crossing.calls_per_day is None
        return
    assert crossing.calls_per_day == pytest.approx(brute(steps, hosted_call), rel=0.005)


def test_a_window_that_closes_again_is_told_but_is_no_break_even() -> None:
    """A difference that is below 0 from 1 to 3 and from 5 on, or before that alone."""
    places = [0.5 * n for n in range(1, 20)]
    assert last_change(lambda x: (x - 1) * (x - 3) * (5 - x), places) == (
        pytest.approx(5),
        ((pytest.approx(1), pytest.approx(3)),),
    )
    assert last_change(lambda x: x - 2.2, places) == (None, ((0.0, pytest.approx(2.2)),))
    assert last_change(lambda x: -x, places) == (0.0, ())


def test_a_machine_that_must_be_added_closes_the_window() -> None:
    """One machine for $4,800 is cheaper than hosted calls until a second one is needed, at 216,000 calls a day."""
    price = 0.22 / 1e6 * 600 + 50 * 3 / 1e6  # of a hosted call, a little above that of a full machine
    prices = PRICES.replace("small: {usd_per_million_input: 1", "small: {usd_per_million_input: 0.22")
    machine = {"machine": {"name": "box", "seconds_per_call": 0.2, "utilisation": 0.5}}
    point = decided({"hosted": {"model": "small"}, "open": machine}, prices=prices).break_even("open", "hosted")
    assert point is not None
    assert point.windows[0] == pytest.approx((4800 / 100 / price, 216_000), rel=1e-6)
    assert "for a while also at volumes from" in break_even(point)


def test_intervals_hold_the_value_and_say_never_where_some_draws_do() -> None:
    prices = PRICES.replace("price_multiplier: 1.5", "price_multiplier: {value: 1.05, low: 1.0, high: 1.1}")
    crossing = decided({"prompt": HOSTED, "tuned": TUNED}, prices=prices).break_even("tuned", "prompt")
    assert crossing is not None
    assert crossing.interval is not None
    low, high = crossing.interval
    assert low is not None
    assert crossing.calls_per_day is not None
    assert low < crossing.calls_per_day
    assert high is None or high > crossing.calls_per_day
    # 1.17 is where the premium eats the saving: with a range beyond it, more than one draw in twenty never pays
    wide_prices = PRICES.replace("price_multiplier: 1.5", "price_multiplier: {value: 1.05, low: 1.0, high: 1.5}")
    wider = decided({"prompt": HOSTED, "tuned": TUNED}, prices=wide_prices).break_even("tuned", "prompt")
    assert wider is not None
    assert wider.interval is not None
    assert wider.interval[1] is None
    assert "to never" in break_even(wider)


def test_a_plain_range_maps_onto_the_break_even() -> None:
    """Break-even is proportional to the labour price here: a triangle's 5th and 95th percentiles, by hand."""
    low, mode, high = 50.0, 100.0, 200.0
    prices = PRICES.replace("usd_per_hour: 100,", "usd_per_hour: {value: 100, low: 50, high: 200},").replace(
        "price_multiplier: 1.5", "price_multiplier: 1.0"
    )
    tuned = {**TUNED, "tuning": {"labels": 0, "hours": 10}}
    crossing = decided({"prompt": HOSTED, "tuned": tuned}, prices=prices).break_even("tuned", "prompt")
    assert crossing is not None
    assert crossing.interval is not None
    saving = 480 * 0.5 / 1e6
    p5 = low + math.sqrt(0.05 * (high - low) * (mode - low))
    p95 = high - math.sqrt(0.05 * (high - low) * (high - mode))
    assert crossing.interval == pytest.approx((10 * p5 / saving / DAYS, 10 * p95 / saving / DAYS), rel=0.02)


def test_days_come_from_the_whole_course_of_costs() -> None:
    """Tuned again every 30 days: what is saved between two refreshes must earn back the refresh too."""
    tuned = {
        "model": "large",
        "text": {"instructions": 0, "examples": 0},
        "tuning": {"labels": 0, "hours": 10, "refresh": {"every_days": 30, "hours": 1}},
    }
    prices = PRICES.replace("price_multiplier: 1.5", "price_multiplier: 1.0")
    per_day = 1e5 * 500 * 0.5 / 1e6  # saved in a day
    crossing = decided({"prompt": HOSTED, "tuned": tuned}, "traffic.calls_per_day=1e5", prices=prices).break_even(
        "tuned", "prompt"
    )
    assert crossing is not None

    def behind(days: float) -> bool:
        return 1000 + 100 * max(0, math.ceil(days / 30) - 1) >= per_day * days

    last = max(day / 100 for day in range(1, 100_000) if behind(day / 100))
    assert crossing.days == pytest.approx(last, abs=0.02)


def test_no_number_in_the_json_is_infinite() -> None:
    wide_prices = PRICES.replace("price_multiplier: 1.5", "price_multiplier: {value: 1.4, low: 1.0, high: 1.5}")
    decision = decided({"prompt": HOSTED, "tuned": TUNED, "open": RESERVED}, prices=wide_prices)
    text = json.dumps(as_values(decision), allow_nan=False)
    assert all(row["calls_per_day"] is not None or row["reason"] for row in json.loads(text)["break_evens"])
