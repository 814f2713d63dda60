"""The starcoder2 family (https://arxiv.org/abs/2402.19173): Hugging Face's `Starcoder2ForCausalLM`. LayerNorm, biases
everywhere, a feed-forward without a gate, one window for all layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.models.families.decoders import (
    ATTENTION,
    DROPOUTS,
    IGNORABLE,
    LLAMA_NORMS,
    TINY,
    activation_name,
    decoder_rules,
    one_window,
    size_fields,
    take_activation,
    take_sizes,
)
from bedplate.models.families.family import Family
from bedplate.models.families.fields import HF_BOOKKEEPING, Fields
from bedplate.models.families.rope import rope_parameters, take_rope
from bedplate.models.families.weights import WeightMap
from bedplate.models.specs.transformer import Rope, TransformerSpec

_ORIGIN = "config.json (starcoder2)"

_PLAIN = (("feedforward.up", "mlp.c_fc"), ("feedforward.down", "mlp.c_proj"))
HF_WEIGHTS = WeightMap(decoder_rules(*ATTENTION, *_PLAIN, *LLAMA_NORMS), IGNORABLE)
EXAMPLES = (
    {**TINY, "sliding_window": 7},
    {**TINY, "num_key_value_heads": 6, "use_bias": False, "hidden_act": "relu", "tie_word_embeddings": False},
)


def from_hf(config: Mapping[str, Any]) -> TransformerSpec:
    """`config.json` of a Starcoder2ForCausalLM → spec."""
    fields = Fields(config, _ORIGIN)
    sizes = take_sizes(fields, context=4096, tied=True)
    fields.only("norm_type", "layer_norm")
    fields.only("mlp_type", "default")
    bias = fields.flag("use_bias", True)
    fields.ignore((*HF_BOOKKEEPING, *DROPOUTS))
    spec = TransformerSpec.from_fields(
        **sizes,
        norm="layer",
        norm_eps=fields.real("norm_epsilon", 1e-5),
        rope=take_rope(fields, _ORIGIN, context=sizes["context_length"]),
        windows=one_window(fields.optional("sliding_window")),
        activation=take_activation(fields, "hidden_act", "gelu_pytorch_tanh", _ORIGIN),
        gated=False,
        attention_bias=bias,
        feedforward_bias=bias,
    )
    fields.finish()
    return spec


def to_hf(spec: TransformerSpec) -> dict[str, Any]:
    """Spec → the `config.json` that transformers loads."""
    rope = spec.position.rope or Rope()
    return size_fields(spec, "starcoder2", "Starcoder2ForCausalLM") | {
        "norm_epsilon": spec.norm.eps,
        "hidden_act": activation_name(spec.feedforward.activation),
        "use_bias": spec.attention.bias,
        "sliding_window": spec.window(0),
        "rope_theta": rope.theta,
        "rope_parameters": rope_parameters(rope),
    }


HF = Family(("hf", "starcoder2"), from_hf, to_hf, HF_WEIGHTS, examples=EXAMPLES)
