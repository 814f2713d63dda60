"""The granite family (https://arxiv.org/abs/2508.11085): Hugging Face's `GraniteForCausalLM`. Llama with factors on
embeddings, scores, residuals and logits.
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
    decoder_rules,
    plain_fields,
    size_fields,
    take_plain,
    take_sizes,
)
from bedplate.models.families.family import Family
from bedplate.models.families.fields import HF_BOOKKEEPING, Fields
from bedplate.models.families.weights import WeightMap
from bedplate.models.specs.transformer import Scales, TransformerSpec

_ORIGIN = "config.json (granite)"

HF_WEIGHTS = WeightMap(decoder_rules(*ATTENTION, *GATED, *LLAMA_NORMS), IGNORABLE)
EXAMPLES = (
    {
        **TINY,
        "embedding_multiplier": 12.0,
        "logits_scaling": 6.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.2,
        "tie_word_embeddings": True,
    },
    {**TINY, "num_key_value_heads": 6, "attention_bias": True, "mlp_bias": True, "attention_multiplier": 0.125},
)


def from_hf(config: Mapping[str, Any]) -> TransformerSpec:
    """`config.json` of a GraniteForCausalLM → spec."""
    fields = Fields(config, _ORIGIN)
    sizes = take_sizes(fields)
    fields.ignore((*HF_BOOKKEEPING, "attention_dropout"))
    spec = TransformerSpec.from_fields(
        **sizes,
        **take_plain(fields, _ORIGIN, sizes["context_length"], eps=1e-6),
        attention_bias=fields.flag("attention_bias", False),
        feedforward_bias=fields.flag("mlp_bias", False),
        scales=take_multipliers(fields),
    )
    fields.finish()
    return spec


def take_multipliers(fields: Fields) -> Scales:
    """Granite's factors; logits are divided by theirs."""
    return Scales(
        embedding=fields.real("embedding_multiplier", 1.0),
        attention=fields.real("attention_multiplier", 1.0),
        head=1.0 / fields.real("logits_scaling", 1.0),
        residual=fields.real("residual_multiplier", 1.0),
    )


def multiplier_fields(spec: TransformerSpec) -> dict[str, Any]:
    """The inverse of `take_multipliers`."""
    scales = spec.scales or Scales()
    return {
        "embedding_multiplier": scales.embedding,
        "attention_multiplier": spec.attention.head_dim**-0.5 if scales.attention is None else scales.attention,
        "logits_scaling": round(1.0 / scales.head, 9),
        "residual_multiplier": scales.residual,
    }


def to_hf(spec: TransformerSpec) -> dict[str, Any]:
    """Spec → the `config.json` that transformers loads."""
    return (
        size_fields(spec, "granite", "GraniteForCausalLM")
        | {
            **plain_fields(spec),
            "attention_bias": spec.attention.bias,
            "mlp_bias": spec.feedforward.bias,
        }
        | multiplier_fields(spec)
    )


HF = Family(("hf", "granite"), from_hf, to_hf, HF_WEIGHTS, (("gguf", "granite"),), examples=EXAMPLES)
