"""The qwen3 family (https://arxiv.org/abs/2505.09388): Hugging Face's `Qwen3ForCausalLM`. Qwen2 without biases, with
normalised queries and keys.
"""

from __future__ import annotations

from bedplate.models.families.decoders import (
    ATTENTION,
    ATTENTION_BIAS,
    GATED,
    LLAMA_NORMS,
    QK_NORMS,
    TINY,
    decoder_weights,
)
from bedplate.models.families.dense.qwen2 import qwen_fields
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import constant

HF_WEIGHTS = decoder_weights(*ATTENTION, *QK_NORMS, *GATED, *LLAMA_NORMS)
_YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32}
EXAMPLES = (
    {**TINY, "head_dim": 16, "tie_word_embeddings": True, "rope_parameters": _YARN},
    {**TINY, "head_dim": 8, "num_key_value_heads": 6, "attention_bias": True},
)
FIELDS = (*qwen_fields(head_dim=128), constant(qk_norm="head"), ATTENTION_BIAS)

HF = hf_family("qwen3", "Qwen3ForCausalLM", FIELDS, HF_WEIGHTS, "qwen3", examples=EXAMPLES)
