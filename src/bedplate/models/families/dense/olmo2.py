"""The olmo2 family (https://arxiv.org/abs/2501.00656): Hugging Face's `Olmo2ForCausalLM`. Norms of what attention and
feed-forward give, before it is added; queries and keys normalised over the whole projection.
"""

from __future__ import annotations

from bedplate.models.families import decoders as hf
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import constant

BRANCH_NORMS = (("attention_norm", "post_attention_layernorm"), ("feedforward_norm", "post_feedforward_layernorm"))
WEIGHTS = hf.decoder_weights(*hf.ATTENTION, *hf.QK_NORMS, *hf.GATED, *BRANCH_NORMS)
EXAMPLES = (
    hf.tiny(),
    hf.tiny(num_key_value_heads=6, attention_bias=True, tie_word_embeddings=True, num_hidden_layers=2),
)
BRANCH = constant(norm_placement="branch", qk_norm="projection")
FIELDS = (*hf.sizes(), *hf.plain(eps=1e-5), BRANCH, hf.ATTENTION_BIAS)

HF = hf_family("olmo2", "Olmo2ForCausalLM", FIELDS, "olmo2", weights=WEIGHTS, examples=EXAMPLES)
