"""GGUF's `qwen3moe`: the chosen experts' weights sum to one; queries and keys are normalised head by head."""

from __future__ import annotations

from bedplate.models.families.experts import qwen3_moe
from bedplate.models.families.gguf.experts import experts, mixture

EXAMPLES = (qwen3_moe.EXAMPLES[0], {**qwen3_moe.EXAMPLES[0], "num_key_value_heads": 6, "head_dim": 8, "num_experts": 4})
GGUF = mixture("qwen3moe", "qwen3_moe", EXAMPLES, experts(renormalise=True), qk_norm="head")
