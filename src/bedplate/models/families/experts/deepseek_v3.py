"""The deepseek_v3 family (https://arxiv.org/abs/2412.19437): Hugging Face's `DeepseekV3ForCausalLM`.

GGUF's `deepseek2` is DeepSeek-V2, V3 and R1: its files hold the product that makes keys (turned) and the one that makes
values apart, as attention over latents uses them; older ones hold both as one.
"""

from __future__ import annotations

from dataclasses import replace
from operator import itemgetter
from typing import Any

from bedplate.core.errors import CheckpointError, UnsupportedModelError
from bedplate.models.families import field_map as row
from bedplate.models.families import gguf_family as gguf_files
from bedplate.models.families import gguf_metadata as gguf
from bedplate.models.families.decoders import ATTENTION_BIAS, SILU, rms_norm, tiny
from bedplate.models.families.experts.parts import held_modules, predicting_weights, sigmoid_experts
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import Field, Values
from bedplate.models.families.fields import Fields
from bedplate.models.families.rope import rope_parameters, take_rope
from bedplate.models.families.weights import Rule, Tensors, renamed
from bedplate.models.specs.parts import LatentAttention, Scoring
from bedplate.models.specs.position import YarnScaling
from bedplate.models.specs.transformer import Experts, Rope, TransformerSpec

_ATTENTION = (
    ("q", "q_proj", "q"),
    ("q_down", "q_a_proj", "q_a"),
    ("q_norm", "q_a_layernorm", "q_a_norm"),
    ("q_up", "q_b_proj", "q_b"),
    ("kv_down", "kv_a_proj_with_mqa", "kv_a_mqa"),
    ("kv_norm", "kv_a_layernorm", "kv_a_norm"),
    ("kv_up", "kv_b_proj", "kv_b"),
    ("o", "o_proj", "output"),
)
"""Our names of attention's parts, Hugging Face's and GGUF's."""
WEIGHTS = predicting_weights(*((f"attention.{ours}", f"self_attn.{theirs}") for ours, theirs, _ in _ATTENTION))
_TINY = (
    tiny()
    | {"num_key_value_heads": 6, "q_lora_rank": 20, "kv_lora_rank": 16, "qk_nope_head_dim": 10}
    | {"qk_rope_head_dim": 8, "v_head_dim": 12, "n_routed_experts": 8, "num_experts_per_tok": 3}
    | {"moe_intermediate_size": 24, "first_k_dense_replace": 1, "n_group": 4, "topk_group": 2}
)
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
    row.constant(kind="decoder"),
    row.size("vocab_size"),
    row.size("hidden_size"),
    row.layers("num_hidden_layers", "layers"),
    row.size("num_attention_heads", "heads"),
    row.only("num_key_value_heads", itemgetter("heads"), None),
    row.part(
        "latent",
        LatentAttention,
        row.optional("q_lora_rank", "q_rank", 1536),
        row.whole("kv_lora_rank", "kv_rank", 512),
        row.whole("qk_nope_head_dim", "nope_dim", 128),
        row.whole("qk_rope_head_dim", "rope_dim", 64),
        row.whole("v_head_dim", "value_dim", 128),
    ),
    Field(_check_dims, _dims),
    row.size("intermediate_size", "feedforward_size"),
    row.whole("max_position_embeddings", "context_length", 4096),
    row.flag("tie_word_embeddings", "tied_head", False),
    rms_norm(1e-6),
    Field(_read_rope, _rope_fields),
    ATTENTION_BIAS,
    SILU,
    *sigmoid_experts(size=2048, first_dense=3, scale=2.5, groups=8, groups_chosen=4),
    # Where it ran, and what it was trained by.
    row.ignored("pretraining_tp", "ep_size", "seq_aux", "aux_loss_alpha"),
)
HF = hf_family(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    FIELDS,
    "deepseek2",
    weights=WEIGHTS,
    by_names=held_modules,
    examples=EXAMPLES,
)

# --- GGUF

_EPS = 1e-6
_LITE = (26, 27)
"""Layers of the models whose queries llama.cpp does not expect to come from a latent."""
_SCORINGS: dict[int, Scoring] = {1: "softmax", 2: "sigmoid"}
_LOG_MULTIPLIER = "rope.scaling.yarn_log_multiplier"
_EXPERT_KEYS = {
    "expert_count": "count",
    "expert_used_count": "per_token",
    gguf_files.WIDTH: "feedforward_size",
    "leading_dense_block_count": "first_dense",
    "expert_weights_norm": "renormalise",
    "expert_weights_scale": "scale",
    "expert_group_count": "groups",
    "expert_group_used_count": "groups_chosen",
}


def _split_heads(tensors: Tensors, spec: TransformerSpec) -> Tensors:
    """What makes keys and values of a latent, by heads: the former turned [H, C, N], the latter [H, V, C]."""
    part = _latent(spec)
    keys, values = tensors[0].unflatten(0, (spec.attention.heads, -1)).split((part.nope_dim, part.value_dim), dim=1)
    return [keys.transpose(1, 2).contiguous(), values.contiguous()]


def _together(tensors: Tensors, spec: TransformerSpec) -> Tensors:
    """The inverse of `_apart`."""
    keys, values = tensors
    part = _latent(spec)
    sizes = (spec.attention.heads, part.kv_rank, part.nope_dim), (spec.attention.heads, part.value_dim, part.kv_rank)
    if (keys.shape, values.shape) != sizes:
        raise CheckpointError(f"{list(sizes[0])} and {list(sizes[1])} are wanted")
    whole = values.new_empty((spec.attention.heads, part.nope_dim + part.value_dim, part.kv_rank))
    whole[:, : part.nope_dim], whole[:, part.nope_dim :] = keys.transpose(1, 2), values
    return [whole.flatten(0, 1)]


_KV_UP = "layers.{i}.attention.kv_up.weight"
GGUF_WEIGHTS = gguf_files.decoder_weights(
    *((f"attention.{ours}", f"attn_{theirs}") for ours, _, theirs in _ATTENTION if ours != "kv_up"),
    *gguf_files.GATED,
    *((f"feedforward.shared.{name}", f"ffn_{name}_shexp") for name in ("gate", "up", "down")),
    ("feedforward.router", "ffn_gate_inp"),
    more=(
        Rule((_KV_UP,), ("blk.{i}.attn_k_b.weight", "blk.{i}.attn_v_b.weight"), _split_heads, _together),
        renamed(_KV_UP, "blk.{i}.attn_kv_b.weight"),
        renamed("layers.{i}.feedforward.router.selection_bias", "blk.{i}.exp_probs_b.bias"),
        *gguf_files.expert_rules(),
    ),
)


def _read_metadata(fields: gguf.Metadata, values: Values) -> Values:
    latent = _take_latent(fields)
    sizes = gguf.take_sizes(fields, values)
    Fields({"attention.layer_norm_rms_epsilon": sizes["norm_eps"]}, "GGUF metadata (deepseek2)").only(
        "attention.layer_norm_rms_epsilon", _EPS
    )
    rope = gguf.take_rope(fields, latent.rope_dim, fields.tables)
    multiplier = fields.pop(_LOG_MULTIPLIER)
    if isinstance(rope.scaling, YarnScaling):
        weight = gguf.decimal(10 * float(multiplier or 0.0))
        if not weight:
            raise UnsupportedModelError(f"{fields.origin}: YaRN without {_LOG_MULTIPLIER} is not supported")
        rope = replace(rope, scaling=replace(rope.scaling, scale=weight, scale_all=weight))
    return sizes | {
        "kv_heads": sizes["heads"],
        "head_dim": latent.key_dim,
        "rope": replace(rope, interleaved=True),
        "latent": latent,
        "experts": _take_experts(fields, sizes["layers"]),
    }


def _take_latent(fields: gguf.Metadata) -> LatentAttention:
    """The sizes of attention: in files with keys and values apart as one head over latents, with the others' beside."""
    rank, turned = fields.size("attention.kv_lora_rank"), fields.size("rope.dimension_count")
    key, value = fields.pop("attention.key_length_mla"), fields.pop("attention.value_length_mla")
    fields.ignore(("attention.head_count_kv",))  # it says which of the two layouts it is
    if key is None:
        key, value = fields.need("attention.key_length"), fields.need("attention.value_length")
    else:
        fields.only("attention.key_length", rank + turned)
        fields.only("attention.value_length", rank)
    queries = fields.pop("attention.q_lora_rank")
    return LatentAttention(rank, int(key) - turned, turned, int(value), None if queries is None else int(queries))


def _take_experts(fields: gguf.Metadata, layers: int) -> Experts | None:
    gating, shared = fields.whole("expert_gating_func") or 1, fields.whole("expert_shared_count") or 0
    Fields({"expert_gating_func": gating}, fields.origin).only("expert_gating_func", *_SCORINGS)
    first, scale = fields.whole("leading_dense_block_count") or 0, fields.pop("expert_weights_scale")
    groups, chosen = (fields.whole(name) or 1 for name in ("expert_group_count", "expert_group_used_count"))
    part = gguf_files.take_experts(
        fields,
        first_dense=first,
        scoring=_SCORINGS[gating],
        selection_bias=any(f"blk.{layer}.exp_probs_b.bias" in fields.names for layer in range(layers)),
        renormalise=fields.flag("expert_weights_norm", False),
        scale=gguf.decimal(scale) if scale else 1.0,
        groups=groups,
        groups_chosen=chosen,
    )
    return None if part is None else replace(part, shared_size=shared * part.feedforward_size)


def _latent(spec: TransformerSpec) -> LatentAttention:
    if spec.attention.latent is None:
        raise UnsupportedModelError("GGUF's deepseek2 is for latent attention, which this model does not have")
    return spec.attention.latent


def _metadata_of(flat: Values, spec: TransformerSpec) -> Values:
    part, rope, experts = _latent(spec), spec.position.rope or Rope(), spec.experts
    if part.q_rank is None and spec.layers not in _LITE:
        raise UnsupportedModelError(f"GGUF's deepseek2 needs q_rank in a model of {spec.layers} layers; it is None")
    scaling, weight = rope.scaling, None
    if isinstance(scaling, YarnScaling):
        scaling, weight = replace(scaling, scale=None, scale_all=None), scaling.scale_all
    mla_keys: dict[str, Any] = {
        "attention.head_count_kv": 1,
        "attention.key_length": part.kv_rank + part.rope_dim,
        "attention.value_length": part.kv_rank,
        "attention.key_length_mla": part.key_dim,
        "attention.value_length_mla": part.value_dim,
        "attention.kv_lora_rank": part.kv_rank,
        "attention.q_lora_rank": part.q_rank,
        "rope.dimension_count": part.rope_dim,
        _LOG_MULTIPLIER: None if weight is None else 0.1 * weight,
    }
    if experts is not None:
        mla_keys |= {key: getattr(experts, name) for key, name in _EXPERT_KEYS.items()} | {
            "expert_shared_count": experts.shared_size // experts.feedforward_size,
            "expert_gating_func": next(n for n, scoring in _SCORINGS.items() if scoring == experts.scoring),
        }
    without = gguf.rope_fields({**flat, "rope": replace(rope, scaling=scaling)}, spec)
    return gguf.size_fields(flat, spec) | without | mla_keys


_FIRST: dict[str, Any] = EXAMPLES[0] | {"num_nextn_predict_layers": 0}
_SECOND: dict[str, Any] = EXAMPLES[1] | {"num_nextn_predict_layers": 0, "q_lora_rank": 12, "rope_interleave": True}
GGUF = gguf_files.gguf_family(
    "deepseek2",
    (Field(_read_metadata, _metadata_of),),
    "deepseek_v3",
    weights=GGUF_WEIGHTS,
    examples=(
        _FIRST | {"rope_parameters": {**_FIRST["rope_parameters"], "mscale": 0.8}},
        _SECOND | {"attention_bias": False, "first_k_dense_replace": 0, "norm_topk_prob": False},
    ),
)
