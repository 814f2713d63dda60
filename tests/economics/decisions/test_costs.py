"""Totals against arithmetic written out by hand, and what they may never do as an input rises."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.economics.decisions.builders import (
    HOSTED,
    MACHINE,
    PRICES,
    bills,
    case_values,
    decided,
    outcome,
    parsed,
    totals,
)

from bedplate.core.errors import BedplateError
from bedplate.economics.costs.decisions.explanation import as_values, reasons
from bedplate.economics.hardware.devices import find_device
from bedplate.economics.numbers.money import usd
from bedplate.economics.training.training_cost import plan_training

CALLS = 100_000  # 1,000 a day for 100 days


def test_a_hosted_prompt_pays_the_cached_price_for_what_repeats() -> None:
    result = outcome(HOSTED)
    per_call = (500 * 0.5 + 100 * 4 + 50 * 20) / 1e6
    assert result.total_usd == pytest.approx(CALLS * per_call)
    assert result.cost_per_call == pytest.approx(per_call)
    assert bills(result) == pytest.approx({"repeated prompt": 25.0, "input": 40.0, "output": 100.0})


def test_what_misses_the_cache_pays_the_price_of_writing_there() -> None:
    write = PRICES.replace(
        "usd_per_million_cached_input: 0.5", "usd_per_million_cached_input: 0.5\n    usd_per_million_cache_write: 6"
    )
    result = outcome(HOSTED, "traffic.cached_share=0.7", prices=write)
    assert bills(result)["repeated prompt"] == pytest.approx(CALLS * 500 * (0.7 * 0.5 + 0.3 * 6) / 1e6)
    rare = outcome(HOSTED, "traffic.cached_share=0.1", prices=write)  # then nobody would cache
    assert bills(rare)["repeated prompt"] == pytest.approx(CALLS * 500 * 4 / 1e6)


def test_a_short_prefix_pays_in_full_or_is_padded() -> None:
    padded = PRICES.replace("batch_discount: 0.5", "batch_discount: 0.5\n    smallest_cached_prefix_tokens: 1000")
    assert bills(outcome(HOSTED, prices=padded))["repeated prompt"] == pytest.approx(CALLS * 1000 * 0.5 / 1e6)
    shorter = outcome(HOSTED, "text.examples=0", "text.instructions=100", prices=padded)
    assert bills(shorter)["repeated prompt"] == pytest.approx(CALLS * 100 * 4 / 1e6)


def test_padding_is_said_billed_and_switched_off() -> None:
    prices = PRICES.replace("batch_discount: 0.5", "batch_discount: 0.5\n    smallest_cached_prefix_tokens: 1000")
    decision = decided(
        {"padded": HOSTED, "plain": {**HOSTED, "pad_prompt": False}, "small": {"model": "small"}}, prices=prices
    )
    padded, plain, small = (decision.outcome(name) for name in ("padded", "plain", "small"))
    assert (padded.prompt_tokens, padded.padding_tokens, padded.billed_prompt_tokens) == (600, 500, 1100)
    assert bills(plain)["repeated prompt"] == pytest.approx(CALLS * 500 * 4 / 1e6)
    assert padded.padding_saves_usd == pytest.approx(plain.total_usd - padded.total_usd)
    assert plain.padding_tokens == small.padding_tokens == small.padding_saves_usd == 0
    [line] = [line for line in reasons(decision) if "padding" in line]
    assert line == (
        "padded is billed 1,100 prompt tokens a call: 500 are padding, with which its repeated prompt is cached; "
        f"without it (pad_prompt: false) it costs {usd(plain.total_usd)}."
    )
    assert as_values(decision)["options"][0]["billed_prompt_tokens"] == 1100
    long = decided({"plain": {**HOSTED, "pad_prompt": False}}, "text.examples=900", prices=prices).outcomes[0]
    assert bills(long)["repeated prompt"] == pytest.approx(CALLS * 1100 * 0.5 / 1e6), "long enough without padding"
    waits = decided({"padded": HOSTED}, "traffic.waiting_share=0.4", "text.input=9", prices=prices).outcomes[0]
    assert waits.padding_tokens == 0.6 * 500, "calls that wait are not padded"


def test_without_padding_calls_that_wait_take_the_batch_price() -> None:
    prices = PRICES.replace("batch_discount: 0.5", "batch_discount: 0.5\n    smallest_cached_prefix_tokens: 600")
    options = {"padded": HOSTED, "plain": {**HOSTED, "pad_prompt": False}}
    decision = decided(options, "traffic.waiting_share=0.4", prices=prices)
    padded, plain = (decision.outcome(name) for name in ("padded", "plain"))
    assert padded.padding_tokens == 100, "a padded call is cheaper than one that waits"
    assert padded.padding_saves_usd == pytest.approx(plain.total_usd - padded.total_usd)


def test_calls_of_a_month_with_their_range() -> None:
    traffic = {"horizon_days": 100, "calls_per_month": {"value": "365k", "low": 36_500, "high": "730k"}}
    case, _ = parsed(case_values({"it": HOSTED}, traffic=traffic))
    calls = case.traffic.calls_per_day
    assert (calls.low, calls.value, calls.high) == pytest.approx((1200, 12_000, 24_000))


def test_no_cached_price_is_the_price_of_any_input() -> None:
    assert outcome({"model": "small"}).total_usd == pytest.approx(CALLS * (600 * 1 + 50 * 3) / 1e6)


def test_calls_that_wait_take_the_batch_price_where_it_is_cheaper() -> None:
    live = (500 * 0.5 + 100 * 4 + 50 * 20) / 1e6
    batch = 0.5 * (600 * 4 + 50 * 20) / 1e6
    assert batch > live  # the long cached prefix is worth more than the discount here
    assert outcome(HOSTED, "traffic.waiting_share=0.4").cost_per_call == pytest.approx(live)
    live, batch = (100 * 4 + 50 * 20) / 1e6, 0.5 * (100 * 4 + 50 * 20) / 1e6
    result = outcome(HOSTED, "traffic.waiting_share=0.4", "text.instructions=0", "text.examples=0")
    assert result.cost_per_call == pytest.approx(0.6 * live + 0.4 * batch)


def test_each_side_counts_the_same_text_with_its_own_tokenizer() -> None:
    words = {"unit": "words", "instructions": 100, "examples": 0, "input": 200, "output": 10}
    decision = decided(
        {
            "a": {"model": "small", "tokens_per_unit": 1.3},
            "b": {"model": "small", "tokens_per_unit": 1.8},
            "own": {
                "model": "small",
                "text": {"unit": "tokens", "instructions": 120, "examples": 0, "input": 250, "output": 14},
            },
        },
        text=words,
    )
    assert decision.outcome("a").total_usd == pytest.approx(CALLS * 1.3 * (300 * 1 + 10 * 3) / 1e6)
    assert decision.outcome("b").total_usd == pytest.approx(CALLS * 1.8 * (300 * 1 + 10 * 3) / 1e6)
    assert decision.outcome("own").total_usd == pytest.approx(CALLS * (370 * 1 + 14 * 3) / 1e6)
    assert decision.ranking == ("own", "a", "b")


def test_a_tuned_hosted_model_costs_labels_work_training_tokens_and_its_premium() -> None:
    tuned = {
        "model": "large",
        "text": {"instructions": 20, "examples": 0},
        "setup": {"hours": 8, "evaluation_labels": 400, "usd": 70},
        "upkeep": {"hours_per_month": 3, "usd_per_month": 5},
        "tuning": {"labels": 1000, "epochs": 2, "hours": 30, "refresh": {"every_days": 30, "labels": 100, "hours": 4}},
    }
    result = outcome(tuned)
    months = 100 / (365 / 12)
    compute = 1000 * 2 * (20 + 100 + 50) * 25 / 1e6
    expected = {
        "engineering": 8 * 100,
        "evaluation labels": 400 * 0.5,
        "other": 70,
        "training labels": 500,
        "tuning work": 3000,
        "tuning compute": compute,
        "upkeep": 3 * 100 * months,
        "other, monthly": 5 * months,
        "tuning again": 3 * (100 * 0.5 + 4 * 100 + compute),  # on days 30, 60 and 90
        "repeated prompt": CALLS * 20 * 0.5 * 1.5 / 1e6,
        "input": CALLS * 100 * 4 * 1.5 / 1e6,
        "output": CALLS * 50 * 20 * 1.5 / 1e6,
    }
    assert bills(result) == pytest.approx(expected)
    assert result.total_usd == pytest.approx(sum(expected.values()))


@pytest.mark.parametrize(("interval_days", "times"), [(100, 0), (99.9, 1), (50, 1), (33, 3), (7, 14), (400, 0)])
def test_a_refresh_falls_before_the_horizon_ends(interval_days: float, times: int) -> None:
    tuned = {**HOSTED, "tuning": {"labels": 0, "refresh": {"every_days": interval_days, "hours": 1}}}
    assert bills(outcome(tuned)).get("tuning again", 0.0) == pytest.approx(times * 100)


def test_reserved_machines_are_paid_day_and_night() -> None:
    result = outcome(MACHINE)  # 1,000 calls of 0.2 s are 200 s of 86,400
    assert result.machines == 1
    assert result.total_usd == pytest.approx(2 * 24 * 100)
    assert result.busy == pytest.approx(200 / 86_400)


def test_utilisation_divides_what_a_machine_can_do() -> None:
    full = 86_400 * 0.5 / 0.2  # calls a day at half its time
    assert outcome(MACHINE, f"traffic.calls_per_day={full}").machines == 1
    assert outcome(MACHINE, f"traffic.calls_per_day={full + 1}").machines == 2
    assert outcome(MACHINE, f"traffic.calls_per_day={full}", "options.it.machine.utilisation=1").machines == 1
    assert outcome(MACHINE, f"traffic.calls_per_day={full}", "options.it.machine.utilisation=0.1").machines == 5
    assert outcome(MACHINE, f"traffic.calls_per_day={full}", "traffic.peak_to_mean=3").machines == 3
    assert outcome(MACHINE, "options.it.machine.at_least=2").total_usd == pytest.approx(2 * 2 * 24 * 100)


@pytest.mark.parametrize("utilisation", [0.05, 0.2, 0.8])
def test_by_use_an_idle_pool_makes_calls_dearer(utilisation: float) -> None:
    by_use = {"machine": {"name": "box", "seconds_per_call": 0.2, "utilisation": utilisation, "paid": "by_use"}}
    assert outcome(by_use).cost_per_call == pytest.approx(2 / 3600 * 0.2 / utilisation)


def test_speeds_count_cached_tokens_as_nothing() -> None:
    use = {
        "name": "box",
        "prefill_tokens_per_second": 1000,
        "decode_tokens_per_second": 100,
        "utilisation": 1,
        "paid": "by_use",
    }
    result = outcome({"machine": use}, "traffic.cached_share=0.8")
    assert result.cost_per_call == pytest.approx(2 / 3600 * ((0.2 * 500 + 100) / 1000 + 50 / 100))


def test_retrieval_adds_passages_vectors_and_an_index() -> None:
    retrieval = {"passages": 700, "corpus": 2e6, "changed_per_month": 0.3, "usd_per_month": 40}
    months = 100 / (365 / 12)
    hosted = outcome({**HOSTED, "retrieval": {**retrieval, "embedder": "embed"}})
    assert bills(hosted) == pytest.approx(
        {
            "repeated prompt": 25.0,
            "input": 40.0,
            "passages": CALLS * 700 * 4 / 1e6,
            "output": 100.0,
            "query embedding": CALLS * 100 * 0.1 / 1e6,
            "embedding the corpus": 0.2,
            "embedding what changes": 0.2 * 0.3 * months,
            "index": 40 * months,
        }
    )
    machine_option = {**MACHINE, "retrieval": {**retrieval, "embed_tokens_per_second": 1000}}
    result = outcome(machine_option)
    corpus = 2e6 / 1000 / 3600 * 2
    assert bills(result)["embedding the corpus"] == pytest.approx(corpus)
    assert result.busy == pytest.approx(1000 * (0.2 + 100 / 1000) / 86_400)


def test_tuning_on_a_machine_takes_its_hours_or_its_speed() -> None:
    stated = outcome({**MACHINE, "tuning": {"labels": 0, "machine_hours": 6, "machine": "node"}})
    assert bills(stated)["tuning compute"] == pytest.approx(6 * 16)
    by_speed = outcome({**MACHINE, "tuning": {"labels": 900, "epochs": 4, "tokens_per_second": 500}})
    assert bills(by_speed)["tuning compute"] == pytest.approx(900 * 4 * 650 / 500 / 3600 * 2)


def test_pretraining_is_shared_by_features() -> None:
    stated = {"usd": 90_000, "runs": 2, "data_usd": 30_000, "hours": 600, "features": 3}
    bill = bills(outcome({**MACHINE, "pretraining": stated}))
    assert bill["pretraining compute"] == pytest.approx(60_000)
    assert bill["pretraining data"] == pytest.approx(10_000)
    assert bill["pretraining work"] == pytest.approx(20_000)


def test_a_planned_pretraining_run_costs_its_plan_at_the_files_price() -> None:
    run = {"model": "llama-3.2-1b", "tokens": 1e11, "machine": "node", "devices": 16}
    result = outcome({**MACHINE, "pretraining": {"run": run}})
    hours = plan_training("llama-3.2-1b", 1e11, find_device("h100"), 16).gpu_hours
    assert bills(result)["pretraining compute"] == pytest.approx(hours.central * 16 / 8)
    low, high = result.total_interval
    assert hours.low * 2 < low < hours.central * 2 + 4800 < high < hours.high * 2 + 4800 + 1


def test_quality_prices_right_and_wrong_answers() -> None:
    option = {**HOSTED, "quality": 0.8}
    result = outcome(option, value={"usd_per_wrong_answer": 0.05})
    assert result.cost_per_right_answer == pytest.approx(result.cost_per_call / 0.8)
    assert result.net_usd == pytest.approx(result.total_usd + CALLS * 0.2 * 0.05)


def test_profit_is_revenue_after_its_margin_less_cost() -> None:
    option = {**HOSTED, "quality": 0.8}
    value = {"usd_per_call": 0.01, "margin": 0.6}
    result = outcome(option, value=value)
    assert result.profit_usd == pytest.approx(CALLS * 0.006 - result.total_usd)
    right = outcome(option, value={**value, "earned_by": "right_answer"})
    assert right.profit_usd == pytest.approx(CALLS * 0.006 * 0.8 - result.total_usd)
    assert outcome(option).profit_usd is None


@pytest.mark.parametrize("growth", [0.7, -0.4])
def test_growth_compounds_over_the_horizon(growth: float) -> None:
    decision = decided({"it": HOSTED}, f"traffic.growth_per_year={growth}")
    steps = 200_000
    summed = sum((1 + growth) ** ((i + 0.5) * 100 / steps / 365) for i in range(steps)) * 100 / steps
    assert decision.calls == pytest.approx(1000 * summed, rel=1e-9)


def test_where_calls_grow_machines_are_reserved_by_quarters() -> None:
    calls, growth = 1.3e6, 1.5  # six to seven machines that do 216,000 calls a day
    grown = [calls * (1 + growth) ** (100 * part / 4 / 365) / 216_000 for part in range(5)]
    fleets = [math.ceil(max(ends)) for ends in pairwise(grown)]
    assert len(set(fleets)) > 1
    found = outcome(MACHINE, f"traffic.calls_per_day={calls}", f"traffic.growth_per_year={growth}")
    assert found.machines == max(fleets)
    assert found.total_usd == pytest.approx(sum(fleets) / 4 * 2 * 24 * 100)
    shrinking = outcome(MACHINE, f"traffic.calls_per_day={calls}", "traffic.growth_per_year=-0.5")
    assert shrinking.machines == math.ceil(grown[0])


OPTIONS = {
    "prompt": {**HOSTED, "setup": {"hours": 10}},
    "tuned": {
        **HOSTED,
        "text": {"instructions": 20, "examples": 0},
        "tuning": {"labels": 500, "hours": 20, "refresh": {"every_days": 40, "labels": 50, "hours": 2}},
    },
    "open": {
        "machine": {
            "name": "box",
            "prefill_tokens_per_second": 3000,
            "decode_tokens_per_second": 300,
            "utilisation": 0.6,
        },
        "tuning": {"labels": 500, "tokens_per_second": 900},
    },
    "own": {**MACHINE, "pretraining": {"usd": 5000}, "retrieval": {"passages": 50, "corpus": 1e5, "embedder": "embed"}},
}
RISING = {
    "traffic.calls_per_day": (1, 1e7),
    "traffic.horizon_days": (1, 3000),
    "traffic.growth_per_year": (-0.9, 4),
    "traffic.peak_to_mean": (1, 30),
    "text.instructions": (0, 1e5),
    "text.examples": (0, 1e5),
    "text.input": (1, 1e5),
    "text.output": (0, 1e5),
    "prices.hosted.large.usd_per_million_input": (1, 100),
    "prices.hosted.large.usd_per_million_cached_input": (0.01, 4),
    "prices.hosted.large.usd_per_million_output": (0.1, 100),
    "prices.hosted.large.tuning.usd_per_million_training": (0.1, 100),
    "prices.hosted.large.tuning.price_multiplier": (0.1, 10),
    "prices.machines.box.usd_per_hour": (0.01, 100),
    "prices.staff.engineer.usd_per_hour": (1, 1000),
    "prices.labelling.example.usd_per_label": (0.01, 10),
    "prices.embeddings.embed.usd_per_million_input": (0.001, 10),
    "options.tuned.tuning.labels": (0, 1e5),
}


@pytest.mark.parametrize("name", RISING)
@given(data=st.data(), waiting=st.sampled_from([0.0, 0.3, 1.0]), growth=st.sampled_from([0.0, 0.5]))
@settings(deadline=None, max_examples=4)
def test_no_total_falls_as_prices_volumes_or_tokens_rise(
    name: str, data: st.DataObject, waiting: float, growth: float
) -> None:
    low, high = sorted(round(data.draw(st.floats(*RISING[name])), 6) for _ in range(2))
    fixed = [f"traffic.waiting_share={waiting}"]
    if name != "traffic.growth_per_year":
        fixed.append(f"traffic.growth_per_year={growth}")
    prices = PRICES.replace("batch_discount: 0.5", "batch_discount: 0.5\n    smallest_cached_prefix_tokens: 1000")
    before, after = (totals(OPTIONS, f"{name}={x!r}", *fixed, prices=prices) for x in (low, high))
    for option in OPTIONS:
        small, large = before[option], after[option]
        assert math.isfinite(large)
        assert large >= small * (1 - 1e-9)


@pytest.mark.parametrize("name", RISING)
@pytest.mark.parametrize("end", [0, 1])
def test_the_ends_of_what_may_be_written_stay_finite(name: str, end: int) -> None:
    growth = "traffic.growth_per_year"
    extremes = {"traffic.calls_per_day": (1e-15, 1e12), "traffic.horizon_days": (1e-6, 36_500), growth: (-0.999, 100)}
    first = name.startswith(("traffic.peak", "prices.hosted.large.usd_per_million_input"))
    value = extremes.get(name, (4.0 if first else 1e-15, 1e15))[end]
    if name.endswith("cached_input"):
        value = (1e-15, 4.0)[end]
    decision = decided(OPTIONS, f"{name}={value!r}", "traffic.calls_per_day=5e4" if name == growth else "seed=1")
    text = json.dumps(as_values(decision), allow_nan=False)
    assert decision.answer in OPTIONS
    assert all(row["text"] for row in json.loads(text)["break_evens"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("text.input=1e16", "a number between 1e-15 and 1e+15 is wanted (got 1e+16)"),
        ("text.input=1e-16", "a number between 1e-15 and 1e+15 is wanted"),
        ("traffic.horizon_days=40000", "a number above 0, up to 36,500 is wanted"),
        ("traffic.growth_per_year=101", "a growth above -1, up to 100 is wanted"),
        ("traffic.calls_per_day=0", "a number above 0, up to 1e12 is wanted (got 0)"),
        ("traffic.calls_per_day=-5", "a number above 0, up to 1e12 is wanted (got -5)"),
        ("traffic.calls_per_day=.nan", "finite number"),
        ("traffic.calls_per_day=.inf", "finite number"),
        ("traffic.calls_per_day=true", "up to 1e12 is wanted, or {value, low, high}, not True"),
        ("traffic.calls_per_day={value: 3, low: 4}", "low 4, value 3, high 3: they must not fall"),
        ("traffic.horizon_days=0", "a number above 0, up to 36,500 is wanted (got 0)"),
        ("traffic.growth_per_year=-1", "a growth above -1, up to 100 is wanted (got -1)"),
        ("traffic.peak_to_mean=0.5", "1 or a number above 1 is wanted"),
        ("traffic.waiting_share=1.5", "a share from 0 to 1 is wanted (got 1.5)"),
        ("traffic.waiting_share=88", "a share from 0 to 1 is wanted (got 88); write 0.88 for 88%"),
        ("traffic.waiting_share=80%", "not '80%'; write 0.8"),
        ("text.input=$3.00", "not '$3.00'; write 3"),
        ("text.input=0", "a number above 0 is wanted"),
        ("text.output=-1", "0 or a number above 0 is wanted"),
        ("options.it.machine.utilisation=0", "a share above 0, up to 1 is wanted"),
        ("options.it.machine.seconds_per_call=0", "a number above 0 is wanted"),
        ("options.it.machine.prefill_tokens_per_second=9", "are given together"),
        ("options.it.model=large", "give either `model` (hosted) or `machine`"),
        ("prices.machines.box.usd_per_hour=0", "a number above 0 is wanted (got 0)"),
        ("prices.machines.box.usd_per_hour=-1", "a number above 0 is wanted"),
        ("prices.machines.box.usd_per_hour=.nan", "finite number"),
        ("options.it.machine.nam=box", "did you mean 'name'?"),
        (
            "options.it.machine.name=bax",
            "no 'bax' in `machines`, which a test: options.it needs; did you mean 'box'?",
        ),
        ("options.it.tuning={labels: 5}", "how long does it take? Give machine_hours or tokens_per_second"),
        ("options.it.retrieval={passages: 5}", "say who embeds"),
        ("constraints={isolation: x}", "constraints"),
        ("knowledge={changes_every_days: 0}", "a number above 0 is wanted"),
        ("bar={quality: 0.9}", "bar.quality needs this option's `quality`"),
        ("options={}", "at least 1 item"),
    ],
)
def test_what_cannot_be_is_refused_where_it_stands(override: str, message: str) -> None:
    with pytest.raises(BedplateError) as caught:
        outcome(MACHINE, override)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value) or override.startswith("options.it.machine.nam=")
