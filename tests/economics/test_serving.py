"""Plans of a service: arithmetic by hand, monotone in what it must be, and refusals that help."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.economics.test_machine import engine, machine

from bedplate.core.errors import UsageError
from bedplate.economics.hardware.devices import find_device
from bedplate.economics.hardware.machine import Load
from bedplate.economics.model.named_model import resolve
from bedplate.economics.serving.replica import (
    Replica,
    ReplicaEngine,
    check_fits,
    held_bytes,
    measured_replica,
    on_devices,
)
from bedplate.economics.serving.serving_cost import LatencyTarget, load_curve, plan_serving
from bedplate.economics.serving.simulation import ServiceModel, Traffic, parse_lengths
from bedplate.models.specs import TransformerSpec


class Steps:
    """10 ms a step, whatever it does."""

    def seconds(self, load: Load) -> float:
        return 0.01


def lengths(prompt: str = "20", output: str = "11", **changes: Any) -> Traffic:
    return Traffic(parse_lengths(prompt, "prompt"), parse_lengths(output, "output"), **changes)


def replica(usd: float | None = 1.0, rows: int = 4) -> Replica:
    return Replica(ServiceModel(Steps(), max_rows=rows), "by hand", usd, "given", {})


def spec(name: str) -> TransformerSpec:
    transformer = resolve(name)[1]
    assert isinstance(transformer, TransformerSpec)
    return transformer


def test_a_plan_by_hand() -> None:
    plan = plan_serving(replica(), lengths(), 864_000, peak_factor=2.0)
    # A call takes 11 steps of 10 ms; four rows at once make 4 calls every 110 ms.
    assert plan.alone.total_p95 == pytest.approx(0.11)
    assert plan.alone.first_token_p50 == pytest.approx(0.01)
    assert plan.saturated_calls_per_second == pytest.approx(4 / 0.11, rel=0.02)
    assert plan.saturated_tokens_per_second == pytest.approx(44 / 0.11, rel=0.02)
    assert plan.capacity_calls_per_second == pytest.approx(0.9 * 4 / 0.11, rel=0.02)
    # 10 calls a second on average, 20 in the busiest hour: one replica.
    assert plan.replicas == 1
    assert plan.usd_per_call == pytest.approx(24 / 864_000)
    assert plan.usd_per_million_tokens == pytest.approx(24 / 864_000 / 31 * 1e6)
    assert plan.floor_usd_per_call == pytest.approx(1 / 3600 / plan.saturated_calls_per_second)
    assert plan.at_peak.calls_per_second == pytest.approx(20)
    doubled = plan_serving(replica(), lengths(), 2 * 864_000, peak_factor=2.0, spare=1)
    assert doubled.replicas == math.ceil(40 / plan.capacity_calls_per_second) + 1
    assert doubled.usd_per_day == pytest.approx(24 * doubled.replicas)


def test_latency_at_a_rate_is_what_the_page_has_between_its_loads() -> None:
    one = replica()
    for calls in (864_000, 2_600_000, 2_000):
        plan = plan_serving(one, lengths(), calls, peak_factor=1.0)
        place = plan.at_peak.calls_per_second / plan.saturated_calls_per_second * 128
        parts = [part for part in (int(place), int(place) + 1) if part]
        low, high = [plan.alone, *load_curve(one, lengths(), plan, loads=[part / 128 for part in parts])][-2:]
        expected = low.total_p95 + (place - int(place)) * (high.total_p95 - low.total_p95)
        assert plan.at_peak.total_p95 == pytest.approx(expected, rel=1e-9)


def test_a_target_is_met_at_the_capacity_and_not_much_above() -> None:
    traffic, target = lengths(), LatencyTarget(total_seconds=0.15)
    plan = plan_serving(replica(), traffic, 1000, target=target)
    free = plan_serving(replica(), traffic, 1000)
    assert plan.capacity_calls_per_second < free.saturated_calls_per_second
    below, overloaded = (
        plan_serving(replica(), traffic, 86_400 * plan.capacity_calls_per_second * factor, peak_factor=1.0)
        for factor in (0.999, 1.1)
    )
    assert below.at_peak.total_p95 <= 0.15 * 1.02
    assert overloaded.replicas > 1 or overloaded.at_peak.total_p95 > 0.15


def test_a_larger_share_of_calls_within_the_target_leaves_less_capacity() -> None:
    capacities = [
        plan_serving(replica(), lengths(), 1000, target=LatencyTarget(0.2, share=share)).capacity_calls_per_second
        for share in (0.5, 0.95, 0.99)
    ]
    assert capacities == sorted(capacities, reverse=True)
    assert capacities[0] > capacities[1]
    for share in (0.0, 1.0):
        with pytest.raises(UsageError, match="share"):
            LatencyTarget(0.2, share=share)


def test_without_a_price_there_are_no_dollars() -> None:
    plan = plan_serving(replica(None), lengths(), 1000)
    assert plan.usd_per_call is plan.usd_per_day is plan.floor_usd_per_call is plan.usd_per_million_tokens is None


@settings(max_examples=10, deadline=None)
@given(st.floats(1, 1e8), st.floats(1, 50), st.floats(0.01, 100), st.floats(1, 8))
def test_monotone_in_volume_and_price(calls: float, factor: float, usd: float, peak: float) -> None:
    baseline = plan_serving(replica(usd), lengths(output="2"), calls, peak_factor=peak)
    busier = plan_serving(replica(usd), lengths(output="2"), calls * factor, peak_factor=peak)
    dearer = plan_serving(replica(usd * factor), lengths(output="2"), calls, peak_factor=peak)
    assert busier.usd_per_day is not None
    assert dearer.usd_per_call is not None
    assert busier.replicas >= baseline.replicas
    assert busier.usd_per_day >= baseline.usd_per_day
    assert dearer.usd_per_call == pytest.approx(baseline.usd_per_call * factor)
    assert baseline.usd_per_call * calls == pytest.approx(baseline.usd_per_day)
    # Idle machines are paid for: no price of a call is under that of a fleet that is always full.
    assert baseline.usd_per_call >= baseline.floor_usd_per_call * 0.999


@settings(max_examples=4, deadline=None)
@given(st.floats(0.12, 2.0), st.floats(1.0, 4.0))
def test_a_tighter_target_never_needs_fewer_replicas(seconds: float, looser: float) -> None:
    plans = [
        plan_serving(replica(), lengths(), 5e7, target=LatencyTarget(total_seconds=limit))
        for limit in (seconds, seconds * looser)
    ]
    assert plans[0].replicas >= plans[1].replicas


def test_longer_prompts_and_answers_never_cost_less() -> None:
    deployments = [
        measured_replica(machine(), "small", None, lengths(p, o), ReplicaEngine(), usd_per_hour=1.0)
        for p, o in (("20", "10"), ("200", "10"), ("200", "100"))
    ]
    prices = [
        plan_serving(deployment, lengths(p, o), 1e7).floor_usd_per_call
        for deployment, (p, o) in zip(deployments, (("20", "10"), ("200", "10"), ("200", "100")), strict=True)
    ]
    assert prices == sorted(prices)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["calls_per_day", "peak_factor", "usd", "target"])
def test_numbers_that_cannot_be_are_refused(name: str, value: float) -> None:
    with pytest.raises(UsageError):
        plan_serving(
            replica(value if name == "usd" else 1.0),
            lengths(),
            value if name == "calls_per_day" else 1000,
            peak_factor=value if name == "peak_factor" else 2.0,
            target=LatencyTarget(total_seconds=value) if name == "target" else None,
        )


def test_a_target_below_a_call_alone_says_by_how_much() -> None:
    with pytest.raises(UsageError, match=r"0\.11 s until its answer's end .* of 0\.1 s by 0\.01 s: no number of"):
        plan_serving(replica(), lengths(), 1000, target=LatencyTarget(total_seconds=0.1))
    with pytest.raises(UsageError, match="until its first token"):
        plan_serving(replica(), lengths(), 1000, target=LatencyTarget(first_token_seconds=0.001))


def test_latency_grows_with_load() -> None:
    deployment = replica()
    curve = load_curve(deployment, lengths(), plan_serving(deployment, lengths(), 1000))
    assert [c.total_p50 for c in curve] == sorted(c.total_p50 for c in curve)
    assert curve[-1].utilisation > 0.9 * curve[-2].utilisation


def test_a_measured_machine_and_what_is_extrapolated_from_it() -> None:
    measured = measured_replica(machine(), "small", "int4", lengths(), ReplicaEngine())
    assert measured.basis.startswith("measured 2026-01-02: small, int4")
    extrapolated = measured_replica(machine(), "smollm2-135m", None, lengths(), ReplicaEngine(), like="small")
    assert extrapolated.basis.startswith("extrapolated by size from what was measured")
    load = Load(4, 4)
    shape = 106_168_320 / 1000
    assert extrapolated.service.steps.seconds(load) > measured.service.steps.seconds(load) * shape / 2
    with pytest.raises(UsageError, match="was not measured"):
        measured_replica(machine(), "smollm2-135m", None, lengths(), ReplicaEngine())


def test_adapters_of_another_rank_cost_in_proportion() -> None:
    steps = [
        measured_replica(machine(), "small", None, lengths(), ReplicaEngine(adapter_rank=r)).service.steps
        for r in (16, 32)
    ]
    bare, full = Load(4, 4), Load(4, 4, adapters=4, adapted_tokens=4)
    added = [step_model.seconds(full) - step_model.seconds(bare) for step_model in steps]
    assert added[0] == pytest.approx(4 * 5e-4 + 4e-5)
    assert added[1] == pytest.approx(2 * added[0])
    unmeasured = machine(engines=(engine(adapter_rank=0),))
    with pytest.raises(UsageError, match="without adapters"):
        measured_replica(unmeasured, "small", None, lengths(), ReplicaEngine(adapter_rank=8))


def test_what_does_not_fit_says_by_how_much_and_what_would() -> None:
    h100 = find_device("h100")
    with pytest.raises(UsageError, match=r"69\.3 GB .*72\.0 GB of NVIDIA H100.*with 2 devices, or fp8 weights"):
        on_devices("llama-3.1-70b", h100, 1, "bfloat16", lengths(), ReplicaEngine(16))
    with pytest.raises(UsageError, match=r"or \d+ rows at once"):
        on_devices("llama-3.1-8b", h100, 1, "bfloat16", lengths("8000", "100"), ReplicaEngine(128))
    assert set(on_devices("llama-3.1-70b", h100, 2, "bfloat16", lengths(), ReplicaEngine(16))) == {
        "low",
        "central",
        "high",
    }


def test_held_bytes_by_hand() -> None:
    footprint = held_bytes(
        spec("llama-3.1-8b"), "bfloat16", lengths("900", "100", skin_tokens=24, skins=3), ReplicaEngine(10, 512, 16)
    )
    assert footprint["weights"] == 2 * 8_030_261_248
    assert footprint["sequences"] == 10 * 1024 * 131_072
    assert footprint["skin_prompts"] == 3 * 24 * 131_072
    # peft: r 16 on q, k, v, o, gate, up, down of Llama-3.1-8B are 41,943,040 parameters.
    assert footprint["adapters"] == 3 * 2 * 41_943_040


def test_calls_longer_than_the_context_are_refused() -> None:
    with pytest.raises(UsageError, match="8,300 tokens is longer than the model's context of 8,192"):
        check_fits(spec("smollm2-135m"), "int4", lengths("8200", "100"), ReplicaEngine(), 1e12, "this machine")


def test_an_encoder_is_not_served_this_way() -> None:
    with pytest.raises(UsageError, match="is not a decoder"):
        on_devices("bert-base", find_device("h100"), 1, "bfloat16", lengths(), ReplicaEngine())
