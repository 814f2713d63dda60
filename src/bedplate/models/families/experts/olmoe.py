"""The olmoe family (https://arxiv.org/abs/2409.02060): Hugging Face's `OlmoeForCausalLM`."""

from __future__ import annotations

from bedplate.models.families.decoders import (
    ATTENTION,
    ATTENTION_BIAS,
    LLAMA_NORMS,
    QK_NORMS,
    SILU,
    TINY,
    decoder_weights,
    rms_norm,
    sizes,
)
from bedplate.models.families.experts.expert_weights import expert_rules
from bedplate.models.families.experts.fields import AS_DENSE, TRAINING, chosen, count, renormalised
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import constant, ignored, only, part
from bedplate.models.families.rope import rope
from bedplate.models.families.weights import renamed
from bedplate.models.specs.transformer import Experts

_MLP = "model.layers.{i}.mlp"

WEIGHTS = decoder_weights(
    *LLAMA_NORMS,
    *ATTENTION,
    *QK_NORMS,
    more=(renamed("layers.{i}.feedforward.router.weight", f"{_MLP}.gate.weight"), *expert_rules(_MLP)),
)
_TINY = {**TINY, "intermediate_size": 24, "num_experts": 6, "num_experts_per_tok": 2, "eos_token_id": 2}
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

HF = hf_family("olmoe", "OlmoeForCausalLM", FIELDS, WEIGHTS, "olmoe", examples=EXAMPLES)
