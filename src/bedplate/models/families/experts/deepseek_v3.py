"""The deepseek_v3 family (https://arxiv.org/abs/2412.19437): Hugging Face's `DeepseekV3ForCausalLM`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bedplate.models.families.decoders import (
    GATED,
    IGNORABLE,
    LLAMA_NORMS,
    TINY,
    decoder_rules,
    layer_rules,
    size_fields,
)
from bedplate.models.families.experts.expert_weights import expert_rules
from bedplate.models.families.experts.fields import TRAINING, sigmoid_experts, sigmoid_fields
from bedplate.models.families.experts.prediction import COPIES, held_modules, prediction_rules
from bedplate.models.families.family import Family
from bedplate.models.families.fields import HF_BOOKKEEPING, Fields
from bedplate.models.families.rope import rope_parameters, take_rope
from bedplate.models.families.weights import WeightMap, renamed
from bedplate.models.specs.transformer import LatentAttention, Rope, TransformerSpec

_ORIGIN = "config.json (deepseek_v3)"
_MLP = "model.layers.{i}.mlp"
_ATTENTION = tuple(
    (f"attention.{ours}", f"self_attn.{theirs}")
    for ours, theirs in (
        ("q", "q_proj"),
        ("q_down", "q_a_proj"),
        ("q_norm", "q_a_layernorm"),
        ("q_up", "q_b_proj"),
        ("kv_down", "kv_a_proj_with_mqa"),
        ("kv_norm", "kv_a_layernorm"),
        ("kv_up", "kv_b_proj"),
        ("o", "o_proj"),
    )
)
_SHARED = tuple((f"feedforward.shared.{name}", f"mlp.shared_experts.{name}_proj") for name in ("gate", "up", "down"))
_LAYER = (
    *layer_rules(*LLAMA_NORMS, *_ATTENTION, *GATED, *_SHARED, prefix="model.layers.{i}."),
    renamed("layers.{i}.feedforward.router.weight", f"{_MLP}.gate.weight"),
    renamed("layers.{i}.feedforward.router.selection_bias", f"{_MLP}.gate.e_score_correction_bias"),
    *expert_rules(_MLP),
)
WEIGHTS = WeightMap(rules=(*decoder_rules(), *_LAYER, *prediction_rules(_LAYER)), ignorable=(*IGNORABLE, *COPIES))
_TINY = {
    **TINY,
    "num_key_value_heads": 6,
    "q_lora_rank": 20,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "n_group": 4,
    "topk_group": 2,
}
EXAMPLES = (
    _TINY
    | {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10_000.0,
            "factor": 8.0,
            "original_max_position_embeddings": 16,
            "mscale": 1.0,
            "mscale_all_dim": 0.8,
        }
    },
    _TINY | {"q_lora_rank": None, "rope_interleave": False, "attention_bias": True, "n_group": 1, "topk_group": 1},
)


def from_hf(config: Mapping[str, Any]) -> TransformerSpec:
    """`config.json` of a DeepseekV3ForCausalLM → spec."""
    fields = Fields(config, _ORIGIN)
    heads, context = fields.size("num_attention_heads"), fields.whole("max_position_embeddings", 4096)
    fields.only("hidden_act", "silu")
    fields.only("num_key_value_heads", heads, None)
    size = fields.whole("moe_intermediate_size", 2048)
    part = sigmoid_experts(fields, size, first_dense=3, scale=2.5, groups=8, groups_chosen=4)
    latent, turned = _latent(fields), fields.flag("rope_interleave", True)
    # Where it ran, and what it was trained by.
    fields.ignore((*HF_BOOKKEEPING, *TRAINING, "attention_dropout", "pretraining_tp", "ep_size"))
    fields.ignore(("seq_aux", "aux_loss_alpha"))
    modules = fields.layers("num_mtp_layers", 0)
    spec = TransformerSpec.from_fields(
        kind="decoder",
        vocab_size=fields.size("vocab_size"),
        hidden_size=fields.size("hidden_size"),
        layers=fields.layers("num_hidden_layers"),
        heads=heads,
        kv_heads=heads,
        head_dim=latent.key_dim,
        feedforward_size=fields.size("intermediate_size"),
        context_length=context,
        tied_head=fields.flag("tie_word_embeddings", False),
        norm_eps=fields.real("rms_norm_eps", 1e-6),
        rope=replace(take_rope(fields, _ORIGIN, context=context), interleaved=turned),
        attention_bias=fields.flag("attention_bias", False),
        latent=latent,
        experts=part,
        prediction_modules=fields.layers("num_nextn_predict_layers", modules),
    )
    fields.finish()
    return spec


def _latent(fields: Fields) -> LatentAttention:
    rank = fields.optional("q_lora_rank", 1536)
    part = LatentAttention(
        kv_rank=fields.whole("kv_lora_rank", 512),
        nope_dim=fields.whole("qk_nope_head_dim", 128),
        rope_dim=fields.whole("qk_rope_head_dim", 64),
        value_dim=fields.whole("v_head_dim", 128),
        q_rank=rank,
    )
    # What transformers writes beside them, which follows from them.
    fields.only("head_dim", part.rope_dim, None)
    fields.only("qk_head_dim", part.key_dim, None)
    return part


def to_hf(spec: TransformerSpec) -> dict[str, Any]:
    """Spec → the `config.json` that transformers loads."""
    part, rope = spec.attention.latent, spec.position.rope or Rope()
    assert part is not None
    return (
        size_fields(spec, "deepseek_v3", "DeepseekV3ForCausalLM")
        | sigmoid_fields(spec)
        | {
            "head_dim": part.rope_dim,
            "rms_norm_eps": spec.norm.eps,
            "hidden_act": "silu",
            "rope_parameters": rope_parameters(rope),
            "rope_interleave": rope.interleaved,
            "attention_bias": spec.attention.bias,
            "q_lora_rank": part.q_rank,
            "kv_lora_rank": part.kv_rank,
            "qk_nope_head_dim": part.nope_dim,
            "qk_rope_head_dim": part.rope_dim,
            "v_head_dim": part.value_dim,
        }
    )


HF = Family(
    ("hf", "deepseek_v3"),
    from_hf,
    to_hf,
    WEIGHTS,
    (("gguf", "deepseek2"),),
    by_names=held_modules,
    examples=EXAMPLES,
)
