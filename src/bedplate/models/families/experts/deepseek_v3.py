"""The deepseek_v3 family (https://arxiv.org/abs/2412.19437): Hugging Face's `DeepseekV3ForCausalLM`."""

from __future__ import annotations

from dataclasses import replace
from operator import itemgetter

from bedplate.models.families.decoders import (
    ATTENTION_BIAS,
    GATED,
    IGNORABLE,
    LLAMA_NORMS,
    SILU,
    TINY,
    decoder_rules,
    layer_rules,
    rms_norm,
)
from bedplate.models.families.experts.expert_weights import expert_rules
from bedplate.models.families.experts.fields import sigmoid_experts
from bedplate.models.families.experts.prediction import COPIES, held_modules, prediction_rules
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import (
    Field,
    Values,
    constant,
    flag,
    ignored,
    layers,
    only,
    optional,
    part,
    size,
    whole,
)
from bedplate.models.families.fields import Fields
from bedplate.models.families.rope import rope_parameters, take_rope
from bedplate.models.families.weights import WeightMap, renamed
from bedplate.models.specs.transformer import LatentAttention, Rope, TransformerSpec

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


def _read_rope(fields: Fields, values: Values) -> Values:
    is_interleaved = fields.flag("rope_interleave", True)
    return {"rope": replace(take_rope(fields, context=values["context_length"]), interleaved=is_interleaved)}


def _rope_fields(flat: Values, spec: TransformerSpec) -> Values:
    rope = flat["rope"] or Rope()
    return {"rope_parameters": rope_parameters(rope), "rope_interleave": rope.interleaved}


def _check_dims(fields: Fields, values: Values) -> Values:
    """Reads what transformers writes beside the latents' sizes, and what follows from them."""
    latent = values["latent"]
    fields.only("head_dim", latent.rope_dim, None)
    fields.only("qk_head_dim", latent.key_dim, None)
    return {"kv_heads": values["heads"], "head_dim": latent.key_dim}


def _dims(flat: Values, spec: TransformerSpec) -> Values:
    assert flat["latent"] is not None
    return {"num_key_value_heads": flat["kv_heads"], "head_dim": flat["latent"].rope_dim}


FIELDS = (
    constant(kind="decoder"),
    size("vocab_size"),
    size("hidden_size"),
    layers("num_hidden_layers", "layers"),
    size("num_attention_heads", "heads"),
    only("num_key_value_heads", itemgetter("heads"), None),
    part(
        "latent",
        LatentAttention,
        optional("q_lora_rank", "q_rank", 1536),
        whole("kv_lora_rank", "kv_rank", 512),
        whole("qk_nope_head_dim", "nope_dim", 128),
        whole("qk_rope_head_dim", "rope_dim", 64),
        whole("v_head_dim", "value_dim", 128),
    ),
    Field(_check_dims, _dims),
    size("intermediate_size", "feedforward_size"),
    whole("max_position_embeddings", "context_length", 4096),
    flag("tie_word_embeddings", "tied_head", False),
    rms_norm(1e-6),
    Field(_read_rope, _rope_fields),
    ATTENTION_BIAS,
    SILU,
    *sigmoid_experts(size=2048, first_dense=3, scale=2.5, groups=8, groups_chosen=4),
    # Where it ran, and what it was trained by.
    ignored("pretraining_tp", "ep_size", "seq_aux", "aux_loss_alpha"),
)

HF = hf_family(
    "deepseek_v3", "DeepseekV3ForCausalLM", FIELDS, WEIGHTS, "deepseek2", by_names=held_modules, examples=EXAMPLES
)
