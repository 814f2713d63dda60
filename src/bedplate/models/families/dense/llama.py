"""The llama family (Llama 2 and 3, SmolLM2, TinyLlama …): Hugging Face's `LlamaForCausalLM`.

GGUF's `llama` is Mistral and Mixtral as well: rows of queries and keys stored for interleaved rotary pairs, Llama-3's
scaling of frequencies as a tensor of divisors. Where there are experts, the chosen ones' weights sum to one.
"""

from __future__ import annotations

from dataclasses import replace

from bedplate.models.families import gguf_metadata as gguf
from bedplate.models.families.decoders import ATTENTION_BIAS, MLP_BIAS, plain, sizes, tiny
from bedplate.models.families.experts import mixtral
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import ignored, only
from bedplate.models.families.gguf_family import decoder_weights, experts, gguf_family

_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
EXAMPLES = (
    tiny(tie_word_embeddings=True, rope_parameters=_LLAMA3),
    tiny(num_key_value_heads=6, head_dim=16, attention_bias=True, mlp_bias=True),
)
FIELDS = (
    *sizes(),
    *plain(eps=1e-6),
    ATTENTION_BIAS,
    MLP_BIAS,
    only("rope_interleaved", False),
    ignored("pretraining_tp", "is_llama_config", "mlp_dropout"),
)
HF = hf_family("llama", "LlamaForCausalLM", FIELDS, "llama", examples=EXAMPLES)

GGUF = gguf_family(
    "llama",
    (gguf.SIZES, gguf.BIASES, experts(as_dense=True, width="feed_forward_length"), gguf.rope()),
    *("llama", "mistral", "mixtral"),
    weights=decoder_weights(turned=True),
    # Heads wide enough that Llama-3's scaling shows in several pairs.
    examples=(EXAMPLES[0] | {"head_dim": 64, "num_attention_heads": 2, "num_key_value_heads": 1}, EXAMPLES[1]),
    sibling=lambda spec: None if spec.experts is None else MIXTRAL,
)
MIXTRAL = replace(
    GGUF,
    partners=(("hf", "mixtral"),),
    examples=(mixtral.EXAMPLES[0], mixtral.EXAMPLES[1] | {"sliding_window": None}),
    sibling=None,
)
