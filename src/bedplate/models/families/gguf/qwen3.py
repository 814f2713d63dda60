"""GGUF's `qwen3`."""

from __future__ import annotations

from bedplate.models.families.dense import qwen3
from bedplate.models.families.field_map import constant
from bedplate.models.families.gguf.metadata import BIASES, SIZES, rope
from bedplate.models.families.gguf.tensors import ATTENTION, GATED, PRE_NORMS, QK_NORMS, decoder_weights
from bedplate.models.families.gguf.writing import gguf_family

WEIGHTS = decoder_weights(*ATTENTION, *QK_NORMS, *GATED, *PRE_NORMS)
EXAMPLES = (qwen3.EXAMPLES[0], {**qwen3.EXAMPLES[1], "attention_bias": False})
ROWS = (SIZES, BIASES, constant(qk_norm="head"), rope())

GGUF = gguf_family("qwen3", ROWS, WEIGHTS, "qwen3", examples=EXAMPLES)
