"""Decoders with mixtures of experts, as their publishers configure them."""

from __future__ import annotations

from bedplate.models.specs.presets.dense import decoder, qwen3
from bedplate.models.specs.presets.preset import Preset
from bedplate.models.specs.transformer import Experts, LatentAttention, Rope, TransformerSpec, YarnScaling


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


QWEN3 = "https://arxiv.org/abs/2505.09388"

EXPERTS: dict[str, Preset] = {
    "mixtral-8x7b": Preset(
        decoder(
            (4096, 32, 32, 8, 14_336),
            32_000,
            32_768,
            rope=Rope(1_000_000.0),
            tied_head=False,
            experts=Experts(8, 2, 14_336),
        ),
        "https://arxiv.org/abs/2401.04088",
        "46.7",
        "12.9",
    ),
    "mixtral-8x22b": Preset(
        decoder(
            (6144, 56, 48, 8, 16_384),
            32_000,
            65_536,
            rope=Rope(1_000_000.0),
            tied_head=False,
            experts=Experts(8, 2, 16_384),
        ),
        "https://mistral.ai/news/mixtral-8x22b",
        "141",
        "39",
    ),
    "qwen3-30b-a3b": Preset(qwen3((2048, 48, 32, 4, 6144), False, experts=Experts(128, 8, 768)), QWEN3, "30.5", "3.3"),
    "qwen3-235b-a22b": Preset(
        qwen3((4096, 94, 64, 4, 12_288), False, experts=Experts(128, 8, 1536)), QWEN3, "235", "22"
    ),
    "deepseek-v2-lite": Preset(
        decoder(
            (2048, 27, 16, 16, 10_944),
            102_400,
            163_840,
            head_dim=192,
            rope=Rope(10_000.0, YarnScaling(40.0, 4096, scale=0.707, scale_all=0.707)),
            norm_eps=1e-6,
            tied_head=False,
            latent=LatentAttention(kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128),
            experts=Experts(64, 6, 1408, shared_size=2 * 1408, first_dense=1, renormalise=False),
        ),
        "https://arxiv.org/abs/2405.04434",
        "15.7",
        "2.4",
    ),
    # Without the module that predicts a second token in training: `prediction_modules=1` has it (14 billion more).
    "deepseek-v3": Preset(
        decoder(
            (7168, 61, 128, 128, 18_432),
            129_280,
            163_840,
            head_dim=192,
            rope=Rope(10_000.0, YarnScaling(40.0, 4096, scale=1.0, scale_all=1.0)),
            norm_eps=1e-6,
            tied_head=False,
            latent=LatentAttention(kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128, q_rank=1536),
            experts=Experts(
                256,
                8,
                2048,
                shared_size=2048,
                first_dense=3,
                selection_bias=True,
                scoring="sigmoid",
                scale=2.5,
                groups=8,
                groups_chosen=4,
            ),
        ),
        "https://arxiv.org/abs/2412.19437",
        "671",
        "37",
    ),
    "gpt-oss-20b": Preset(gpt_oss(24, 32), "https://arxiv.org/abs/2508.10925, table 1", "20.91", "3.61"),
    "gpt-oss-120b": Preset(gpt_oss(36, 128), "https://arxiv.org/abs/2508.10925, table 1", "116.83", "5.13"),
}
