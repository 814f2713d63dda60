"""Layouts: memory and time by hand, the search against trying everything, and what is said when nothing fits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bedplate.core.errors import UsageError
from bedplate.economics.hardware.devices import DEVICES, find_device
from bedplate.economics.model.footprint import layer_activation_bytes
from bedplate.economics.model.named_model import resolve
from bedplate.economics.model.parameters import parameters
from bedplate.economics.training import layout_search
from bedplate.economics.training.device_layout import (
    PRODUCT_SHARE,
    BytesPerParameter,
    DeviceBytes,
    DeviceLayout,
    LayoutShape,
    StepTime,
    device_bytes,
    shape_of,
    step_time,
)
from bedplate.economics.training.layout_search import DoesNotFit, TrainingJob, describe, find_layout
from bedplate.models.specs import TransformerSpec

H100 = find_device("h100")
LLAMA_8B = resolve("llama-3.1-8b")[1]
LLAMA_70B = resolve("llama-3.1-70b")[1]
LLAMA_405B = resolve("llama-3.1-405b")[1]


def layouts(job: TrainingJob, shape: LayoutShape) -> Iterator[DeviceLayout]:
    """All that a search may price."""
    for degrees in layout_search._degrees(job, shape):
        yield from layout_search._variants(job, shape, degrees)


def layout(**changes: object) -> DeviceLayout:
    plain = DeviceLayout(1, 1, 1, 1, 1, 0, "selective", 1, 1, 1)
    return replace(plain, **changes)  # type: ignore[arg-type]


def device_memory(spec: object, candidate: DeviceLayout, tokens: int = 8192) -> DeviceBytes:
    return device_bytes(shape_of(spec, tokens), candidate, BytesPerParameter(), tokens)  # type: ignore[arg-type]


def test_one_device_holds_eighteen_bytes_a_parameter() -> None:
    total = parameters(LLAMA_8B).total
    memory = device_memory(LLAMA_8B, layout())
    assert (memory.weights, memory.gradients, memory.optimizer) == (2 * total, 4 * total, 12 * total)
    assert memory.buffers == 0
    assert memory.total == pytest.approx(18 * total + memory.activations + memory.logits)
    # logits: 16 and 32 bits, and the gradients of both; the last norm's input and the head's
    assert memory.logits == 8192 * (12 * 128256 + 2 * 2 * 4096)
    assert isinstance(LLAMA_8B, TransformerSpec)
    layer = layer_activation_bytes(LLAMA_8B, 0, 8192, 2.0, "selective")
    assert memory.activations == pytest.approx(8192 * 32 * layer)


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimizer"), [(1, 2, 4, 12 / 8), (2, 2, 4 / 8, 12 / 8), (3, 4 / 8, 4 / 8, 8 / 8)]
)
def test_zero_stages_shard_what_they_say(stage: int, weights: float, gradients: float, optimizer: float) -> None:
    total = parameters(LLAMA_8B).total
    memory = device_memory(LLAMA_8B, layout(data=8, zero_stage=stage))
    assert memory.weights / total == pytest.approx(weights)
    assert memory.gradients / total == pytest.approx(gradients)
    assert memory.optimizer / total == pytest.approx(optimizer)


def test_tensor_and_pipeline_divide_the_model() -> None:
    whole, parts = device_memory(LLAMA_70B, layout()), device_memory(LLAMA_70B, layout(tensor=8))
    for name in ("weights", "gradients", "optimizer", "activations", "logits"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name) / 8)
    staged = device_memory(LLAMA_70B, layout(pipeline=8, micro_batches=64))
    table = 128256 * 8192
    assert staged.weights == pytest.approx(2 * ((parameters(LLAMA_70B).total - 2 * table) / 8 + table), rel=1e-5)
    # the first stage keeps as many micro-batches as there are stages: the whole model's activations
    assert staged.activations == pytest.approx(whole.activations)
    # and with one micro-batch, its own part only, beside the last stage's logits
    alone = device_memory(LLAMA_70B, layout(pipeline=8, micro_batches=1))
    assert alone.activations == pytest.approx(whole.activations / 8)
    assert alone.logits == whole.logits


def test_experts_are_spread_over_replicas() -> None:
    spec = resolve("mixtral-8x7b")[1]
    shape = shape_of(spec, 4096)
    together, spread = (device_memory(spec, layout(data=8, zero_stage=1, expert=n), 4096) for n in (1, 8))
    assert together.weights - spread.weights == pytest.approx(2 * shape.experts * 7 / 8)
    # their states are sharded over all replicas either way
    assert together.optimizer == pytest.approx(spread.optimizer)
    assert shape.experts == 32 * 8 * 3 * 4096 * 14336


def test_torchtitans_peak_memory() -> None:
    """Llama-3.1 8B on H100s, FSDP, 2 sequences a GPU: 82.4 GiB on 8 and 67.0 on 128: the difference is sharded states.
    70B: 71.9 GiB under FSDP 32 × tensor 8, full recomputation, 16 sequences."""
    eight, cluster_bytes = (
        device_memory(LLAMA_8B, layout(data=n, zero_stage=3, micro_batch=2)).total for n in (8, 128)
    )
    assert eight - cluster_bytes == pytest.approx((82.4 - 67.0) * 2**30, rel=0.12)
    # torchtitan's own selective checkpointing recomputes every second product too, which keeps less than ours
    assert 1.0 < cluster_bytes / (67.0 * 2**30) < 1.7
    large = device_memory(LLAMA_70B, layout(data=32, tensor=8, zero_stage=3, recompute="full", micro_batch=16))
    assert large.total == pytest.approx(71.9 * 2**30, rel=0.30)


def test_bubble_and_recomputation_by_hand() -> None:
    """(p − 1) / (m · v) of the computing time (2104.04473); a third more for full recomputation."""
    shape, tokens = shape_of(LLAMA_70B, 8192), 8192
    base_layout = layout(pipeline=8, micro_batches=32, zero_stage=0)
    time = step_time(shape, base_layout, H100, 989.4e12, 32 * tokens, tokens)
    assert time.bubble / time.compute == pytest.approx(7 / 32)
    interleaved = step_time(shape, replace(base_layout, interleave=2), H100, 989.4e12, 32 * tokens, tokens)
    assert interleaved.bubble / interleaved.compute == pytest.approx(7 / 64)
    full = step_time(shape, replace(base_layout, recompute="full"), H100, 989.4e12, 32 * tokens, tokens)
    plain = shape.flops_per_token * 32 * tokens / (8 * 989.4e12 * PRODUCT_SHARE)
    assert full.compute == pytest.approx(plain * 4 / 3, rel=0.02)


def test_tensor_parallel_time_by_hand() -> None:
    """Four all-reduces a layer and step, half waited for: 2·(t−1)/t · tokens · hidden · 2 bytes over 450 GB/s each."""
    shape, tokens = shape_of(LLAMA_70B, 8192), 8192
    time = step_time(shape, layout(tensor=8), H100, 989.4e12, tokens, tokens)
    reduce = 2 * 7 / 8 * tokens * 8192 * 2 / 450e9
    assert time.communication == pytest.approx(0.5 * 80 * 4 * reduce)


def test_replicas_in_one_node_are_faster_than_across() -> None:
    """Four 4090s in a node over PCIe, then two nodes over 10 Gb/s each: 8 bytes a parameter, half of them between."""
    card, tokens = find_device("rtx-4090"), 1024
    shape = shape_of(LLAMA_8B, tokens)
    four, eight = (step_time(shape, layout(data=n, zero_stage=3), card, 165e12, n * tokens, tokens) for n in (4, 8))
    total = parameters(LLAMA_8B).total
    assert four.communication == pytest.approx(8 * total * 3 / 4 / 32e9 - 0.8 * four.compute, rel=0.01)
    node_transfer = 8 * total / 2 / (4 * 1.25e9)
    assert eight.communication == pytest.approx(node_transfer - 0.8 * eight.compute, rel=0.01)
    assert eight.communication > four.communication


CASES = [
    ("gpt2", "a100", 8, 1024, 64),
    ("llama-3.1-8b", "h100", 8, 8192, 64),
    ("llama-2-70b", "a100", 64, 4096, 256),
    pytest.param("mixtral-8x7b", "h100", 32, 4096, 128, marks=pytest.mark.slow),
    ("llama-3.1-8b", "h100", 16, 131072, 16),
    ("t5-large", "l4", 4, 512, 32),
    pytest.param("deepseek-v3", "h800", 512, 4096, 1024, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("model", "device", "devices", "tokens", "sequences"), CASES)
def test_the_search_finds_the_quickest_that_fits(
    model: str, device: str, devices: int, tokens: int, sequences: int
) -> None:
    job = TrainingJob(resolve(model)[1], find_device(device), devices, tokens, sequences)
    best = find_layout(job, model)
    peak, shape = job.device.peak("bf16"), job.shape
    assert best.layout.devices == devices
    assert best.bytes.total <= job.usable_bytes
    for candidate in layouts(job, shape):
        assert candidate.devices == devices
        assert candidate.data * candidate.micro_batch * candidate.micro_batches >= sequences
        if device_bytes(shape, candidate, job.states, tokens).total <= job.usable_bytes:
            step_estimate = step_time(shape, candidate, job.device, peak, sequences * tokens, tokens)
            assert step_estimate.total >= best.step.total


@given(
    devices=st.sampled_from([1, 2, 4, 8, 16, 24, 64, 100, 128]),
    sequences=st.integers(1, 512),
    name=st.sampled_from(["gpt2", "smollm2-135m", "llama-3.2-1b", "mixtral-8x7b", "bert-base"]),
)
@settings(deadline=None, max_examples=15)
def test_every_layout_is_possible(devices: int, sequences: int, name: str) -> None:
    spec = resolve(name)[1]
    job = TrainingJob(spec, H100, devices, 512, sequences)
    shape = job.shape
    for candidate in layouts(job, shape):
        assert candidate.devices == devices
        assert candidate.data <= sequences
        assert shape.heads % candidate.tensor == 0
        assert candidate.pipeline <= shape.layers
        assert shape.expert_count % candidate.expert == 0
        assert candidate.replicas % candidate.expert == 0
        assert (candidate.zero_stage == 0) == (candidate.replicas == 1)
        bytes_ = device_bytes(shape, candidate, job.states, 512)
        assert min(vars(bytes_).values()) >= 0
        time = step_time(shape, candidate, H100, 1e15, sequences * 512, 512)
        assert min(vars(time).values()) >= 0


def test_what_does_not_fit_says_by_how_much_and_what_would() -> None:
    job = TrainingJob(LLAMA_8B, find_device("rtx-4090"), 1, 2048, 16)
    with pytest.raises(DoesNotFit) as caught:
        find_layout(job, "llama-3.1-8b")
    error = caught.value
    assert isinstance(error, UsageError)
    assert error.exit_code == 2
    assert error.missing_bytes == pytest.approx(error.nearest.bytes.total - 24e9 * 0.9)
    text = str(error)
    assert "\n" not in text
    assert re.search(r"llama-3.1-8b does not fit 1 × rtx-4090: .* GB more than the 21.6 GB", text)
    # each remedy is true: what it names fits, and half as many devices do not
    larger_cluster = next(remedy for remedy in error.would_fit if "rtx-4090" in remedy)
    count = int(larger_cluster.split(" ")[0])
    find_layout(replace(job, devices=count, sequences=max(16, count)))
    with pytest.raises(DoesNotFit):
        find_layout(replace(job, devices=count // 2))
    larger_device = next(remedy for remedy in error.would_fit if remedy.startswith("1 × "))
    find_layout(replace(job, device=DEVICES[larger_device.removeprefix("1 × ")]))
    assert any("LoRA" in remedy for remedy in error.would_fit)
    find_layout(replace(job, method="lora", adapter_parameters=42_000_000))


def test_an_8_bit_optimizer_is_proposed_where_it_is_enough() -> None:
    spec = resolve("llama-3.2-1b")[1]
    device = replace(find_device("rtx-4090"), name="small", memory_bytes=22e9)
    with pytest.raises(DoesNotFit, match="AdamW with 8-bit moments on the same devices"):
        find_layout(TrainingJob(spec, device, 1, 1024, 8))
    find_layout(TrainingJob(spec, device, 1, 1024, 8, optimizer="adamw_8bit"))


def test_optimizers_keep_their_own_states() -> None:
    """Muon has one moment for the matrices of the blocks and two for all else (bytes a parameter, float32)."""
    total = parameters(LLAMA_8B).total
    tables = 2 * 128256 * 4096 + 65 * 4096  # table, head, norms
    for name, moments in (("adamw", 8.0), ("muon", (4 * (total - tables) + 8 * tables) / total), ("sgd", 0.0)):
        job = TrainingJob(LLAMA_8B, H100, 8, 8192, 8, optimizer=name)  # type: ignore[arg-type]
        assert job.states.moments == pytest.approx(moments)
        assert (job.states.weights, job.states.gradient, job.states.master) == (2, 4, 4)


def test_a_search_prices_few_of_the_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """3 billion parameters on 384 devices: a higher stage of ZeRO is not tried where a lower one fits."""
    job = TrainingJob(resolve("llama-3.2-3b")[1], H100, 384, 8192, 512)
    priced: list[DeviceLayout] = []

    def counting(shape: LayoutShape, candidate: DeviceLayout, *arguments: Any) -> StepTime:
        priced.append(candidate)
        return step_time(shape, candidate, *arguments)

    monkeypatch.setattr(layout_search, "step_time", counting)
    find_layout(job)
    assert 0 < len(priced) < 0.5 * sum(1 for _ in layouts(job, job.shape))


def test_devices_that_nothing_can_use_are_refused() -> None:
    with pytest.raises(UsageError, match="7 devices cannot be used for gpt2 with 2 sequences"):
        find_layout(TrainingJob(resolve("gpt2")[1], H100, 7, 1024, 2), "gpt2")


def test_a_layout_reads_as_one_line() -> None:
    text = describe(layout(data=128, zero_stage=1, tensor=8, pipeline=16, interleave=4))
    assert text == ("data 128 (ZeRO 1) × tensor 8 × pipeline 16, 4 parts a stage, micro-batch 1, recompute selective")


def test_the_405b_on_its_cluster() -> None:
    """Meta's own: tensor 8, pipeline 16, data 128 on 16,384 H100 with 16 M tokens a step. Ours need not be it, but the
    model must fit without full sharding over thousands, and with little idling."""
    best = find_layout(TrainingJob(LLAMA_405B, H100, 16384, 8192, 2048))
    assert best.layout.tensor == 8
    assert best.layout.pipeline in {4, 8, 16, 32}
    assert best.step.bubble / best.step.total < 0.3
