"""GGUF's `olmoe`: the chosen experts' weights are what the softmax over all gives them; queries and keys are normalised
over the whole projection."""

from __future__ import annotations

from bedplate.models.families.experts import olmoe
from bedplate.models.families.gguf.experts import experts, mixture

EXAMPLES = (
    {**olmoe.EXAMPLES[0], "num_key_value_heads": 6},
    {**olmoe.EXAMPLES[0], "num_key_value_heads": 6, "num_experts": 4},
)
GGUF = mixture(
    *("olmoe", "olmoe", EXAMPLES),
    experts(as_dense=True, width="feed_forward_length", renormalise=False),
    needs_head=True,
    qk_norm="projection",
)
