"""The gemma3_text family (https://arxiv.org/abs/2503.19786): Hugging Face's `Gemma3ForCausalLM`, text alone.

Five layers of six see a window, and have a rope of their own; norms before and after each part, of 1 + w; queries and
keys normalised; embeddings times √hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.models.families.decoders import (
    ATTENTION,
    GATED,
    IGNORABLE,
    QK_NORMS,
    SANDWICH_NORMS,
    TINY,
    activation_name,
    decoder_rules,
    size_fields,
    take_activation,
    take_sizes,
    take_windows,
    window_fields,
)
from bedplate.models.families.family import Family
from bedplate.models.families.fields import HF_BOOKKEEPING, Fields
from bedplate.models.families.rope import FULL, SLIDING, rope_parameters, take_ropes
from bedplate.models.families.weights import WeightMap
from bedplate.models.specs.transformer import Rope, Scales, TransformerSpec

_ORIGIN = "config.json (gemma3_text)"

HF_WEIGHTS = WeightMap(decoder_rules(*ATTENTION, *QK_NORMS, *GATED, *SANDWICH_NORMS), IGNORABLE)
EXAMPLES = (
    {**TINY, "head_dim": 8, "sliding_window": 7, "sliding_window_pattern": 2, "query_pre_attn_scalar": 12},
    {
        **TINY,
        "head_dim": 16,
        "num_key_value_heads": 6,
        "sliding_window": 5,
        "query_pre_attn_scalar": 16,
        "final_logit_softcapping": 3.0,
        "layer_types": [SLIDING, FULL, SLIDING],
        "rope_parameters": {
            FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
            SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
        },
    },
)


def from_hf(config: Mapping[str, Any]) -> TransformerSpec:
    """`config.json` of a Gemma3ForCausalLM → spec."""
    fields = Fields(config, _ORIGIN)
    sizes = take_sizes(fields, head_dim=256, context=131_072, tied=True)
    # Of attention scores only Gemma-2 has a cap: this family's code reads the field and does nothing.
    fields.only("attn_logit_softcapping", None)
    fields.only("use_bidirectional_attention", False, None)
    pattern = fields.whole("sliding_window_pattern", fields.whole("_sliding_window_pattern", 6, null=6), null=6)
    window = fields.optional("sliding_window", 4096)
    default = [FULL if (layer + 1) % pattern == 0 else SLIDING for layer in range(sizes["layers"])]
    context = sizes["context_length"]
    full, sliding = take_ropes(fields, _ORIGIN, context=context, theta=1_000_000.0, local_theta=10_000.0)
    cap = fields.real("final_logit_softcapping")
    fields.ignore((*HF_BOOKKEEPING, "attention_dropout", "cache_implementation"))
    queries = fields.real("query_pre_attn_scalar", 256)
    spec = TransformerSpec.from_fields(
        **sizes,
        norm_eps=fields.real("rms_norm_eps", 1e-6),
        norm_placement="sandwich",
        norm_offset=1.0,
        qk_norm="head",
        rope=full,
        local_rope=None if sliding == full else sliding,
        windows=take_windows(fields, sizes["layers"], window, default, _ORIGIN),
        activation=take_activation(fields, "hidden_activation", "gelu_pytorch_tanh", _ORIGIN),
        attention_bias=fields.flag("attention_bias", False),
        scales=Scales(
            embedding=sizes["hidden_size"] ** 0.5,
            attention=None if queries == sizes["head_dim"] else queries**-0.5,
            logit_cap=cap,
        ),
    )
    fields.finish()
    return spec


def to_hf(spec: TransformerSpec) -> dict[str, Any]:
    """Spec → the `config.json` that transformers loads."""
    scales, rope = spec.scales or Scales(), spec.position.rope or Rope()
    local = spec.position.local_rope or rope
    return (
        size_fields(spec, "gemma3_text", "Gemma3ForCausalLM")
        | {
            "rms_norm_eps": spec.norm.eps,
            "hidden_activation": activation_name(spec.feedforward.activation),
            "attention_bias": spec.attention.bias,
            "attention_dropout": 0.0,
            "query_pre_attn_scalar": spec.attention.head_dim
            if scales.attention is None
            else round(scales.attention**-2),
            "final_logit_softcapping": scales.logit_cap,
            "attn_logit_softcapping": None,
            "rope_theta": rope.theta,
            "rope_local_base_freq": local.theta,
            "rope_parameters": {FULL: rope_parameters(rope), SLIDING: rope_parameters(local)},
        }
        | window_fields(spec)
    )


HF = Family(("hf", "gemma3_text"), from_hf, to_hf, HF_WEIGHTS, (("gguf", "gemma3"),), examples=EXAMPLES)
