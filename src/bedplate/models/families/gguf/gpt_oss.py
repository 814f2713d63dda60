"""GGUF's `gpt-oss`: attention sinks, windows in every other layer, experts with biases, YaRN with bounds that are not
whole numbers."""

from __future__ import annotations

from dataclasses import replace

from bedplate.models.families.experts import gpt_oss
from bedplate.models.families.field_map import Field, Values, constant
from bedplate.models.families.gguf.experts import experts
from bedplate.models.families.gguf.metadata import SIZES, Metadata, rope, windows
from bedplate.models.families.gguf.tensors import ATTENTION, ROUTER, decoder_weights, expert_rules
from bedplate.models.families.gguf.writing import gguf_family
from bedplate.models.families.weights import renamed
from bedplate.models.specs.transformer import YarnScaling

_NORMS = (("attention_norm", "attn_norm"), ("feedforward_norm", "post_attention_norm"))

WEIGHTS = decoder_weights(
    *ATTENTION,
    *_NORMS,
    *ROUTER,
    more=(renamed("layers.{i}.attention.sinks", "blk.{i}.attn_sinks.weight"), *expert_rules()),
)
EXAMPLES = (gpt_oss.EXAMPLES[0], {**gpt_oss.EXAMPLES[0], "num_key_value_heads": 6, "num_hidden_layers": 2})


def _fractional_bounds(fields: Metadata, values: Values) -> Values:
    """YaRN's bounds are not whole numbers: no key says it, and the model's own configuration does."""
    rope = values["rope"]
    if not isinstance(rope.scaling, YarnScaling):
        return {}
    return {"rope": replace(rope, scaling=replace(rope.scaling, truncate=False))}


ROWS = (
    SIZES,
    rope(),
    Field(_fractional_bounds),
    windows(2),
    constant(activation="clamped_silu", attention_bias=True, attention_sinks=True),
    experts(as_dense=True, router_bias=True, bias=True, scoring="softmax_chosen"),
)

GGUF = gguf_family("gpt-oss", ROWS, WEIGHTS, "gpt_oss", examples=EXAMPLES, needs_head=True)
