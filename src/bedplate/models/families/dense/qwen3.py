"""The qwen3 family (https://arxiv.org/abs/2505.09388): Hugging Face's `Qwen3ForCausalLM`. Qwen2 without biases, with
normalised queries and keys.
"""

from __future__ import annotations

from bedplate.models.families import gguf_metadata as gguf
from bedplate.models.families.decoders import ATTENTION_BIAS, tiny
from bedplate.models.families.dense.qwen2 import qwen_fields
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import constant
from bedplate.models.families.gguf_family import gguf_family

_YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32}
EXAMPLES = (
    tiny(head_dim=16, tie_word_embeddings=True, rope_parameters=_YARN),
    tiny(head_dim=8, num_key_value_heads=6, attention_bias=True),
)
FIELDS = (*qwen_fields(head_dim=128), constant(qk_norm="head"), ATTENTION_BIAS)
ROWS = (gguf.SIZES, gguf.BIASES, constant(qk_norm="head"), gguf.rope())

HF = hf_family("qwen3", "Qwen3ForCausalLM", FIELDS, "qwen3", examples=EXAMPLES)
GGUF = gguf_family("qwen3", ROWS, "qwen3", examples=(EXAMPLES[0], EXAMPLES[1] | {"attention_bias": False}))
