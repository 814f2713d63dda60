"""Tuning: adapters against peft, operations against torch's counter, prices by hand."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.economics import oracles
from torch.utils.flop_counter import FlopCounterMode

from bedplate.adapters.modules import block_linears
from bedplate.core.errors import UsageError
from bedplate.economics.hardware.devices import find_device
from bedplate.economics.model.footprint import lora_parameters, training_flops_per_token
from bedplate.economics.model.named_model import resolve
from bedplate.economics.model.parameters import parameters
from bedplate.economics.training.layout_search import DoesNotFit
from bedplate.economics.training.tuning_cost import TuningPlan, plan_tuning, tuning_flops_per_token
from bedplate.models.build import build
from bedplate.models.families import FAMILIES
from bedplate.models.specs import TransformerSpec
from bedplate.models.specs.transformer import AttentionSpec, FeedForwardSpec, PositionSpec, Rope

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TINY = TransformerSpec(
    kind="decoder",
    vocab_size=96,
    hidden_size=64,
    layers=12,
    context_length=256,
    attention=AttentionSpec(heads=4, kv_heads=2, head_dim=16),
    feedforward=FeedForwardSpec(size=160),
    position=PositionSpec(rope=Rope()),
    tied_head=False,
)
H100 = find_device("h100")


def plan(**changes: object) -> TuningPlan:
    arguments: dict[str, object] = {
        "model": "llama-3.1-8b",
        "examples": 10_000,
        "tokens_per_example": 500,
        "device": H100,
        **changes,
    }
    return plan_tuning(**arguments)  # type: ignore[arg-type]


def peft_model(rank: int) -> torch.nn.Module:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return peft.get_peft_model(oracles.llama(TINY), config)


@pytest.mark.parametrize("rank", [1, 8, 16])
def test_adapters_have_pefts_parameters(rank: int) -> None:
    trainable = sum(p.numel() for p in peft_model(rank).parameters() if p.requires_grad)
    assert lora_parameters(TINY, rank) == trainable


@pytest.mark.parametrize("example", [0, 1])
def test_adapters_of_layers_of_several_shapes(example: int) -> None:
    family = FAMILIES["hf", "gemma4_text"]
    spec = family.to_spec(family.examples[example])
    linears = block_linears(build(spec, device="meta")).values()
    assert lora_parameters(spec, 2) == 2 * sum(linear.in_features + linear.out_features for linear in linears)


def test_our_own_adapters_of_smollm2() -> None:
    """r = 16 on every linear map of SmolLM2-135M: 30 layers, 576 features, 3 key-value heads of 64, 1,536 wide."""
    layer = 2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536)
    assert lora_parameters(resolve("smollm2-135m")[1], 16) == 16 * 30 * layer == 4_884_480


@pytest.mark.parametrize("method", ["full", "lora"])
def test_operations_are_those_that_torch_counts(method: str) -> None:
    """Forward and backward of a real model. Torch counts the full square of attention, and it knows that the frozen
    first block needs no gradient of its input: one product in 84."""
    model, tokens = peft_model(8) if method == "lora" else oracles.llama(TINY), 64
    rows = torch.randint(0, 96, (2, tokens))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=rows, labels=rows).loss.backward()
    causal = 6 * 12 * 64 * (tokens + 1)
    square = 12 * 12 * 64 * tokens
    ours = tuning_flops_per_token(TINY, tokens, method, rank=8) - causal + square  # type: ignore[arg-type]
    assert ours * 2 * tokens == pytest.approx(counter.get_total_flops(), rel=0.015)


def test_a_frozen_base_saves_a_third() -> None:
    for name in ("llama-3.1-8b", "llama-3.1-70b", "mixtral-8x7b"):
        spec = resolve(name)[1]
        full, lora = (tuning_flops_per_token(spec, 512, method, rank=16) for method in ("full", "lora"))
        assert full == pytest.approx(training_flops_per_token(spec, 512))
        assert 4 / 6 <= lora / full < 0.70


def test_the_head_on_learned_tokens_only() -> None:
    spec = resolve("smollm2-135m")[1]
    full, tenth = (tuning_flops_per_token(spec, 64, "full", learned_share=share) for share in (1.0, 0.1))
    assert full - tenth == pytest.approx(6 * 0.9 * parameters(spec).head)


def test_prices_by_hand() -> None:
    tuning_plan = plan(epochs=3, usd_per_hour=2.0, mfu_share=0.4, overhead=2.0)
    assert tuning_plan.tokens == 10_000 * 500 * 3
    flops = tuning_plan.tokens * tuning_flops_per_token(resolve("llama-3.1-8b")[1], 500, "lora")
    hours = flops * 2 / (989.4e12 * 0.4) / 3600
    assert tuning_plan.gpu_hours.central == pytest.approx(hours)
    assert tuning_plan.seconds.central == pytest.approx(hours * 3600)
    assert tuning_plan.usd is not None
    assert tuning_plan.usd.central == pytest.approx(hours * 2)
    assert tuning_plan.trained_parameters == 41_943_040
    assert tuning_plan.saved_flops > 0
    json.dumps(tuning_plan.as_json(), allow_nan=False)


def test_a_measured_speed_needs_no_mfu() -> None:
    tuning_plan = plan(tokens_per_second=2500, devices=2, usd_per_hour=3.0)
    assert tuning_plan.mfu is None
    assert tuning_plan.seconds.central == pytest.approx(5e6 / 2500)
    assert tuning_plan.gpu_hours.central == pytest.approx(5e6 / 2500 / 3600 * 2)


def test_all_weights_need_more_memory_than_an_adapter() -> None:
    with pytest.raises(DoesNotFit, match="LoRA instead of all weights"):
        plan(method="full")
    assert plan().bytes.total < 80e9
    assert plan(method="full", devices=8).bytes.total < 80e9


@given(a=st.floats(1, 1e6), b=st.floats(1, 1e6), tokens=st.floats(8, 4096), ranks=st.tuples(*[st.integers(1, 256)] * 2))
@settings(deadline=None, max_examples=12)
def test_monotone(a: float, b: float, tokens: float, ranks: tuple[int, int]) -> None:
    short_run, long_run = (plan(model="gpt2", examples=n, tokens_per_example=min(tokens, 1024)) for n in sorted((a, b)))
    assert short_run.flops <= long_run.flops
    assert short_run.seconds.central <= long_run.seconds.central
    assert short_run.usd is not None
    assert long_run.usd is not None
    assert short_run.usd.central <= long_run.usd.central
    small, large = (plan(model="gpt2", rank=n) for n in sorted(ranks))
    assert small.flops <= large.flops
    assert small.bytes.total <= large.bytes.total


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"examples": 0}, "examples is 0"),
        ({"examples": math.nan}, "examples is nan"),
        ({"tokens_per_example": -1}, "tokens_per_example is -1"),
        ({"epochs": 0}, "epochs is 0"),
        ({"rank": 0}, "rank is 0"),
        ({"devices": 0}, "devices is 0"),
        ({"learned_tokens": 501}, "501 learned tokens in an example of 500"),
        ({"learned_tokens": 0}, "learned_tokens is 0"),
        ({"tokens_per_second": 0}, "tokens_per_second is 0"),
        ({"usd_per_hour": -2}, "usd_per_hour is -2"),
        ({"overhead": 0.5}, "overhead is 0.5"),
        ({"method": "dora"}, "no method 'dora'; there are lora, full"),
        ({"model": "llama-3.1-8c"}, "llama-3.1-8b"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, object], part: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan(**changes)
    assert part in str(caught.value)
