"""Decoders with mixtures of experts, as their publishers configure them."""

from __future__ import annotations

from typing import Any

from bedplate.models.specs.parts import LatentAttention
from bedplate.models.specs.position import YarnScaling
from bedplate.models.specs.presets.dense import llama2, qwen3
from bedplate.models.specs.presets.preset import Preset, Sizes, decoder
from bedplate.models.specs.transformer import Experts, Rope, TransformerSpec


def gpt_oss(layers: int, experts: int) -> TransformerSpec:
    """gpt-oss: a window of 128 in every other layer, attention sinks, biases everywhere."""
    return decoder(
        (2880, layers, 64, 8, 2880),
        201_088,
        131_072,
        head_dim=64,
        rope=Rope(150_000.0, YarnScaling(32.0, 4096)),
        activation="clamped_silu",
        attention_bias=True,
        attention_sinks=True,
        windows=(128, None),
        tied_head=False,
        experts=Experts(experts, 4, 2880, router_bias=True, bias=True, scoring="softmax_chosen"),
    )


def mixtral(sizes: Sizes, context: int) -> TransformerSpec:
    """Mixtral: two of eight experts."""
    return llama2(sizes, context_length=context, rope=Rope(1_000_000.0), experts=Experts(8, 2, sizes[-1]))


def deepseek(sizes: Sizes, vocab_size: int, yarn_scale: float, q_rank: int | None, experts: Experts) -> TransformerSpec:
    """DeepSeek-V2 and V3: latent attention; experts beside a shared one, behind dense layers."""
    return llama2(
        *(sizes, vocab_size, 163_840),
        head_dim=192,
        rope=Rope(10_000.0, YarnScaling(40.0, 4096, scale=yarn_scale, scale_all=yarn_scale)),
        norm_eps=1e-6,
        latent=LatentAttention(kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128, q_rank=q_rank),
        experts=experts,
    )


_V3_ROUTER: dict[str, Any] = {
    "selection_bias": True,
    "scoring": "sigmoid",
    "scale": 2.5,
    "groups": 8,
    "groups_chosen": 4,
}
QWEN3 = "https://arxiv.org/abs/2505.09388"

EXPERTS: dict[str, Preset] = {
    "mixtral-8x7b": Preset(
        mixtral((4096, 32, 32, 8, 14_336), 32_768), "https://arxiv.org/abs/2401.04088", "46.7", "12.9"
    ),
    "mixtral-8x22b": Preset(
        mixtral((6144, 56, 48, 8, 16_384), 65_536), "https://mistral.ai/news/mixtral-8x22b", "141", "39"
    ),
    "qwen3-30b-a3b": Preset(qwen3((2048, 48, 32, 4, 6144), False, experts=Experts(128, 8, 768)), QWEN3, "30.5", "3.3"),
    "qwen3-235b-a22b": Preset(
        qwen3((4096, 94, 64, 4, 12_288), False, experts=Experts(128, 8, 1536)), QWEN3, "235", "22"
    ),
    "deepseek-v2-lite": Preset(
        deepseek(
            *((2048, 27, 16, 16, 10_944), 102_400, 0.707, None),
            Experts(64, 6, 1408, shared_size=2 * 1408, first_dense=1, renormalise=False),
        ),
        "https://arxiv.org/abs/2405.04434",
        "15.7",
        "2.4",
    ),
    # Without the module that predicts a second token in training: `prediction_modules=1` has it (14 billion more).
    "deepseek-v3": Preset(
        deepseek(
            *((7168, 61, 128, 128, 18_432), 129_280, 1.0, 1536),
            Experts(256, 8, 2048, shared_size=2048, first_dense=3, **_V3_ROUTER),
        ),
        "https://arxiv.org/abs/2412.19437",
        "671",
        "37",
    ),
    "gpt-oss-20b": Preset(gpt_oss(24, 32), "https://arxiv.org/abs/2508.10925, table 1", "20.91", "3.61"),
    "gpt-oss-120b": Preset(gpt_oss(36, 128), "https://arxiv.org/abs/2508.10925, table 1", "116.83", "5.13"),
}
