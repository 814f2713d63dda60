"""The glm4_moe family (GLM-4.5, https://arxiv.org/abs/2508.06471): Hugging Face's `Glm4MoeForCausalLM`."""

from __future__ import annotations

from bedplate.models.families.decoders import (
    ATTENTION,
    ATTENTION_BIAS,
    GATED,
    IGNORABLE,
    LLAMA_NORMS,
    QK_NORMS,
    SILU,
    TINY,
    decoder_rules,
    layer_rules,
    rms_norm,
    sizes,
)
from bedplate.models.families.experts.expert_weights import expert_rules
from bedplate.models.families.experts.fields import sigmoid_experts
from bedplate.models.families.experts.prediction import COPIES, held_modules, prediction_rules
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import constant, converted
from bedplate.models.families.rope import rope
from bedplate.models.families.weights import WeightMap, renamed

_MLP = "model.layers.{i}.mlp"
_SHARED = tuple((f"feedforward.shared.{name}", f"mlp.shared_experts.{name}_proj") for name in ("gate", "up", "down"))
_LAYER = (
    *layer_rules(*LLAMA_NORMS, *ATTENTION, *QK_NORMS, *GATED, *_SHARED, prefix="model.layers.{i}."),
    renamed("layers.{i}.feedforward.router.weight", f"{_MLP}.gate.weight"),
    renamed("layers.{i}.feedforward.router.selection_bias", f"{_MLP}.gate.e_score_correction_bias"),
    *expert_rules(_MLP),
)
WEIGHTS = WeightMap(rules=(*decoder_rules(), *_LAYER, *prediction_rules(_LAYER)), ignorable=(*IGNORABLE, *COPIES))
_TINY = {
    **TINY,
    "head_dim": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "use_qk_norm": True,
}
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

HF = hf_family("glm4_moe", "Glm4MoeForCausalLM", FIELDS, WEIGHTS, by_names=held_modules, examples=EXAMPLES)
