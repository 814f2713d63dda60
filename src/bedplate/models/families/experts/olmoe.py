"""The olmoe family (https://arxiv.org/abs/2409.02060): Hugging Face's `OlmoeForCausalLM`. The chosen experts' weights
are what the softmax over all gives them; queries and keys are normalised over the whole projection."""

from __future__ import annotations

from bedplate.models.families import gguf_metadata as gguf
from bedplate.models.families.decoders import ATTENTION_BIAS, SILU, rms_norm, sizes, tiny
from bedplate.models.families.experts.parts import AS_DENSE, EXPERT_WEIGHTS, TRAINING, chosen, count, renormalised
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import constant, ignored, only, part
from bedplate.models.families.gguf_family import experts, gguf_family
from bedplate.models.families.rope import rope
from bedplate.models.specs.transformer import Experts

_TINY = tiny(intermediate_size=24, num_experts=6, num_experts_per_tok=2, eos_token_id=2)
EXAMPLES = (_TINY, _TINY | {"num_key_value_heads": 6, "norm_topk_prob": True, "attention_bias": True})
FIELDS = (
    *sizes(context=4096),
    rms_norm(1e-5),
    constant(qk_norm="projection"),
    rope(writes_theta=False),
    ATTENTION_BIAS,
    SILU,
    only("clip_qkv", None, written=True),
    part("experts", Experts, count("num_experts", "num_local_experts"), chosen(8), AS_DENSE, renormalised(False)),
    ignored(*TRAINING),
)
HF = hf_family("olmoe", "OlmoeForCausalLM", FIELDS, "olmoe", weights=EXPERT_WEIGHTS, examples=EXAMPLES)

_ROUTED = experts(as_dense=True, width="feed_forward_length", renormalise=False)
_GGUF_TINY = _TINY | {"num_key_value_heads": 6}
GGUF = gguf_family(
    "olmoe",
    (gguf.SIZES, _ROUTED, gguf.rope(), constant(qk_norm="projection")),
    "olmoe",
    examples=(_GGUF_TINY, _GGUF_TINY | {"num_experts": 4}),
    needs_head=True,
)
