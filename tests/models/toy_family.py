"""A family that exists nowhere but in tests: attention's weights fused, the feed-forward's gate and up stacked, its way
down transposed. What a family's file looks like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.models.families import Family
from bedplate.models.families.fields import HF_BOOKKEEPING, Fields
from bedplate.models.families.weights import Rule, WeightMap, fused, renamed, stack, transposed, unstack
from bedplate.models.specs.transformer import AttentionSpec, FeedForwardSpec, PositionSpec, Rope, TransformerSpec


def attention_rows(spec: TransformerSpec) -> tuple[int, int, int]:
    keys = spec.attention.kv_heads * spec.attention.head_dim
    return spec.attention.heads * spec.attention.head_dim, keys, keys


WEIGHTS = WeightMap(
    rules=(
        renamed("embedding.weight", "toy.tokens"),
        fused(tuple(f"layers.{{i}}.attention.{n}.weight" for n in "qkv"), "toy.{i}.attention.qkv", attention_rows),
        renamed("layers.{i}.attention.o.weight", "toy.{i}.attention.out"),
        Rule(
            tuple(f"layers.{{i}}.feedforward.{name}.weight" for name in ("gate", "up")),
            ("toy.{i}.feedforward.in",),
            stack,
            unstack,
        ),
        transposed("layers.{i}.feedforward.down.weight", "toy.{i}.feedforward.out"),
        renamed("layers.{i}.attention_norm.weight", "toy.{i}.norm.0"),
        renamed("layers.{i}.feedforward_norm.weight", "toy.{i}.norm.1"),
        renamed("norm.weight", "toy.norm"),
    ),
    ignorable=(r"toy\.cache\..*",),
)


def from_config(config: Mapping[str, Any]) -> TransformerSpec:
    fields = Fields(config, "config.json (toy)")
    width, heads = int(fields.need("width")), int(fields.need("heads"))
    fields.ignore(HF_BOOKKEEPING)
    spec = TransformerSpec(
        kind="decoder",
        vocab_size=int(fields.need("tokens")),
        hidden_size=width,
        layers=int(fields.need("depth")),
        context_length=int(fields.need("context")),
        attention=AttentionSpec(heads=heads, kv_heads=int(fields.pop("groups", heads)), head_dim=width // heads),
        feedforward=FeedForwardSpec(size=int(fields.need("wide"))),
        position=PositionSpec(rope=Rope()),
    )
    fields.finish()
    return spec


def to_config(spec: TransformerSpec) -> dict[str, Any]:
    return {
        "model_type": "toy",
        "tokens": spec.vocab_size,
        "width": spec.hidden_size,
        "depth": spec.layers,
        "heads": spec.attention.heads,
        "groups": spec.attention.kv_heads,
        "wide": spec.feedforward.size,
        "context": spec.context_length,
    }


TOY = Family(("hf", "toy"), from_config, to_config, WEIGHTS)
