"""The mistral family (https://arxiv.org/abs/2310.06825): Hugging Face's `MistralForCausalLM`. Llama, every layer with
one window, where it has any. Its GGUF files are llama's.
"""

from __future__ import annotations

from bedplate.models.families.decoders import one_window, plain, sizes, tiny
from bedplate.models.families.family import hf_family

EXAMPLES = (
    tiny(sliding_window=7),
    tiny(head_dim=16, num_key_value_heads=6, sliding_window=None, tie_word_embeddings=True),
)
FIELDS = (*sizes(context=131_072), *plain(eps=1e-6), one_window(4096))

HF = hf_family("mistral", "MistralForCausalLM", FIELDS, "llama", examples=EXAMPLES)
