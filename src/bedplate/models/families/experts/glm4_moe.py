"""The glm4_moe family (GLM-4.5, https://arxiv.org/abs/2508.06471): Hugging Face's `Glm4MoeForCausalLM`."""

from __future__ import annotations

from bedplate.models.families.decoders import ATTENTION, ATTENTION_BIAS, QK_NORMS, SILU, rms_norm, sizes, tiny
from bedplate.models.families.experts.parts import held_modules, predicting_weights, sigmoid_experts
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import constant, converted
from bedplate.models.families.rope import rope

_TINY = tiny(head_dim=16, n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=24, use_qk_norm=True)
EXAMPLES = (
    _TINY | {"n_shared_experts": 2, "attention_bias": True, "routed_scaling_factor": 1.8},
    _TINY | {"use_qk_norm": False, "n_group": 4, "topk_group": 2, "first_k_dense_replace": 2, "norm_topk_prob": False},
)
_QK_NORM = converted(
    "use_qk_norm",
    "qk_norm",
    lambda fields, name, _: "head" if fields.flag(name, False) else None,
    lambda norm: norm is not None,
)
FIELDS = (
    *sizes(context=131_072),
    rms_norm(1e-5),
    rope(fraction=0.5, writes_theta=False, writes_fraction=True),
    ATTENTION_BIAS,
    constant(output_bias=False),
    _QK_NORM,
    SILU,
    *sigmoid_experts(size=1408, first_dense=1, scale=1.0, groups=1, groups_chosen=1),
)

HF = hf_family(
    "glm4_moe",
    "Glm4MoeForCausalLM",
    FIELDS,
    weights=predicting_weights(*ATTENTION, *QK_NORMS),
    by_names=held_modules,
    examples=EXAMPLES,
)
