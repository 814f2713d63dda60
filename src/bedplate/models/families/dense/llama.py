"""The llama family (Llama 2 and 3, SmolLM2, TinyLlama …): Hugging Face's `LlamaForCausalLM`."""

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
from bedplate.models.specs.transformer import TransformerSpec

_ORIGIN = "config.json (llama)"

HF_WEIGHTS = WeightMap(decoder_rules(*ATTENTION, *GATED, *LLAMA_NORMS), IGNORABLE)

_LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
EXAMPLES = (
    {**TINY, "tie_word_embeddings": True, "rope_parameters": _LLAMA3},
    {**TINY, "num_key_value_heads": 6, "head_dim": 16, "attention_bias": True, "mlp_bias": True},
)


def from_hf(config: Mapping[str, Any]) -> TransformerSpec:
    """`config.json` of a LlamaForCausalLM → spec."""
    fields = Fields(config, _ORIGIN)
    sizes = take_sizes(fields)
    fields.only("rope_interleaved", False)
    fields.ignore((*HF_BOOKKEEPING, "attention_dropout", "pretraining_tp", "is_llama_config", "mlp_dropout"))
    spec = TransformerSpec.from_fields(
        **sizes,
        **take_plain(fields, _ORIGIN, sizes["context_length"], eps=1e-6),
        attention_bias=fields.flag("attention_bias", False),
        feedforward_bias=fields.flag("mlp_bias", False),
    )
    fields.finish()
    return spec


def to_hf(spec: TransformerSpec) -> dict[str, Any]:
    """Spec → the `config.json` that transformers loads."""
    return size_fields(spec, "llama", "LlamaForCausalLM") | {
        **plain_fields(spec),
        "attention_bias": spec.attention.bias,
        "mlp_bias": spec.feedforward.bias,
    }


HF = Family(("hf", "llama"), from_hf, to_hf, HF_WEIGHTS, (("gguf", "llama"),), examples=EXAMPLES)
