"""The small decoders that the native kernel's tests run."""

from __future__ import annotations

from typing import Any

from bedplate.models.specs.parts import SharedKeys
from bedplate.models.specs.position import LinearScaling, YarnScaling
from bedplate.models.specs.transformer import (
    AttentionSpec,
    Experts,
    FeedForwardSpec,
    FullAttention,
    LongRopeScaling,
    PositionSpec,
    Rope,
    Scales,
    TransformerSpec,
)


def spec_of(**changes: Any) -> TransformerSpec:
    """Two blocks of three query heads to a key-value head, in sizes that the kernel takes; and what is to differ."""
    spec = TransformerSpec(
        kind="decoder",
        vocab_size=331,
        hidden_size=96,
        layers=2,
        context_length=512,
        attention=AttentionSpec(heads=6, kv_heads=2, head_dim=32),
        feedforward=FeedForwardSpec(size=160),
        position=PositionSpec(rope=Rope(10_000.0)),
    )
    return spec.with_(**changes)


FAMILIES = {
    "sandwich": spec_of(
        layers=3,
        heads=4,
        kv_heads=1,
        head_dim=48,
        norm_placement="sandwich",
        norm_offset=1.0,
        activation="gelu_tanh",
        qk_norm="head",
        windows=(20, 140, None),
        rope=Rope(1e6, LinearScaling(8.0)),
        local_rope=Rope(1e4),
        scales=Scales(embedding=10.0, attention=0.1, attention_cap=5.0, logit_cap=3.0),
    ),
    "branch": spec_of(
        norm_placement="branch",
        qk_norm="projection",
        rope=Rope(1e4, YarnScaling(4.0, 64)),
        tied_head=False,
        windows=(33, None),
        head_dim=80,
        heads=4,
        kv_heads=4,
        output_bias=True,
    ),
    "parallel": spec_of(
        norm="layer",
        parallel=True,
        rope=Rope(fraction=0.25),
        gated=False,
        activation="gelu",
        attention_bias=True,
        feedforward_bias=True,
        kv_heads=6,
        head_dim=48,
        tied_head=False,
    ),
    "learned positions": spec_of(
        norm="layer",
        position_rows=400,
        rope=None,
        gated=False,
        activation="quick_gelu",
        attention_bias=True,
        feedforward_bias=True,
        qk_norm="head",
    ),
    "sinks": spec_of(
        attention_sinks=True,
        windows=(40, None),
        attention_bias=True,
        key_bias=False,
        rope=Rope(1e4, LongRopeScaling((1.5,) * 16, (9.0,) * 16, 1024, 4.0)),
        activation="relu",
        scales=Scales(embedding=4.0, residual=0.3, head=0.5, attention=0.2),
    ),
    "few norms": spec_of(
        layers=3,
        norm_weight=False,
        first_norm=False,
        final_norm=False,
        embedding_norm=True,
        gated=False,
        activation="relu2",
        rope=Rope(fraction=0.5, interleaved=True),
        rope_layers=(True, False, True),
        head_dim=256,
        heads=2,
        kv_heads=1,
    ),
    "heads by layer": spec_of(
        layers=5,
        heads=4,
        norm_placement="sandwich",
        activation="gelu_tanh",
        qk_norm="head",
        value_norm=True,
        windows=(20, None, 20, 20, None),
        rope=Rope(1e6, fraction=0.25, proportional=True),
        local_rope=Rope(1e4),
        full=FullAttention(head_dim=64, kv_heads=1, keys_are_values=True),
        shared_keys=SharedKeys(2, feedforward_size=320),
        output_scales=True,
        scales=Scales(embedding=10.0, attention=0.15, logit_cap=3.0),
    ),
    "told by layer": spec_of(
        layers=3,
        vocab_size=83,
        norm_placement="sandwich",
        norm_offset=1.0,
        activation="gelu_tanh",
        qk_norm="head",  # without it scores are so sharp that torch's own rounding is over the bounds
        layer_input_size=64,
        output_scales=True,
        scales=Scales(embedding=10.0, residual=0.7),
    ),
    "large heads": spec_of(
        head_dim=16,
        heads=2,
        kv_heads=1,
        windows=(8, None),
        full=FullAttention(head_dim=512, kv_heads=2),
        qk_norm="projection",
    ),
}
"""What published families have, in few specs."""

EXPERTS = {
    "softmax": spec_of(qk_norm="projection", experts=Experts(8, 3, 64, renormalise=False)),
    "sigmoid": spec_of(
        layers=3,
        experts=Experts(
            *(16, 4, 32, 96, 1),
            selection_bias=True,
            shared_gate=True,
            scoring="sigmoid",
            scale=2.5,
            groups=4,
            groups_chosen=2,
        ),
        prediction_modules=1,  # GLM-4.5's files hold one, which no pass runs
    ),
    "chosen": spec_of(
        experts=Experts(8, 2, 96, router_bias=True, bias=True, scoring="softmax_chosen"),
        activation="clamped_silu",
        attention_sinks=True,
    ),
    "every other": spec_of(
        layers=3, experts=Experts(4, 2, 64, every=2), gated=False, activation="gelu", norm_placement="sandwich"
    ),
    "beside": spec_of(
        layers=3,
        experts=Experts(6, 2, 64, first_dense=1, beside=True, router_scales=True),
        activation="gelu_tanh",
        norm_placement="sandwich",
        output_scales=True,
    ),
}
"""Mixtures of experts."""


def encoder_of(**changes: Any) -> TransformerSpec:
    """Two blocks as BERT has them, and what is to differ."""
    spec = spec_of(
        kind="encoder",
        kv_heads=6,
        norm="layer",
        norm_placement="post",
        rope=None,
        gated=False,
        activation="gelu",
        attention_bias=True,
        feedforward_bias=True,
        context_length=300,
    )
    return spec.with_(**changes)


ENCODERS = {
    "bert": encoder_of(token_types=2, pooler=True, pooling="first"),
    "roberta": encoder_of(position_offset=2, position_rows=303, token_types=1, head_dim=16),
    "modernbert": encoder_of(
        layers=3,
        norm_placement="pre",
        norm_bias=False,
        first_norm=False,
        final_norm=True,
        gated=True,
        attention_bias=False,
        feedforward_bias=False,
        windows=(None, 40, 300),
        rope=Rope(160_000.0),
        local_rope=Rope(10_000.0),
    ),
    "grouped": encoder_of(
        kv_heads=2,
        norm="rms",
        norm_placement="branch",
        qk_norm="projection",
        windows=(7, None),
        rope=Rope(1e4),
        full=FullAttention(head_dim=48, kv_heads=3, keys_are_values=True),
        value_norm=True,
    ),
}
"""What published encoders have, in few specs."""
