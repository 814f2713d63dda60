"""The llama family (Llama 2 and 3, SmolLM2, TinyLlama …): Hugging Face's `LlamaForCausalLM`."""

from __future__ import annotations

from typing import Any

from bedplate.models.families.decoders import ATTENTION_BIAS, LLAMA_WEIGHTS, MLP_BIAS, TINY, plain, sizes
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import ignored, only

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
FIELDS = (
    *sizes(),
    *plain(eps=1e-6),
    ATTENTION_BIAS,
    MLP_BIAS,
    only("rope_interleaved", False),
    ignored("pretraining_tp", "is_llama_config", "mlp_dropout"),
)

HF = hf_family("llama", "LlamaForCausalLM", FIELDS, LLAMA_WEIGHTS, "llama", examples=EXAMPLES)
