"""Decoders of which some layers keep a state in the place of attention, as their publishers configure them."""

from __future__ import annotations

from bedplate.models.specs.parts import DeltaRule, Mamba2, ShortConvolution
from bedplate.models.specs.presets.preset import Preset, Sizes, decoder
from bedplate.models.specs.transformer import Experts, Rope, Scales, TransformerSpec


def lfm2(hidden: int, heads: int, feedforward: int) -> TransformerSpec:
    """LFM2: six layers of sixteen are attention, the others short convolutions."""
    attention = (2, 5, 8, 10, 12, 14)
    return decoder(
        (hidden, 16, heads, 8, feedforward),
        65_536,
        128_000,
        rope=Rope(1_000_000.0),
        qk_norm="head",
        state=ShortConvolution(),
        state_layers=tuple(layer not in attention for layer in range(16)),
    )


def granite4(sizes: Sizes, mamba_heads: int, scales: Scales, experts: Experts | None) -> TransformerSpec:
    """Granite 4.0: nine layers of ten are Mamba-2, and no layer has positions."""
    return decoder(
        sizes,
        100_352,
        131_072,
        scales=scales,
        experts=experts,
        state=Mamba2(mamba_heads, 2 * sizes[0] // mamba_heads, 1, 128),
        state_layers=tuple(layer != 5 for layer in range(10)),
    )


LFM2 = "https://arxiv.org/abs/2511.23404"

MIXED: dict[str, Preset] = {
    "lfm2-350m": Preset(lfm2(1024, 16, 4608), LFM2, "0.35"),
    "lfm2-700m": Preset(lfm2(1536, 24, 6912), LFM2, "0.74"),
    "lfm2-1.2b": Preset(lfm2(2048, 32, 8192), LFM2, "1.17"),
    "granite-4.0-h-micro": Preset(
        granite4((2048, 40, 32, 8, 8192), 64, Scales(12.0, 0.015625, residual=0.22, head=1 / 8), None),
        "https://www.ibm.com/granite/docs/models/granite",
        "3",
    ),
    "granite-4.0-h-tiny": Preset(
        granite4(
            (1536, 40, 12, 4, 1024),
            48,
            Scales(12.0, 0.0078125, residual=0.22, head=1 / 6),
            Experts(64, 6, 512, shared_size=1024, scoring="softmax_chosen"),
        ),
        "https://www.ibm.com/granite/docs/models/granite",
        "7",
        "1",
    ),
    "qwen3-next-80b-a3b": Preset(
        decoder(
            (2048, 48, 16, 2, 5632),
            151_936,
            262_144,
            head_dim=256,
            rope=Rope(10_000_000.0, fraction=0.25),
            norm_eps=1e-6,
            norm_offset=1.0,
            qk_norm="head",
            attention_gate=True,
            tied_head=False,
            experts=Experts(512, 10, 512, shared_size=512, shared_gate=True),
            state=DeltaRule(heads=32, key_heads=16, key_dim=128, value_dim=128),
            state_layers=(True, True, True, False),
        ),
        "https://qwen.ai/blog?id=qwen3-next",
        "80",
        "3",
    ),
}
