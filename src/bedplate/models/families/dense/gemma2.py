"""The gemma2 family (https://arxiv.org/abs/2408.00118): Hugging Face's `Gemma2ForCausalLM`.

Every other layer sees a window; scores and logits are capped; norms before and after each part, of 1 + w.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.models.families.decoders import (
    ATTENTION,
    GATED,
    IGNORABLE,
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
from bedplate.models.families.rope import FULL, SLIDING, rope_parameters, take_rope
from bedplate.models.families.weights import WeightMap
from bedplate.models.specs.transformer import Rope, Scales, TransformerSpec

_ORIGIN = "config.json (gemma2)"

HF_WEIGHTS = WeightMap(decoder_rules(*ATTENTION, *GATED, *SANDWICH_NORMS), IGNORABLE)
EXAMPLES = (
    {**TINY, "head_dim": 8, "sliding_window": 7, "query_pre_attn_scalar": 12, "attn_logit_softcapping": 2.0},
    {
        **TINY,
        "head_dim": 16,
        "num_key_value_heads": 6,
        "sliding_window": 5,
        "query_pre_attn_scalar": 16,
        "final_logit_softcapping": 3.0,
        "layer_types": [FULL, FULL, SLIDING],
    },
)


def from_hf(config: Mapping[str, Any]) -> TransformerSpec:
    """`config.json` of a Gemma2ForCausalLM → spec."""
    fields = Fields(config, _ORIGIN)
    sizes = take_sizes(fields, head_dim=256, context=8192, tied=True)
    fields.only("use_bidirectional_attention", None, False)
    # Old files repeat the activation, as what it was not.
    fields.ignore((*HF_BOOKKEEPING, "attention_dropout", "cache_implementation", "hidden_act"))
    caps = fields.pop("attn_logit_softcapping", 50.0), fields.pop("final_logit_softcapping", 30.0)
    queries = fields.real("query_pre_attn_scalar", 256)
    spec = TransformerSpec.from_fields(
        **sizes,
        norm_eps=fields.real("rms_norm_eps", 1e-6),
        norm_placement="sandwich",
        norm_offset=1.0,
        rope=take_rope(fields, _ORIGIN, context=sizes["context_length"]),
        windows=take_windows(
            fields, sizes["layers"], fields.optional("sliding_window", 4096), [SLIDING, FULL], _ORIGIN
        ),
        activation=take_activation(fields, "hidden_activation", "gelu_pytorch_tanh", _ORIGIN),
        attention_bias=fields.flag("attention_bias", False),
        scales=Scales(
            embedding=sizes["hidden_size"] ** 0.5,
            attention=None if queries == sizes["head_dim"] else queries**-0.5,
            attention_cap=None if caps[0] is None else float(caps[0]),
            logit_cap=None if caps[1] is None else float(caps[1]),
        ),
    )
    fields.finish()
    return spec


def to_hf(spec: TransformerSpec) -> dict[str, Any]:
    """Spec → the `config.json` that transformers loads."""
    scales, rope = spec.scales or Scales(), spec.position.rope or Rope()
    return (
        size_fields(spec, "gemma2", "Gemma2ForCausalLM")
        | {
            "rms_norm_eps": spec.norm.eps,
            "hidden_activation": activation_name(spec.feedforward.activation),
            "attention_bias": spec.attention.bias,
            "query_pre_attn_scalar": spec.attention.head_dim
            if scales.attention is None
            else round(scales.attention**-2),
            "attn_logit_softcapping": scales.attention_cap,
            "final_logit_softcapping": scales.logit_cap,
            "rope_theta": rope.theta,
            "rope_parameters": rope_parameters(rope),
        }
        | window_fields(spec)
    )


HF = Family(("hf", "gemma2"), from_hf, to_hf, HF_WEIGHTS, (("gguf", "gemma2"),), examples=EXAMPLES)
