"""The gemma4_text family (https://huggingface.co/docs/transformers/model_doc/gemma4): Hugging Face's
`Gemma4ForCausalLM`, text alone.

As Gemma 3, but norms are of w, scores are not scaled, values are normalised, and what a block gives is multiplied by a
number. Layers that see everything have heads of another size, of which a quarter turns, and in some models their keys
as values. The small models tell every layer more of a token and let the last layers share keys and values; others have
experts beside the feed-forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.families.decoders import (
    ATTENTION,
    GATED,
    IGNORABLE,
    QK_NORMS,
    SANDWICH_NORMS,
    TINY,
    activation_name,
    decoder_rules,
    size_fields,
    take_activation,
    take_sizes,
    take_windows,
    window_fields,
)
from bedplate.models.families.experts.expert_weights import stacked_rules
from bedplate.models.families.family import Family
from bedplate.models.families.fields import HF_BOOKKEEPING, Fields
from bedplate.models.families.rope import FULL, SLIDING, rope_parameters, take_ropes
from bedplate.models.families.weights import WeightMap, renamed
from bedplate.models.specs.transformer import Experts, FullAttention, Rope, Scales, SharedKeys, TransformerSpec

_ORIGIN = "config.json (gemma4_text)"
_LAYER, _MIXTURE = "model.layers.{i}", "layers.{i}.beside"

_EXPERTS = (
    ("beside.dense_after_norm", "post_feedforward_layernorm_1"),
    ("beside.norm", "pre_feedforward_layernorm_2"),
    ("beside.after_norm", "post_feedforward_layernorm_2"),
    ("beside.router", "router.proj"),
)
_LAYER_INPUTS = (
    ("layer_input.gate", "per_layer_input_gate"),
    ("layer_input.down", "per_layer_projection"),
    ("layer_input_norm", "post_per_layer_input_norm"),
)
HF_WEIGHTS = WeightMap(
    (
        *decoder_rules(*ATTENTION, *QK_NORMS, *GATED, *SANDWICH_NORMS, *_EXPERTS, *_LAYER_INPUTS),
        renamed("layer_inputs.embedding.weight", "model.embed_tokens_per_layer.weight"),
        renamed("layer_inputs.projection.weight", "model.per_layer_model_projection.weight"),
        renamed("layer_inputs.norm.weight", "model.per_layer_projection_norm.weight"),
        renamed("layers.{i}.output_scale", f"{_LAYER}.layer_scalar"),
        renamed(f"{_MIXTURE}.router.scale", f"{_LAYER}.router.scale"),
        renamed(f"{_MIXTURE}.router.expert_scale", f"{_LAYER}.router.per_expert_scale"),
        *stacked_rules(f"{_LAYER}.experts", f"{_MIXTURE}.experts"),
    ),
    IGNORABLE,
)
_ROPES = {
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
    SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
}
_DEFAULTS = {"num_key_value_heads": 4, "rope_parameters": _ROPES, "sliding_window": 512}
_SMALL = {
    **TINY,
    "head_dim": 8,
    "global_head_dim": 16,
    "vocab_size_per_layer_input": 97,
    "sliding_window": 7,
    "rms_norm_eps": 0.1,  # scores that are not scaled are sharp, and roundings grow
}
EXAMPLES = (
    {
        **_SMALL,
        "num_hidden_layers": 5,
        "layer_types": [SLIDING, FULL, SLIDING, SLIDING, FULL],
        "hidden_size_per_layer_input": 12,
        "num_kv_shared_layers": 2,
        "use_double_wide_mlp": True,
        "final_logit_softcapping": 3.0,
    },
    {
        **_SMALL,
        "layer_types": [SLIDING, SLIDING, FULL],
        "hidden_size_per_layer_input": 0,
        "attention_bias": True,
        "attention_k_eq_v": True,
        "num_global_key_value_heads": 1,
        "enable_moe_block": True,
        "num_experts": 6,
        "top_k_experts": 2,
        "moe_intermediate_size": 24,
    },
)


def from_hf(config: Mapping[str, Any]) -> TransformerSpec:
    """`config.json` of a Gemma4ForCausalLM → spec."""
    fields = Fields(_DEFAULTS | {name: value for name, value in config.items() if value is not None}, _ORIGIN)
    sizes = take_sizes(fields, head_dim=256, context=131_072, tied=True)
    windows = _take_windows(fields, sizes["layers"])
    full, sliding = take_ropes(
        fields, _ORIGIN, context=sizes["context_length"], theta=1_000_000.0, local_theta=10_000.0
    )
    # Images alone are seen in both directions.
    fields.only("use_bidirectional_attention", None, "vision")
    cap, input_size = fields.real("final_logit_softcapping"), fields.whole("hidden_size_per_layer_input", 256)
    if input_size:
        fields.only("vocab_size_per_layer_input", sizes["vocab_size"])
    part = _take_experts(fields)
    fields.ignore((*HF_BOOKKEEPING, "attention_dropout", "vocab_size_per_layer_input", "cache_implementation"))
    spec = TransformerSpec.from_fields(
        **sizes,
        norm_eps=fields.real("rms_norm_eps", 1e-6),
        norm_placement="sandwich",
        qk_norm="head",
        value_norm=True,
        rope=full,
        local_rope=None if sliding == full or not windows else sliding,
        windows=windows,
        activation=take_activation(fields, "hidden_activation", "gelu_pytorch_tanh", _ORIGIN),
        attention_bias=fields.flag("attention_bias", False),
        scales=Scales(embedding=sizes["hidden_size"] ** 0.5, attention=1.0, logit_cap=cap),
        experts=part,
        shared_keys=_take_shared(fields, sizes["feedforward_size"]),
        layer_input_size=input_size,
        output_scales=True,
    )
    spec = spec.with_(full=_take_full(fields, spec))
    fields.finish()
    for rope in (full, sliding):
        if rope.fraction != 1 and not rope.proportional:
            raise UnsupportedModelError(f"{_ORIGIN}: partial_rotary_factor is for the rope_type 'proportional' alone")
    return spec


def _take_windows(fields: Fields, layers: int) -> tuple[int | None, ...]:
    """Of the layers, the last of which sees everything."""
    default = [FULL if (layer + 1) % 6 == 0 or layer == layers - 1 else SLIDING for layer in range(layers)]
    windows = take_windows(fields, layers, fields.size("sliding_window"), default, _ORIGIN)
    if windows and windows[(layers - 1) % len(windows)] is not None:
        raise UnsupportedModelError(f"{_ORIGIN}: the last of layer_types must be {FULL!r}; transformers makes it so")
    return windows


def _take_experts(fields: Fields) -> Experts | None:
    """The experts beside the feed-forward, which sees every token."""
    names = ("num_experts", "top_k_experts", "moe_intermediate_size")
    if not fields.flag("enable_moe_block", False):
        fields.ignore(names)
        return None
    count, chosen, size = map(fields.size, names)
    return Experts(count, chosen, size, beside=True, router_scales=True)


def _take_shared(fields: Fields, size: int) -> SharedKeys | None:
    """Layers that share keys and values."""
    layers, double_width = fields.whole("num_kv_shared_layers", 0), fields.flag("use_double_wide_mlp", False)
    return SharedKeys(layers, 2 * size if double_width else None) if layers else None


def _take_full(fields: Fields, spec: TransformerSpec) -> FullAttention | None:
    """The shape of attention in layers that see everything: by number of layer, or (before) for all of them."""
    keys_are_values, heads = fields.flag("attention_k_eq_v", False), fields.pop("num_global_key_value_heads")
    overrides: dict[str, Any] = {"head_dim": fields.pop("global_head_dim", 512)}
    if keys_are_values and heads is not None:
        overrides["num_key_value_heads"] = heads
    layer_configs: Mapping[str, Mapping[str, Any]] | None = fields.pop("per_layer_config")
    if layer_configs is not None:
        sets = {int(layer): dict(layer_config) for layer, layer_config in layer_configs.items()}
        overrides = sets.get(spec.layers - 1, {})
        for layer in range(spec.layers):
            if sets.get(layer, {}) != (overrides if spec.window(layer) is None else {}):
                raise UnsupportedModelError(
                    f"{_ORIGIN}: per_layer_config of layer {layer} is not supported (only one and the same for all "
                    f"layers of type {FULL!r}, and none for others)"
                )
    attention_fields = Fields(overrides, f"{_ORIGIN} per_layer_config")
    head_dim, kv_heads = (
        int(attention_fields.pop(*arguments))
        for arguments in (("head_dim", spec.attention.head_dim), ("num_key_value_heads", spec.attention.kv_heads))
    )
    attention_fields.finish()
    part = FullAttention(
        None if head_dim == spec.attention.head_dim else head_dim,
        None if kv_heads == spec.attention.kv_heads else kv_heads,
        keys_are_values,
    )
    return None if part == FullAttention() else part


def to_hf(spec: TransformerSpec) -> dict[str, Any]:
    """Spec → the `config.json` that transformers loads."""
    scales, rope, experts = spec.scales or Scales(), spec.position.rope or Rope(), spec.experts
    local, shared, part = (
        spec.position.local_rope or rope,
        spec.attention.shared_keys,
        spec.attention.full or FullAttention(),
    )
    shared_size = None if shared is None else shared.feedforward_size
    if shared_size is not None and shared_size != 2 * spec.feedforward.size:
        raise UnsupportedModelError(
            f"{_ORIGIN}: layers that share keys can be twice as wide as others, not {shared_size}"
        )
    heads = spec.attention.kv_heads if part.kv_heads is None else part.kv_heads
    full = {"head_dim": part.head_dim or spec.attention.head_dim, "num_key_value_heads": heads}
    everything = [layer for layer in range(spec.layers) if spec.window(layer) is None]
    return (
        size_fields(spec, "gemma4_text", "Gemma4ForCausalLM")
        | {
            "rms_norm_eps": spec.norm.eps,
            "hidden_activation": activation_name(spec.feedforward.activation),
            "attention_bias": spec.attention.bias,
            "attention_dropout": 0.0,
            "final_logit_softcapping": scales.logit_cap,
            "rope_parameters": {FULL: rope_parameters(rope), SLIDING: rope_parameters(local)},
            "attention_k_eq_v": part.keys_are_values,
            "global_head_dim": full["head_dim"],
            "num_global_key_value_heads": heads if part.keys_are_values else None,
            "per_layer_config": {str(layer): full for layer in everything},
            "num_kv_shared_layers": 0 if shared is None else shared.layers,
            "use_double_wide_mlp": shared_size is not None,
            "hidden_size_per_layer_input": spec.layer_input_size,
            "vocab_size_per_layer_input": spec.vocab_size,
            "enable_moe_block": experts is not None,
            "num_experts": None if experts is None else experts.count,
            "top_k_experts": None if experts is None else experts.per_token,
            "moe_intermediate_size": None if experts is None else experts.feedforward_size,
        }
        | window_fields(spec)
    )


def with_unread(weights: WeightMap, spec: TransformerSpec, names: str) -> WeightMap:
    """The rules; what files hold of the keys and values of layers that take another one's, too, is passed over. names:
    of such tensors, a pattern with the layers' numbers left out."""
    shared = "|".join(str(layer) for layer in range(spec.layers) if spec.keys_of(layer) != layer)
    return replace(weights, ignorable=(*weights.ignorable, names.format(f"({shared})"))) if shared else weights


def _weights_of(spec: TransformerSpec) -> WeightMap:
    return with_unread(HF_WEIGHTS, spec, r"model\.layers\.{}\.self_attn\.([kv]_proj|[kv]_norm)\.(weight|bias)")


HF = Family(
    ("hf", "gemma4_text"),
    from_hf,
    to_hf,
    HF_WEIGHTS,
    (("gguf", "gemma4"),),
    examples=EXAMPLES,
    weights_of=_weights_of,
)
