"""GGUF's `gpt-oss`: attention sinks, windows in every other layer, experts with biases, YaRN with bounds that are not
whole numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bedplate.models.families.experts import gpt_oss
from bedplate.models.families.family import Family
from bedplate.models.families.gguf.experts import expert_fields, take_experts
from bedplate.models.families.gguf.metadata import (
    read,
    rope_fields,
    rope_tables,
    size_fields,
    take_rope,
    take_sizes,
    take_windows,
    window_fields,
)
from bedplate.models.families.gguf.tensors import ATTENTION, IGNORABLE, ROUTER, decoder_rules, expert_rules
from bedplate.models.families.gguf.writing import writer
from bedplate.models.families.weights import WeightMap, renamed
from bedplate.models.specs.transformer import TransformerSpec, YarnScaling

_NAME, _PATTERN = "gpt-oss", 2
_NORMS = (("attention_norm", "attn_norm"), ("feedforward_norm", "post_attention_norm"))

WEIGHTS = WeightMap(
    (
        *decoder_rules(*ATTENTION, *_NORMS, *ROUTER),
        renamed("layers.{i}.attention.sinks", "blk.{i}.attn_sinks.weight"),
        *expert_rules(),
    ),
    IGNORABLE,
)
EXAMPLES = (gpt_oss.EXAMPLES[0], {**gpt_oss.EXAMPLES[0], "num_key_value_heads": 6, "num_hidden_layers": 2})


def from_gguf(config: Mapping[str, Any]) -> TransformerSpec:
    """Metadata → spec."""
    fields = read(config, _NAME)
    sizes = take_sizes(fields, config)
    rope = take_rope(fields, config, sizes["head_dim"])
    if isinstance(rope.scaling, YarnScaling):
        # no key says it, and the model's own configuration does
        rope = replace(rope, scaling=replace(rope.scaling, truncate=False))
    part = take_experts(fields, sizes["feedforward_size"], router_bias=True, bias=True, scoring="softmax_chosen")
    spec = TransformerSpec.from_fields(
        **sizes,
        rope=rope,
        windows=take_windows(fields, sizes["layers"], _PATTERN),
        activation="clamped_silu",
        attention_bias=True,
        attention_sinks=True,
        experts=part,
    )
    fields.finish()
    return spec


def _keys(spec: TransformerSpec) -> dict[str, Any]:
    return size_fields(spec) | rope_fields(spec) | window_fields(spec, _PATTERN) | expert_fields(spec)


GGUF = Family(
    ("gguf", _NAME),
    from_gguf,
    writer(_NAME, from_gguf, _keys, needs_head=True),
    WEIGHTS,
    (("hf", "gpt_oss"),),
    examples=EXAMPLES,
    tables=rope_tables,
)
