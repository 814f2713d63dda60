"""Training plans: formulas by hand, monotone in what should raise them, and refusals."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bedplate.core.errors import UsageError
from bedplate.economics.hardware.devices import DEVICES, find_device, mfu
from bedplate.economics.model.footprint import training_flops_per_token
from bedplate.economics.model.named_model import resolve
from bedplate.economics.model.parameters import parameters
from bedplate.economics.training.training_cost import TRAINING_FORMULAS, TrainingPlan, plan_training, tokens_for_flops

H100 = find_device("h100")


def plan(**changes: object) -> TrainingPlan:
    arguments: dict[str, object] = {"model": "gpt2", "tokens": 1e10, "device": H100, "devices": 8, **changes}
    return plan_training(**arguments)  # type: ignore[arg-type]


def test_every_figure_by_hand() -> None:
    training_plan = plan(usd_per_hour=2.5, usd_per_kwh=0.2, pue=1.3, overhead=1.2, mfu_share=0.4, device=H100)
    count = parameters(resolve("gpt2")[1])
    flops = 1e10 * training_flops_per_token(resolve("gpt2")[1], 1024)
    hours = flops * 1.2 / (989.4e12 * 0.4) / 3600
    assert (
        (training_plan.parameters, training_plan.active_parameters)
        == (count.total, count.active)
        == (124_439_808, 124_439_808)
    )
    assert training_plan.flops == pytest.approx(flops)
    assert training_plan.gpu_hours.central == pytest.approx(hours)
    assert training_plan.days.central == pytest.approx(hours / 8 / 24)
    assert training_plan.usd is not None
    assert training_plan.usd.central == pytest.approx(hours * 2.5)
    assert training_plan.kwh.central == pytest.approx(hours * 0.7 * 1.3)
    assert training_plan.energy_usd.central == pytest.approx(hours * 0.7 * 1.3 * 0.2)
    assert training_plan.tokens_per_second_per_device == pytest.approx(989.4e12 * 0.4 / (flops / 1e10))
    # a measured share and a given price leave no range
    assert training_plan.gpu_hours.low == training_plan.gpu_hours.high
    assert training_plan.usd.low == training_plan.usd.high


def test_ranges_are_the_mfus_and_the_prices() -> None:
    training_plan = plan()
    share = mfu("h100", 8)
    assert training_plan.mfu == share
    ideal = training_plan.flops * training_plan.overhead / 989.4e12 / 3600
    assert training_plan.gpu_hours.low == pytest.approx(ideal / share.high)
    assert training_plan.gpu_hours.high == pytest.approx(ideal / share.low)
    assert training_plan.usd is not None
    assert training_plan.price is not None
    assert training_plan.price.source.startswith("an EXAMPLE, not a quotation: ")
    assert "2026-05" in training_plan.price.source
    rental = H100.rental
    assert rental is not None
    assert training_plan.usd.low == pytest.approx(training_plan.gpu_hours.low * rental.usd_per_hour_low)
    assert training_plan.usd.high == pytest.approx(training_plan.gpu_hours.high * rental.usd_per_hour_high)


def test_fp8_and_slower_code_change_hours_by_their_factors() -> None:
    plain = plan().gpu_hours.central
    assert plan(precision="fp8").gpu_hours.central == pytest.approx(plain / 1.28)
    assert plan(execution="eager").gpu_hours.central == pytest.approx(plain / 0.74)


def test_experts_are_counted_as_active() -> None:
    training_plan = plan(model="mixtral-8x7b", devices=64)
    assert training_plan.parameters == pytest.approx(46.7e9, rel=0.01)
    assert training_plan.active_parameters == pytest.approx(12.9e9, rel=0.01)
    dense = plan(model="llama-2-13b", devices=64, sequence_tokens=4096)
    assert training_plan.flops < 1.2 * dense.flops


@pytest.mark.parametrize(
    ("model", "device", "devices"),
    [
        ("llama-3.1-8b", "a100", 16),
        ("deepseek-v3", "h800", 2048),
        ("t5-large", "l4", 8),
        ("bert-base", "rtx-4090", 1),
        ("whisper-small", "a10g", 1),
        ("vit-b-16", "h100", 8),
        ("dit-xl-2", "a100", 8),
        ("llava-1.5-7b", "h100", 8),
        ("smollm2-135m", "epyc-genoa", 2),
        ("chinchilla-70b", "tpu-v4", 1024),
    ],
)
def test_every_kind_of_model_has_a_plan(model: str, device: str, devices: int) -> None:
    training_plan = plan(model=model, device=find_device(device), devices=devices)
    assert 0 < training_plan.bytes_per_device < training_plan.device.memory_bytes
    assert training_plan.layout.devices == devices
    assert 0 < training_plan.gpu_hours.low < training_plan.gpu_hours.central < training_plan.gpu_hours.high < math.inf
    json.dumps(training_plan.as_json(), allow_nan=False)


counts = st.floats(1e6, 1e14)


@given(a=counts, b=counts)
@settings(deadline=None, max_examples=15)
def test_more_tokens_take_more_of_everything(a: float, b: float) -> None:
    short_run, long_run = (plan(tokens=n) for n in sorted((a, b)))
    for name in ("gpu_hours", "days", "usd", "kwh", "energy_usd"):
        for end in ("low", "central", "high"):
            assert getattr(getattr(short_run, name), end) <= getattr(getattr(long_run, name), end)
    assert short_run.flops <= long_run.flops


@given(a=st.floats(0.01, 100), b=st.floats(0.01, 100))
@settings(deadline=None, max_examples=10)
def test_dearer_hours_cost_more_and_take_no_longer(a: float, b: float) -> None:
    cheap, dear = (plan(usd_per_hour=usd) for usd in sorted((a, b)))
    assert cheap.usd is not None
    assert dear.usd is not None
    assert cheap.usd.central <= dear.usd.central
    assert cheap.gpu_hours == dear.gpu_hours


@given(a=st.floats(1, 5), b=st.floats(1, 5), share=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)))
@settings(deadline=None, max_examples=10)
def test_overhead_raises_hours_and_utilisation_lowers_them(a: float, b: float, share: tuple[float, float]) -> None:
    low, high = (plan(overhead=value) for value in sorted((a, b)))
    assert low.gpu_hours.central <= high.gpu_hours.central
    slow, fast = (plan(mfu_share=value) for value in sorted(share))
    assert fast.gpu_hours.central <= slow.gpu_hours.central


@given(exponents=st.tuples(st.integers(0, 11), st.integers(0, 11)))
@settings(deadline=None, max_examples=10)
def test_more_devices_end_sooner_but_take_more_hours(exponents: tuple[int, int]) -> None:
    smaller, larger = (plan(devices=2**n, global_batch_tokens=2**22) for n in sorted(exponents))
    assert larger.days.central <= smaller.days.central
    assert larger.gpu_hours.central >= smaller.gpu_hours.central


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"tokens": 0}, "tokens is 0"),
        ({"tokens": -1}, "tokens is -1"),
        ({"tokens": math.nan}, "tokens is nan"),
        ({"tokens": math.inf}, "tokens is inf"),
        ({"devices": 0}, "devices is 0"),
        ({"devices": -8}, "devices is -8"),
        ({"usd_per_hour": 0}, "usd_per_hour is 0"),
        ({"usd_per_hour": math.nan}, "usd_per_hour is nan"),
        ({"usd_per_kwh": -0.1}, "usd_per_kwh is -0.1"),
        ({"pue": 0.9}, "pue is 0.9"),
        ({"pue": math.inf}, "pue is inf"),
        ({"overhead": 0.99}, "overhead is 0.99"),
        ({"overhead": math.nan}, "overhead is nan"),
        ({"mfu_share": 0}, "mfu is 0"),
        ({"mfu_share": 1.01}, "mfu is 1.01"),
        ({"sequence_tokens": 0}, "sequence_tokens is 0"),
        ({"sequence_tokens": 1025}, "longer than the model's context of 1,024"),
        ({"global_batch_tokens": 1000}, "it must hold one sequence of 1,024 tokens"),
        ({"global_batch_tokens": -1}, "global_batch_tokens is -1"),
        ({"margin": 1.0}, "memory_left_by_margin is 0"),
        ({"margin": -0.1}, "margin is -0.1"),
        ({"precision": "fp8", "device": find_device("a100")}, "a100-80gb has no fp8 products"),
        ({"execution": "fast"}, "no execution 'fast'; there are tuned, compile, eager"),
        ({"optimizer": "adam"}, "no optimizer 'adam'"),
        ({"model": "gpt-2-xl"}, "gpt2-xl"),
    ],
)
def test_what_cannot_be_is_one_line(changes: dict[str, object], part: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan(**changes)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_price_that_is_not_known_is_none_not_a_number() -> None:
    training_plan = plan(device=DEVICES["gb200"], devices=8)
    assert training_plan.usd is None
    assert training_plan.as_json()["usd"] is None
    assert plan(device=DEVICES["gb200"], devices=8, usd_per_hour=5).usd is not None


@pytest.mark.parametrize("sequences", [8, 61, 100, 1024])
def test_a_step_is_what_the_layout_holds(sequences: int) -> None:
    for devices in (8, 12, 48):
        if sequences < devices:
            continue
        found = plan(devices=devices, global_batch_tokens=sequences * 1024)
        layout = found.layout
        held = layout.data * layout.micro_batch * layout.micro_batches
        assert found.global_batch_tokens == held * 1024 >= sequences * 1024
        said = [note for note in found.suggestions if f"takes {held} sequences" in note.replace(",", "")]
        assert len(said) == (held != sequences)


def test_idle_pipeline_stages_lower_the_share_of_the_peak() -> None:
    """As the published runs' do not: a step of few sequences over many stages."""
    changes: dict[str, object] = {"model": "llama-3.1-405b", "tokens": 1e12, "devices": 2048}
    full, idle = (plan(**changes, global_batch_tokens=8192 * count) for count in (8192, 64))
    share = mfu("h100", 2048)
    assert full.bubble_share < 0.15
    assert full.mfu == share
    assert idle.bubble_share > 0.3
    assert idle.mfu.central == pytest.approx(share.central * (1 - idle.bubble_share) / 0.85)
    assert idle.gpu_hours.central == pytest.approx(full.gpu_hours.central * share.central / idle.mfu.central)
    assert any("the MFU is lower" in note for note in idle.suggestions)
    measured = plan(**changes, global_batch_tokens=8192 * 64, mfu_share=0.2)
    assert measured.mfu.central == 0.2


def test_the_default_batch_leaves_no_device_idle() -> None:
    training_plan = plan(tokens=1e9, devices=4096)
    assert training_plan.global_batch_tokens >= training_plan.layout.data * 1024
    with pytest.raises(UsageError, match="4,096 devices cannot be used"):
        plan(tokens=1e9, devices=4096, global_batch_tokens=2**16)


def test_json_names_every_figure_and_its_source() -> None:
    report = plan(model="llama-3.1-405b", tokens=15.6e12, devices=16384).as_json()
    for name in ("parameters", "active_parameters", "flops", "mfu", "gpu_hours", "days", "usd", "bytes_per_device"):
        assert isinstance(report[name], int | float)
        assert report["formulas"][name if name != "active_parameters" else "parameters"]["source"]
    assert report["parameters"] == pytest.approx(405e9, rel=0.01)
    assert report["gpu_hours"] == pytest.approx(30.84e6, rel=0.25)
    assert report["gpu_hours_range"][0] < report["gpu_hours"] < report["gpu_hours_range"][1]
    layout = report["layout"]
    assert layout["data"] * layout["tensor"] * layout["pipeline"] * layout["context"] == 16384
    assert report["bytes_per_device"] == pytest.approx(sum(report["bytes"].values()))
    assert report["bytes_per_device"] < 80e9
    assert set(TRAINING_FORMULAS) == set(report["formulas"])


def test_suggestions() -> None:
    assert any(
        "reach a lower loss" in suggestion
        for suggestion in plan(model="gpt3-175b", tokens=3e11, devices=1024).suggestions
    )
    assert any(
        "2401.00448" in suggestion for suggestion in plan(model="llama-3.2-1b", tokens=9e12, devices=64).suggestions
    )
    assert any("fp8" in suggestion for suggestion in plan().suggestions)
    assert not any("fp8" in suggestion for suggestion in plan(device=find_device("a100")).suggestions)
    assert any("is assumed" in suggestion for suggestion in plan(device=find_device("rtx-4090"), devices=1).suggestions)
    # the scaling laws were fitted on dense decoders
    assert not any(
        "tokens a parameter" in suggestion for suggestion in plan(model="mixtral-8x7b", devices=64).suggestions
    )


def test_tokens_for_operations() -> None:
    spec = resolve("gpt2")[1]
    assert tokens_for_flops("gpt2", 1e18) == pytest.approx(1e18 / training_flops_per_token(spec, 1024))
    with pytest.raises(UsageError, match="flops is 0"):
        tokens_for_flops("gpt2", 0)
