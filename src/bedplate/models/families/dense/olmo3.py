"""The olmo3 family (https://arxiv.org/abs/2512.13961): Hugging Face's `Olmo3ForCausalLM`. Olmo2, three layers of four
with a window; only those that see everything have a scaled rope.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.models.families.decoders import (
    ATTENTION,
    GATED,
    IGNORABLE,
    QK_NORMS,
    TINY,
    activation_name,
    decoder_rules,
    size_fields,
    take_activation,
    take_sizes,
    take_windows,
    window_fields,
)
from bedplate.models.families.dense.olmo2 import BRANCH_NORMS
from bedplate.models.families.family import Family
from bedplate.models.families.fields import HF_BOOKKEEPING, Fields
from bedplate.models.families.rope import FULL, SLIDING, rope_parameters, take_ropes
from bedplate.models.families.weights import WeightMap
from bedplate.models.specs.transformer import Rope, TransformerSpec

_ORIGIN = "config.json (olmo3)"

HF_WEIGHTS = WeightMap(decoder_rules(*ATTENTION, *QK_NORMS, *GATED, *BRANCH_NORMS), IGNORABLE)
_YARN = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0, "original_max_position_embeddings": 32}
EXAMPLES = (
    {**TINY, "num_hidden_layers": 4, "sliding_window": 7},
    {
        **TINY,
        "num_key_value_heads": 6,
        "attention_bias": True,
        "rms_norm_eps": 0.1,  # else rounding takes transformers' own gradients in float32 8e-6 from those in float64
        "sliding_window": 9,
        "layer_types": [FULL, SLIDING, SLIDING],
        "rope_parameters": {FULL: _YARN, SLIDING: {"rope_type": "default", "rope_theta": 5e5}},
    },
)


def from_hf(config: Mapping[str, Any]) -> TransformerSpec:
    """`config.json` of an Olmo3ForCausalLM → spec."""
    fields = Fields(config, _ORIGIN)
    sizes = take_sizes(fields)
    context, default = sizes["context_length"], [SLIDING, SLIDING, SLIDING, FULL]
    full, sliding = take_ropes(fields, _ORIGIN, context=context, theta=500_000.0, local_theta=500_000.0)
    fields.ignore((*HF_BOOKKEEPING, "attention_dropout"))
    spec = TransformerSpec.from_fields(
        **sizes,
        norm_eps=fields.real("rms_norm_eps", 1e-5),
        norm_placement="branch",
        qk_norm="projection",
        rope=full,
        local_rope=None if sliding == full else sliding,
        windows=take_windows(fields, sizes["layers"], fields.optional("sliding_window", 4096), default, _ORIGIN),
        activation=take_activation(fields, "hidden_act", "silu", _ORIGIN),
        attention_bias=fields.flag("attention_bias", False),
    )
    fields.finish()
    return spec


def to_hf(spec: TransformerSpec) -> dict[str, Any]:
    """Spec → the `config.json` that transformers loads."""
    rope = spec.position.rope or Rope()
    return (
        size_fields(spec, "olmo3", "Olmo3ForCausalLM")
        | {
            "rms_norm_eps": spec.norm.eps,
            "hidden_act": activation_name(spec.feedforward.activation),
            "attention_bias": spec.attention.bias,
            "attention_dropout": 0.0,
            "rope_parameters": {
                FULL: rope_parameters(rope),
                SLIDING: rope_parameters(spec.position.local_rope or rope),
            },
        }
        | window_fields(spec)
    )


HF = Family(("hf", "olmo3"), from_hf, to_hf, HF_WEIGHTS, (("gguf", "olmo2"),), examples=EXAMPLES)
