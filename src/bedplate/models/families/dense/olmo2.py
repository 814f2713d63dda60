"""The olmo2 family (https://arxiv.org/abs/2501.00656): Hugging Face's `Olmo2ForCausalLM`. Norms of what attention and
feed-forward give, before it is added; queries and keys normalised over the whole projection.
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
)
from bedplate.models.families.family import Family
from bedplate.models.families.fields import HF_BOOKKEEPING, Fields
from bedplate.models.families.rope import rope_parameters, take_rope
from bedplate.models.families.weights import WeightMap
from bedplate.models.specs.transformer import Rope, TransformerSpec

_WHERE = "config.json (olmo2)"

BRANCH_NORMS = (("attention_norm", "post_attention_layernorm"), ("feedforward_norm", "post_feedforward_layernorm"))
HF_WEIGHTS = WeightMap(decoder_rules(*ATTENTION, *QK_NORMS, *GATED, *BRANCH_NORMS), IGNORABLE)
EXAMPLES = (
    dict(TINY),
    {**TINY, "num_key_value_heads": 6, "attention_bias": True, "tie_word_embeddings": True, "num_hidden_layers": 2},
)


def from_hf(config: Mapping[str, Any]) -> TransformerSpec:
    """`config.json` of an Olmo2ForCausalLM → spec."""
    fields = Fields(config, _WHERE)
    sizes = take_sizes(fields)
    fields.ignore((*HF_BOOKKEEPING, "attention_dropout"))
    spec = TransformerSpec(
        **sizes,
        norm_eps=float(fields.take("rms_norm_eps", 1e-5)),
        norm_placement="branch",
        qk_norm="projection",
        rope=take_rope(fields, _WHERE, context=sizes["context_length"]),
        activation=take_activation(fields, "hidden_act", "silu", _WHERE),
        attention_bias=bool(fields.take("attention_bias", False)),
    )
    fields.finish()
    return spec


def to_hf(spec: TransformerSpec) -> dict[str, Any]:
    """Spec → the `config.json` that transformers loads."""
    rope = spec.rope or Rope()
    return size_fields(spec, "olmo2", "Olmo2ForCausalLM") | {
        "rms_norm_eps": spec.norm_eps,
        "hidden_act": activation_name(spec.activation),
        "attention_bias": spec.attention_bias,
        "attention_dropout": 0.0,
        "rope_theta": rope.theta,
        "rope_parameters": rope_parameters(rope),
    }


HF = Family(("hf", "olmo2"), from_hf, to_hf, HF_WEIGHTS, (("gguf", "olmo2"),), examples=EXAMPLES)
