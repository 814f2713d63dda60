"""The mistral family (https://arxiv.org/abs/2310.06825): Hugging Face's `MistralForCausalLM`. Llama, every layer with
one window, where it has any.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.models.families.decoders import (
    ATTENTION,
    GATED,
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

_WHERE = "config.json (mistral)"

HF_WEIGHTS = WeightMap(decoder_rules(*ATTENTION, *GATED, *LLAMA_NORMS), IGNORABLE)
EXAMPLES = (
    {**TINY, "sliding_window": 7},
    {**TINY, "head_dim": 16, "num_key_value_heads": 6, "sliding_window": None, "tie_word_embeddings": True},
)


def from_hf(config: Mapping[str, Any]) -> TransformerSpec:
    """`config.json` of a MistralForCausalLM → spec."""
    return read_mistral(Fields(config, _WHERE), _WHERE, window=4096)


def read_mistral(fields: Fields, where: str, window: int | None, eps: float = 1e-6, **defaults: Any) -> TransformerSpec:
    """The fields that Mistral's families have in common."""
    sizes = take_sizes(fields, context=131_072, **defaults)
    fields.ignore((*HF_BOOKKEEPING, "attention_dropout"))
    spec = TransformerSpec(
        **sizes,
        norm_eps=float(fields.take("rms_norm_eps", eps)),
        rope=take_rope(fields, where, context=sizes["context_length"]),
        windows=one_window(fields.take("sliding_window", window)),
        activation=take_activation(fields, "hidden_act", "silu", where),
    )
    fields.finish()
    return spec


def to_hf(spec: TransformerSpec) -> dict[str, Any]:
    """Spec → the `config.json` that transformers loads."""
    return size_fields(spec, "mistral", "MistralForCausalLM") | mistral_fields(spec)


def mistral_fields(spec: TransformerSpec) -> dict[str, Any]:
    """The inverse of `read_mistral`, without the sizes."""
    rope = spec.rope or Rope()
    return {
        "rms_norm_eps": spec.norm_eps,
        "hidden_act": activation_name(spec.activation),
        "attention_dropout": 0.0,
        "sliding_window": spec.window(0),
        "rope_theta": rope.theta,
        "rope_parameters": rope_parameters(rope),
    }


HF = Family(("hf", "mistral"), from_hf, to_hf, HF_WEIGHTS, (("gguf", "llama"),), examples=EXAMPLES)
