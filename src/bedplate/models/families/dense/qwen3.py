"""The qwen3 family (https://arxiv.org/abs/2505.09388): Hugging Face's `Qwen3ForCausalLM`. Qwen2 without biases, with
normalised queries and keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.models.families.decoders import (
    ATTENTION,
    GATED,
    IGNORABLE,
    LLAMA_NORMS,
    QK_NORMS,
    TINY,
    decoder_rules,
    size_fields,
)
from bedplate.models.families.dense.qwen2 import qwen_fields, read_qwen
from bedplate.models.families.family import Family
from bedplate.models.families.fields import Fields
from bedplate.models.families.weights import WeightMap
from bedplate.models.specs.transformer import TransformerSpec

_ORIGIN = "config.json (qwen3)"

HF_WEIGHTS = WeightMap(decoder_rules(*ATTENTION, *QK_NORMS, *GATED, *LLAMA_NORMS), IGNORABLE)
_YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32}
EXAMPLES = (
    {**TINY, "head_dim": 16, "tie_word_embeddings": True, "rope_parameters": _YARN},
    {**TINY, "head_dim": 8, "num_key_value_heads": 6, "attention_bias": True},
)


def from_hf(config: Mapping[str, Any]) -> TransformerSpec:
    """`config.json` of a Qwen3ForCausalLM → spec."""
    fields = Fields(config, _ORIGIN)
    return read_qwen(fields, _ORIGIN, 128, qk_norm="head", attention_bias=fields.flag("attention_bias", False))


def to_hf(spec: TransformerSpec) -> dict[str, Any]:
    """Spec → the `config.json` that transformers loads."""
    extra_fields = {"attention_bias": spec.attention.bias}
    return size_fields(spec, "qwen3", "Qwen3ForCausalLM") | qwen_fields(spec) | extra_fields


HF = Family(("hf", "qwen3"), from_hf, to_hf, HF_WEIGHTS, (("gguf", "qwen3"),), examples=EXAMPLES)
