"""The roofline against arithmetic by hand, and against the floors of a measured machine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bedplate.economics.hardware.devices import find_device
from bedplate.economics.hardware.machine import Load
from bedplate.economics.model.named_model import resolve
from bedplate.economics.serving.replica import CENTRAL, REACHED, Reached, RooflineSteps, shape_of
from bedplate.models.specs import TransformerSpec

ALL = Reached(1.0, 1.0, 0.0)


def spec(name: str) -> TransformerSpec:
    transformer = resolve(name)[1]
    assert isinstance(transformer, TransformerSpec)
    return transformer


LLAMA, SMOL = spec("llama-3.1-8b"), spec("smollm2-135m")
H100 = find_device("h100")


def test_one_decoded_token_reads_every_weight_and_every_key() -> None:
    steps = RooflineSteps(LLAMA, H100, reached=ALL)
    # 8.03 B weights less the table's rows, of which one is looked up; 128 KiB a key (Llama-3.1-8B).
    read = 2 * (8_030_261_248 - 128_256 * 4096 + 4096) + 1000 * 131_072
    assert steps.seconds(Load(1, 1, keys=1000.0)) == pytest.approx(read / 3.35e12, rel=1e-3)


def test_a_prompt_is_bound_by_products() -> None:
    steps = RooflineSteps(LLAMA, H100, reached=ALL)
    products = 8_030_261_248 - 2 * 128_256 * 4096
    pairs = 4096 * 4097 / 2
    operations = 2 * products * 4096 + 2 * 128_256 * 4096 + 32 * 4 * 32 * 128 * pairs
    assert steps.seconds(Load(4096, 1, pairs=pairs)) == pytest.approx(operations / 989e12, rel=5e-3)


def test_floors_of_a_measured_cpu() -> None:
    # SmolLM2-135M on two cores: 432 GFLOP/s and 36.9 GB/s bound prefill at 2,034 and 4-bit decode at 434 tokens a
    # second; these are its 106.2 M products, and 85 MB of weights in 5 bits with the head in 8.
    box = replace(
        H100, peak_flops_per_second={"bf16": 432e9}, memory_bytes_per_second=36.9e9, link_bytes_per_second=0.0
    )
    prompt = RooflineSteps(SMOL, box, reached=ALL)
    assert 512 / prompt.seconds(Load(512, 0)) == pytest.approx(2034, rel=0.01)
    decode = RooflineSteps(SMOL, box, weights="int4", reached=ALL)
    assert 1 / decode.seconds(Load(1, 1)) == pytest.approx(434, rel=0.02)


def test_devices_share_products_and_pay_for_it() -> None:
    single, eight = RooflineSteps(LLAMA, H100), RooflineSteps(LLAMA, H100, devices=8)
    load = Load(1, 1, keys=100.0)
    assert single.seconds(load) / 8 < eight.seconds(load) < single.seconds(load)
    sent = 2 * 7 / 8 * 4096 * 2 / H100.link_bytes_per_second
    assert eight.seconds(load) - eight.products(load) == pytest.approx(2 * 32 * (10e-6 + sent))


def test_fewer_bits_are_read_faster_and_multiplied_faster_only_where_the_device_can() -> None:
    load = Load(1, 1)
    times = [RooflineSteps(LLAMA, H100, weights=w, reached=ALL).seconds(load) for w in ("bfloat16", "fp8", "int4")]
    assert times[0] / times[1] == pytest.approx(2.0, rel=0.01)
    assert times[1] > times[2]
    long, a100 = Load(8192, 0), find_device("a100-80gb")
    assert RooflineSteps(LLAMA, H100, reached=ALL).seconds(long) == pytest.approx(
        2 * RooflineSteps(LLAMA, H100, weights="fp8", reached=ALL).seconds(long), rel=0.01
    )
    bf16 = RooflineSteps(LLAMA, a100, reached=ALL).seconds(long)
    assert RooflineSteps(LLAMA, a100, weights="int4", reached=ALL).seconds(long) == pytest.approx(bf16, rel=0.01)


def test_windows_bound_what_is_read() -> None:
    plain = spec("mistral-7b").with_(windows=())
    windowed = spec("mistral-7b")
    load = Load(1, 1, keys=32_000.0)
    difference = RooflineSteps(plain, H100, reached=ALL).seconds(load) - RooflineSteps(
        windowed, H100, reached=ALL
    ).seconds(load)
    per_key = 2 * 32 * 8 * 128 * 2
    assert difference == pytest.approx((32_000 - 4096) * per_key / 3.35e12, rel=0.01)


def test_the_range_is_around_the_middle() -> None:
    load = Load(8, 8, keys=4000.0)
    low, central, high = (RooflineSteps(LLAMA, H100, reached=r).seconds(load) for r in REACHED.values())
    assert low > central > high
    assert REACHED["central"] == CENTRAL


def test_shapes_are_of_the_products() -> None:
    shape = shape_of(SMOL)
    assert (shape.blocks, shape.head) == (106_168_320, 49_152 * 576)
    assert (shape.key_features, shape.query_features) == (30 * 2 * 3 * 64, 30 * 9 * 64)
