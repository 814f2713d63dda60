"""GGUF's `llama` (Llama 1 to 3, Mistral, SmolLM2, Mixtral …): rows of queries and keys stored for interleaved rotary
pairs, and Llama-3's scaling of frequencies as a tensor of divisors. Where there are experts, the chosen ones' weights
sum to one."""

from __future__ import annotations

from dataclasses import replace

from bedplate.models.families.dense import llama
from bedplate.models.families.experts import mixtral
from bedplate.models.families.family import Family
from bedplate.models.families.gguf.experts import experts
from bedplate.models.families.gguf.metadata import BIASES, SIZES, rope
from bedplate.models.families.gguf.tensors import ATTENTION, GATED, PRE_NORMS, ROUTER, decoder_weights, expert_rules
from bedplate.models.families.gguf.writing import gguf_family
from bedplate.models.specs.transformer import TransformerSpec

WEIGHTS = decoder_weights(*ATTENTION, *GATED, *PRE_NORMS, *ROUTER, turned=True, more=expert_rules())
EXAMPLES = (
    # heads wide enough that Llama-3's scaling shows in several pairs
    {**llama.EXAMPLES[0], "head_dim": 64, "num_attention_heads": 2, "num_key_value_heads": 1},
    llama.EXAMPLES[1],
)
ROWS = (SIZES, BIASES, experts(as_dense=True, width="feed_forward_length"), rope())


def _sibling(spec: TransformerSpec) -> Family | None:
    return None if spec.experts is None else MIXTRAL


GGUF = gguf_family("llama", ROWS, WEIGHTS, "llama", "mistral", "mixtral", examples=EXAMPLES, sibling=_sibling)
MIXTRAL = replace(
    GGUF,
    partners=(("hf", "mixtral"),),
    examples=(mixtral.EXAMPLES[0], {**mixtral.EXAMPLES[1], "sliding_window": None}),
    sibling=None,
)
