"""The glm4_moe family (GLM-4.5, https://arxiv.org/abs/2508.06471): Hugging Face's `Glm4MoeForCausalLM`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.models.families.decoders import (
    ATTENTION,
    GATED,
    IGNORABLE,
    LLAMA_NORMS,
    QK_NORMS,
    TINY,
    decoder_rules,
    layer_rules,
    size_fields,
    take_sizes,
)
from bedplate.models.families.experts.expert_weights import expert_rules
from bedplate.models.families.experts.fields import TRAINING, sigmoid_experts, sigmoid_fields
from bedplate.models.families.experts.prediction import COPIES, held_modules, prediction_rules
from bedplate.models.families.family import Family
from bedplate.models.families.fields import HF_BOOKKEEPING, Fields
from bedplate.models.families.rope import rope_parameters, take_rope
from bedplate.models.families.weights import WeightMap, renamed
from bedplate.models.specs.transformer import Rope, TransformerSpec

_ORIGIN = "config.json (glm4_moe)"
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


def from_hf(config: Mapping[str, Any]) -> TransformerSpec:
    """`config.json` of a Glm4MoeForCausalLM → spec."""
    fields = Fields(config, _ORIGIN)
    sizes = take_sizes(fields, context=131_072)
    fields.only("hidden_act", "silu")
    size = fields.whole("moe_intermediate_size", 1408)
    part = sigmoid_experts(fields, size, first_dense=1, scale=1.0, groups=1, groups_chosen=1)
    fields.ignore((*HF_BOOKKEEPING, *TRAINING, "attention_dropout"))
    modules = fields.layers("num_mtp_layers", 0)
    spec = TransformerSpec.from_fields(
        **sizes,
        norm_eps=fields.real("rms_norm_eps", 1e-5),
        rope=take_rope(fields, _ORIGIN, context=sizes["context_length"], fraction=0.5),
        attention_bias=fields.flag("attention_bias", False),
        output_bias=False,
        qk_norm="head" if fields.flag("use_qk_norm", False) else None,
        experts=part,
        prediction_modules=fields.layers("num_nextn_predict_layers", modules),
    )
    fields.finish()
    return spec


def to_hf(spec: TransformerSpec) -> dict[str, Any]:
    """Spec → the `config.json` that transformers loads."""
    return (
        size_fields(spec, "glm4_moe", "Glm4MoeForCausalLM")
        | sigmoid_fields(spec)
        | {
            "rms_norm_eps": spec.norm.eps,
            "hidden_act": "silu",
            "rope_parameters": {"partial_rotary_factor": 1.0} | rope_parameters(spec.position.rope or Rope()),
            "attention_bias": spec.attention.bias,
            "use_qk_norm": spec.attention.qk_norm is not None,
        }
    )


HF = Family(("hf", "glm4_moe"), from_hf, to_hf, WEIGHTS, by_names=held_modules, examples=EXAMPLES)
