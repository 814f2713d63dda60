"""GGUF's `deepseek2` (DeepSeek-V2, V3, R1): latent attention, and experts beside a shared one behind dense layers.

Files hold the product that makes keys (turned) and the one that makes values apart, as attention over latents uses
them; older ones hold both as one. Rows of queries and keys stand as in deepseek_v3.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bedplate.core.errors import CheckpointError, UnsupportedModelError
from bedplate.models.families.experts import deepseek_v3
from bedplate.models.families.field_map import Field, Values
from bedplate.models.families.fields import Fields
from bedplate.models.families.gguf.experts import WIDTH, take_experts
from bedplate.models.families.gguf.metadata import Metadata, decimal, rope_fields, size_fields, take_rope, take_sizes
from bedplate.models.families.gguf.tensors import GATED, PRE_NORMS, ROUTER, decoder_weights, expert_rules
from bedplate.models.families.gguf.writing import gguf_family
from bedplate.models.families.weights import Rule, Tensors, renamed
from bedplate.models.specs.transformer import Experts, LatentAttention, Rope, Scoring, TransformerSpec, YarnScaling

_NAME, _EPS = "deepseek2", 1e-6
_LITE = (26, 27)
"""Layers of the models whose queries llama.cpp does not expect to come from a latent."""
_SCORINGS: dict[int, Scoring] = {1: "softmax", 2: "sigmoid"}
_LOG_MULTIPLIER = "rope.scaling.yarn_log_multiplier"

_ATTENTION = tuple(
    (f"attention.{ours}", f"attn_{theirs}")
    for ours, theirs in (
        ("q", "q"),
        ("q_down", "q_a"),
        ("q_norm", "q_a_norm"),
        ("q_up", "q_b"),
        ("kv_down", "kv_a_mqa"),
        ("kv_norm", "kv_a_norm"),
        ("o", "output"),
    )
)
_SHARED = tuple((f"feedforward.shared.{name}", f"ffn_{name}_shexp") for name in ("gate", "up", "down"))


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
WEIGHTS = decoder_weights(
    *_ATTENTION,
    *PRE_NORMS,
    *GATED,
    *_SHARED,
    *ROUTER,
    more=(
        Rule((_KV_UP,), ("blk.{i}.attn_k_b.weight", "blk.{i}.attn_v_b.weight"), _split_heads, _together),
        renamed(_KV_UP, "blk.{i}.attn_kv_b.weight"),
        renamed("layers.{i}.feedforward.router.selection_bias", "blk.{i}.exp_probs_b.bias"),
        *expert_rules(),
    ),
)
_FIRST: dict[str, Any] = deepseek_v3.EXAMPLES[0] | {"num_nextn_predict_layers": 0}
EXAMPLES = (
    {**_FIRST, "rope_parameters": {**_FIRST["rope_parameters"], "mscale": 0.8}},
    {
        **deepseek_v3.EXAMPLES[1],
        "num_nextn_predict_layers": 0,
        "q_lora_rank": 12,
        "rope_interleave": True,
        "attention_bias": False,
        "first_k_dense_replace": 0,
        "norm_topk_prob": False,
    },
)


def _read(fields: Metadata, values: Values) -> Values:
    latent = _take_latent(fields)
    sizes = take_sizes(fields, values)
    Fields({"attention.layer_norm_rms_epsilon": sizes["norm_eps"]}, _NAME).only(
        "attention.layer_norm_rms_epsilon", _EPS
    )
    rope = take_rope(fields, latent.rope_dim, fields.tables)
    multiplier = fields.pop(_LOG_MULTIPLIER)
    if isinstance(rope.scaling, YarnScaling):
        weight = decimal(10 * float(multiplier or 0.0))
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


def _take_latent(fields: Metadata) -> LatentAttention:
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


def _take_experts(fields: Metadata, layers: int) -> Experts | None:
    gating, shared = fields.whole("expert_gating_func") or 1, fields.whole("expert_shared_count") or 0
    Fields({"expert_gating_func": gating}, fields.origin).only("expert_gating_func", *_SCORINGS)
    first, scale = fields.whole("leading_dense_block_count") or 0, fields.pop("expert_weights_scale")
    groups, chosen = (fields.whole(name) or 1 for name in ("expert_group_count", "expert_group_used_count"))
    part = take_experts(
        fields,
        first_dense=first,
        scoring=_SCORINGS[gating],
        selection_bias=any(f"blk.{layer}.exp_probs_b.bias" in fields.names for layer in range(layers)),
        renormalise=fields.flag("expert_weights_norm", False),
        scale=decimal(scale) if scale else 1.0,
        groups=groups,
        groups_chosen=chosen,
    )
    return None if part is None else replace(part, shared_size=shared * part.feedforward_size)


def _latent(spec: TransformerSpec) -> LatentAttention:
    if spec.attention.latent is None:
        raise UnsupportedModelError(f"GGUF's {_NAME} is for latent attention, which this model does not have")
    return spec.attention.latent


def _write(flat: Values, spec: TransformerSpec) -> Values:
    part, rope, experts = _latent(spec), spec.position.rope or Rope(), spec.experts
    if part.q_rank is None and spec.layers not in _LITE:
        raise UnsupportedModelError(f"GGUF's {_NAME} needs q_rank in a model of {spec.layers} layers; it is None")
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
        mla_keys |= {
            "expert_count": experts.count,
            "expert_used_count": experts.per_token,
            WIDTH: experts.feedforward_size,
            "leading_dense_block_count": experts.first_dense,
            "expert_shared_count": experts.shared_size // experts.feedforward_size,
            "expert_gating_func": next(n for n, scoring in _SCORINGS.items() if scoring == experts.scoring),
            "expert_weights_norm": experts.renormalise,
            "expert_weights_scale": experts.scale,
            "expert_group_count": experts.groups,
            "expert_group_used_count": experts.groups_chosen,
        }
    without = rope_fields({**flat, "rope": replace(rope, scaling=scaling)}, spec)
    return size_fields(flat, spec) | without | mla_keys


GGUF = gguf_family(_NAME, (Field(_read, _write),), WEIGHTS, "deepseek_v3", examples=EXAMPLES)
