"""GGUF's `qwen2`."""

from __future__ import annotations

from bedplate.models.families.dense import qwen2
from bedplate.models.families.gguf.metadata import BIASES, SIZES, rope
from bedplate.models.families.gguf.tensors import ATTENTION, GATED, PRE_NORMS, decoder_weights
from bedplate.models.families.gguf.writing import gguf_family

WEIGHTS = decoder_weights(*ATTENTION, *GATED, *PRE_NORMS)
EXAMPLES = ({**qwen2.EXAMPLES[0], "num_key_value_heads": 3}, {**qwen2.EXAMPLES[1], "use_sliding_window": False})
GGUF = gguf_family("qwen2", (SIZES, BIASES, rope()), WEIGHTS, "qwen2", examples=EXAMPLES)
