"""Bytes of weights, caches, activations and training states: against what torch and transformers keep, and by hand."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.economics import tiny
from tests.tiny import tiny_spec

from bedplate.core.errors import UsageError
from bedplate.economics.model.footprint import (
    BYTES_PER_PARAMETER,
    experts_touched,
    kv_bytes,
    kv_bytes_per_token,
    layer_activation_bytes,
    step_reads,
    weight_bytes,
)
from bedplate.economics.model.parameters import optimizer_bytes, parameters
from bedplate.economics.training.device_layout import shape_of
from bedplate.models.build import build
from bedplate.models.inputs import Inputs
from bedplate.models.specs import TransformerSpec
from bedplate.models.specs.parts import SharedKeys
from bedplate.models.specs.presets import PRESETS
from bedplate.models.specs.split import Recompute
from bedplate.models.specs.transformer import Experts, FullAttention
from bedplate.training.optimizers import classify_parameters


def spec_of(name: str) -> TransformerSpec:
    spec = PRESETS[name]
    assert isinstance(spec, TransformerSpec)
    return spec


def activation_bytes(spec: TransformerSpec, tokens: int, recompute: Recompute = "selective") -> float:
    """Float32 bytes of all blocks, the last norm's input, the head's, and the logits."""
    layers = [layer_activation_bytes(spec, n, tokens, 4, recompute) for n in range(spec.layers)]
    return sum(layers) + 4.0 * (spec.hidden_size * (spec.norms_output + 1) + spec.vocab_size)


# --- caches ---


def test_published_cache_sizes() -> None:
    """DeepSeek-V3: 70 KB a token (2505.09343, table 1, beside 516 KB of Llama-3.1-405B and 327 KB of Qwen-2.5-72B)."""
    assert kv_bytes_per_token(spec_of("deepseek-v3")) == 61 * (512 + 64) * 2 == 70_272
    assert kv_bytes_per_token(spec_of("llama-3.1-405b")) == 516_096
    assert kv_bytes_per_token(spec_of("qwen2.5-72b")) == 327_680
    assert kv_bytes_per_token(spec_of("llama-3.1-8b")) == 128 * 1024
    assert kv_bytes_per_token(spec_of("llama-3.1-8b"), bytes_per_value=1) == 64 * 1024
    assert kv_bytes_per_token(spec_of("bert-base")) == kv_bytes(spec_of("bert-base"), 100) == 0


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma-2", "gpt-oss"])
def test_cache_of_transformers(family: str) -> None:
    oracle, spec = tiny.random_specs(7)[family]
    assert isinstance(spec, TransformerSpec)
    model: Any = oracle(spec)
    with torch.no_grad():
        cache = model(input_ids=torch.zeros(1, 40, dtype=torch.long), use_cache=True).past_key_values
    cache_bytes = sum(x.numel() * x.element_size() for layer in cache.layers for x in (layer.keys, layer.values))
    # Of a window of w, transformers keeps the w − 1 tokens that the next query will see beside itself.
    windowed = sum(
        2 * spec.attention.kv_heads * spec.attention.head_dim * 4
        for n in range(spec.layers)
        if spec.window(n) is not None
    )
    assert kv_bytes(spec, 40, bytes_per_value=4) == cache_bytes + windowed


def test_windows_bound_what_is_kept() -> None:
    gemma = spec_of("gemma-3-1b")
    per_layer = 2 * 1 * 256 * 2
    assert kv_bytes(gemma, 32_768) == per_layer * (22 * 512 + 4 * 32_768)
    assert kv_bytes(gemma, 100) == 100 * kv_bytes_per_token(gemma)
    assert kv_bytes(gemma, 0) == 0
    # A module that predicts further tokens in training is not served.
    assert kv_bytes_per_token(spec_of("deepseek-v3").with_(prediction_modules=1)) == 70_272


def test_cross_attention_keeps_the_source() -> None:
    whisper, t5 = PRESETS["whisper-small"], PRESETS["t5-base"]
    per_token = 2 * 12 * 768 * 2
    assert kv_bytes(whisper, 10) == per_token * (10 + 1500)
    assert kv_bytes(t5, 10, source_tokens=300) == per_token * (10 + 300)
    assert kv_bytes_per_token(t5) == per_token


# --- weights ---


def test_bytes_of_a_parameter() -> None:
    """llama.cpp's Q4_1 is 20 bytes for 32 values, its Q8_0 34."""
    assert (BYTES_PER_PARAMETER["int4"] * 32, BYTES_PER_PARAMETER["int8"] * 32) == (20, 34)
    llama = spec_of("llama-3.1-8b")
    assert weight_bytes(llama) == 2 * parameters(llama).total
    assert weight_bytes(llama, "float32") == 4 * parameters(llama).total
    norms = (2 * 32 + 1) * 4096
    assert weight_bytes(llama, "int4") == (parameters(llama).total - norms) * 0.625 + 2 * norms


@pytest.mark.parametrize("tokens", [1, 3, 20])
def test_experts_touched_by_simulation(tokens: int) -> None:
    r = random.Random(tokens)
    runs = [len({e for _ in range(tokens) for e in r.sample(range(16), 4)}) for _ in range(4000)]
    assert experts_touched(16, 4, tokens) == pytest.approx(sum(runs) / len(runs), rel=0.02)


def test_a_step_reads_the_weights_and_the_experts_touched() -> None:
    llama = spec_of("llama-3.1-8b")
    table = 128_256 * 4096
    assert step_reads(llama)(1) == 2 * (parameters(llama).total - table + 4096)
    tied = spec_of("smollm2-135m")
    assert step_reads(tied)(1) == 2 * (parameters(tied).total + 576)
    mixtral = spec_of("mixtral-8x7b")
    expert = 32 * 3 * 4096 * 14_336
    dense = parameters(mixtral).total - 8 * expert - 32_000 * 4096
    for tokens in (1, 2, 5):
        touched = 8 * (1 - 0.75**tokens)
        assert step_reads(mixtral)(tokens) == pytest.approx(2 * (dense + touched * expert + tokens * 4096))
    whole = step_reads(PRESETS["t5-base"])(1)
    assert whole < weight_bytes(PRESETS["t5-base"])  # a decoder's step reads no encoder


@given(st.integers(1, 64), st.integers(1, 500), st.integers(1, 200))
@settings(deadline=None)
def test_more_is_heavier(per_token: int, tokens: int, extra_tokens: int) -> None:
    assert 0 < experts_touched(64, per_token, tokens) <= 64
    assert experts_touched(64, per_token, tokens + extra_tokens) >= experts_touched(64, per_token, tokens)
    spec = tiny_spec(experts=Experts(64, per_token, 16), windows=(64, None))
    assert step_reads(spec)(tokens + extra_tokens) >= step_reads(spec)(tokens)
    assert kv_bytes(spec, tokens + extra_tokens) > kv_bytes(spec, tokens)
    for slim, wider_dtype in (("int4", "int8"), ("int8", "bfloat16"), ("bfloat16", "float32")):
        assert weight_bytes(spec, slim) < weight_bytes(spec, wider_dtype)  # pyright: ignore[reportArgumentType]


# --- training ---


def kept_for_backward(spec: TransformerSpec, rows: int, tokens: int) -> int:
    """Bytes of activations that autograd keeps, each storage once, statistics of norms left out."""
    model = build(spec)
    parameter_storages = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved_tensors: dict[int, torch.Tensor] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        place = x.untyped_storage().data_ptr()
        if x.is_floating_point() and place not in parameter_storages and x.shape[-1:] != (1,) and x.dim() > 0:
            saved_tensors[place] = x  # holding it keeps its place from being used again
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        hidden = model(Inputs(torch.zeros(rows, tokens, dtype=torch.long))).hidden
        if spec.kind == "decoder":
            logits = model.head(hidden.reshape(-1, spec.hidden_size)).float()
            F.cross_entropy(logits, torch.zeros(rows * tokens, dtype=torch.long))
    return sum(x.untyped_storage().nbytes() for x in saved_tensors.values())


SHAPES = {
    "grouped, gated": tiny_spec(norm="layer", rope=None),
    "plain": tiny_spec(norm="layer", rope=None, gated=False, kv_heads=6, activation="gelu"),
    "biased": tiny_spec(norm="layer", rope=None, attention_bias=True, feedforward_bias=True, tied_head=False),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("layers", [1, 3])
def test_activations_are_those_that_autograd_keeps(name: str, layers: int) -> None:
    """Our decoder with layer norms: torch's RMS norm on CPUs keeps its output once more. Our gate makes its activation
    again, which published ones keep."""
    spec = SHAPES[name].with_(layers=layers)
    made_again = spec.feedforward.gated * layers * spec.feedforward.size * 4
    assert kept_for_backward(spec, 2, 32) == 2 * 32 * activation_bytes(spec, 32) - 2 * 32 * made_again


def test_activations_of_layers_that_share_and_are_given() -> None:
    spec = tiny_spec(norm="layer", rope=None, full=FullAttention(16, 1), output_scales=True, layer_input_size=12)
    spec = spec.with_(shared_keys=SharedKeys(2, 160))
    gates = sum(spec.feedforward_size_of(layer) + spec.layer_input_size for layer in range(spec.layers))
    expected_bytes = 2 * 32 * activation_bytes(spec, 32) - 2 * 32 * gates * 4  # as above
    assert kept_for_backward(spec, 2, 32) == expected_bytes


def test_one_gpt_layer_as_in_the_paper() -> None:
    """s·b·h·(34 + 5·a·s/h) with dropout's masks and outputs taken away: two of s·b·h, and 3 of the 5 a·s."""
    gpt = spec_of("gpt3-175b")
    h, a, s = 12_288, 96, 2048
    assert layer_activation_bytes(gpt, 0, s, 2, "none") == s * h * (32 + 2 * a * s / h) / s
    assert layer_activation_bytes(gpt, 0, s, 2, "selective") == 32 * h + 4 * a
    assert layer_activation_bytes(gpt, 0, s, 2, "full") == 2 * h
    recomputes: tuple[Recompute, ...] = ("none", "selective", "full")
    none, selective, full = (activation_bytes(gpt, s, recompute) for recompute in recomputes)
    assert none > selective > full


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_shape_with_activations(name: str) -> None:
    activations = shape_of(PRESETS[name], 128).activation_bytes
    assert activations["none"] > activations["full"] > 0


def test_optimizer_states() -> None:
    """AdamW in mixed precision: 12 bytes a parameter beside weights and gradients (ZeRO, 1910.02054, section 3.1)."""
    llama = spec_of("llama-3.1-8b")
    total = parameters(llama).total
    assert optimizer_bytes(llama) == 12 * total
    assert optimizer_bytes(llama, master=False) == 8 * total
    assert optimizer_bytes(llama, "adamw_8bit", master=False) == 2 * total * (1 + 1 / 64)
    outside = 2 * 128_256 * 4096 + (2 * 32 + 1) * 4096
    assert optimizer_bytes(llama, "muon", master=False) == 4 * (total - outside) + 8 * outside
    assert optimizer_bytes(llama, "sgd", master=False) == 0


@pytest.mark.parametrize("name", ["mixtral-8x7b", "deepseek-v2-lite", "granite-4.0-h-tiny", "bert-base"])
def test_muon_moves_the_matrices_that_are_counted(name: str) -> None:
    """Routers, and what joins a state with the next token's embedding, are AdamW's, as the optimizers sort the modules
    of a built model."""
    overrides = {"prediction_modules": 1} if name == "deepseek-v2-lite" else {}
    spec = spec_of(name).with_(**overrides)
    model = build(spec, device="meta")
    categories = classify_parameters(model.modules())
    turned = sum(p.numel() for p in model.parameters() if categories.get(id(p)) == "matrix")
    adamw_count = sum(p.numel() for p in model.parameters()) - turned
    assert optimizer_bytes(spec, "muon", master=False) == 4 * turned + 8 * adamw_count


def test_adamw_states_are_those_that_torch_keeps() -> None:
    model = build(tiny_spec())
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = [x for state in optimizer.state.values() for name, x in state.items() if name != "step"]
    assert sum(x.numel() * x.element_size() for x in moments) == optimizer_bytes(tiny_spec(), master=False)


def test_what_cannot_be_asked_is_said() -> None:
    with pytest.raises(UsageError, match="a vision model has no stack that reads text"):
        kv_bytes_per_token(PRESETS["vit-b-16"])
