"""GGUF's `qwen2`."""

from __future__ import annotations

from bedplate.models.families.dense import qwen2
from bedplate.models.families.gguf.metadata import BIASES, SIZES, rope
from bedplate.models.families.gguf.tensors import ATTENTION, GATED, IGNORABLE, PRE_NORMS, decoder_rules
from bedplate.models.families.gguf.writing import gguf_family
from bedplate.models.families.weights import WeightMap

WEIGHTS = WeightMap(decoder_rules(*ATTENTION, *GATED, *PRE_NORMS), IGNORABLE)
EXAMPLES = ({**qwen2.EXAMPLES[0], "num_key_value_heads": 3}, {**qwen2.EXAMPLES[1], "use_sliding_window": False})
GGUF = gguf_family("qwen2", (SIZES, BIASES, rope()), WEIGHTS, "qwen2", examples=EXAMPLES)
