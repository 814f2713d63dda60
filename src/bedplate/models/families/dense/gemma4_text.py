"""The gemma4_text family (https://huggingface.co/docs/transformers/model_doc/gemma4): Hugging Face's
`Gemma4ForCausalLM`, text alone.

As Gemma 3, but norms are of w, scores are not scaled, values are normalised, and what a block gives is multiplied by a
number. Layers that see everything have heads of another size, of which a quarter turns, and in some models their keys
as values. The small models tell every layer more of a token and let the last layers share keys and values; others have
experts beside the feed-forward.

In GGUF's `gemma4` what differs from layer to layer is a list; divisors of the pairs' frequencies say which pairs turn;
a layer without a tensor of values takes its keys for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.families import decoders as hf
from bedplate.models.families import gguf_family as gguf_files
from bedplate.models.families import gguf_metadata as gguf
from bedplate.models.families.dense.gemma2 import GEMMA_ACTIVATION
from bedplate.models.families.experts.parts import stacked_rules
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import Field, Values, constant, ignored, only, part, real
from bedplate.models.families.fields import Fields
from bedplate.models.families.rope import FULL, SLIDING, ropes
from bedplate.models.families.weights import WeightMap, renamed
from bedplate.models.specs.parts import SharedKeys
from bedplate.models.specs.transformer import Experts, FullAttention, Rope, Scales, TransformerSpec

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
WEIGHTS = hf.decoder_weights(
    *hf.ATTENTION,
    *hf.QK_NORMS,
    *hf.GATED,
    *hf.SANDWICH_NORMS,
    *_EXPERTS,
    *_LAYER_INPUTS,
    more=(
        renamed("layer_inputs.embedding.weight", "model.embed_tokens_per_layer.weight"),
        renamed("layer_inputs.projection.weight", "model.per_layer_model_projection.weight"),
        renamed("layer_inputs.norm.weight", "model.per_layer_projection_norm.weight"),
        renamed("layers.{i}.output_scale", f"{_LAYER}.layer_scalar"),
        renamed(f"{_MIXTURE}.router.scale", f"{_LAYER}.router.scale"),
        renamed(f"{_MIXTURE}.router.expert_scale", f"{_LAYER}.router.per_expert_scale"),
        *stacked_rules(f"{_LAYER}.experts", f"{_MIXTURE}.experts"),
    ),
)
_ROPES = {
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
    SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
}
_DEFAULTS = {"num_key_value_heads": 4, "rope_parameters": _ROPES, "sliding_window": 512}
# Scores that are not scaled are sharp, and roundings grow: hence the epsilon.
_SMALL = hf.tiny(head_dim=8, global_head_dim=16, vocab_size_per_layer_input=97, sliding_window=7, rms_norm_eps=0.1)
EXAMPLES = (
    _SMALL
    | {"num_hidden_layers": 5, "layer_types": [SLIDING, FULL, SLIDING, SLIDING, FULL]}
    | {"hidden_size_per_layer_input": 12, "num_kv_shared_layers": 2, "use_double_wide_mlp": True}
    | {"final_logit_softcapping": 3.0},
    _SMALL
    | {"layer_types": [SLIDING, SLIDING, FULL], "hidden_size_per_layer_input": 0}
    | {"attention_bias": True, "attention_k_eq_v": True, "num_global_key_value_heads": 1}
    | {"enable_moe_block": True, "num_experts": 6, "top_k_experts": 2, "moe_intermediate_size": 24},
)


def _read_windows(fields: Fields, values: Values) -> Values:
    """The windows of the layers, the last of which sees everything."""
    count = values["layers"]
    default = [FULL if (layer + 1) % 6 == 0 or layer == count - 1 else SLIDING for layer in range(count)]
    windows = hf.take_windows(fields, count, fields.size("sliding_window"), default)
    if windows and windows[(count - 1) % len(windows)] is not None:
        raise UnsupportedModelError(f"{fields.origin}: the last of layer_types must be {FULL!r}")
    return {"windows": windows}


def _check_ropes(fields: Fields, values: Values) -> Values:
    for rope in (values["rope"], values["local_rope"]):
        if rope is not None and rope.fraction != 1 and not rope.proportional:
            raise UnsupportedModelError(
                f"{fields.origin}: partial_rotary_factor is for the rope_type 'proportional' alone"
            )
    return {} if values["windows"] else {"local_rope": None}


_SCALES = part(
    "scales",
    Scales,
    Field(lambda _, values: {"embedding": values["hidden_size"] ** 0.5, "attention": 1.0}),
    real("final_logit_softcapping", "logit_cap"),
)


def _read_layer_inputs(fields: Fields, values: Values) -> Values:
    input_size = fields.whole("hidden_size_per_layer_input", 256)
    if input_size:
        fields.only("vocab_size_per_layer_input", values["vocab_size"])
    return {"layer_input_size": input_size}


def _layer_input_fields(flat: Values, spec: TransformerSpec) -> Values:
    return {"hidden_size_per_layer_input": flat["layer_input_size"], "vocab_size_per_layer_input": flat["vocab_size"]}


_EXPERT_NAMES = {"num_experts": "count", "top_k_experts": "per_token", "moe_intermediate_size": "feedforward_size"}


def _read_experts(fields: Fields, values: Values) -> Values:
    """The experts beside the feed-forward, which sees every token."""
    if not fields.flag("enable_moe_block", False):
        fields.ignore(_EXPERT_NAMES)
        return {}
    count, chosen, size = map(fields.size, _EXPERT_NAMES)
    return {"experts": Experts(count, chosen, size, beside=True, router_scales=True)}


def _expert_fields(flat: Values, spec: TransformerSpec) -> Values:
    part = flat["experts"]
    return {"enable_moe_block": part is not None} | {
        theirs: None if part is None else getattr(part, ours) for theirs, ours in _EXPERT_NAMES.items()
    }


def _read_shared(fields: Fields, values: Values) -> Values:
    """Layers that share keys and values."""
    count, is_double = fields.whole("num_kv_shared_layers", 0), fields.flag("use_double_wide_mlp", False)
    size = 2 * values["feedforward_size"] if is_double else None
    return {"shared_keys": SharedKeys(count, size) if count else None}


def _shared_fields(flat: Values, spec: TransformerSpec) -> Values:
    shared = flat["shared_keys"]
    size = None if shared is None else shared.feedforward_size
    if size is not None and size != 2 * flat["feedforward_size"]:
        raise UnsupportedModelError(f"gemma4_text: layers that share keys can be twice as wide as others, not {size}")
    return {"num_kv_shared_layers": 0 if shared is None else shared.layers, "use_double_wide_mlp": size is not None}


def _read_full(fields: Fields, values: Values) -> Values:
    """The shape of attention in layers that see everything: by number of layer, or (before) for all of them."""
    keys_are_values, kv_heads = fields.flag("attention_k_eq_v", False), fields.pop("num_global_key_value_heads")
    overrides: dict[str, Any] = {"head_dim": fields.pop("global_head_dim", 512)}
    if keys_are_values and kv_heads is not None:
        overrides["num_key_value_heads"] = kv_heads
    by_layer: Mapping[str, Mapping[str, Any]] | None = fields.pop("per_layer_config")
    if by_layer is not None:
        sets = {int(layer): dict(layer_config) for layer, layer_config in by_layer.items()}
        count, windows = values["layers"], values["windows"] or (None,)
        overrides = sets.get(count - 1, {})
        for layer in range(count):
            if sets.get(layer, {}) != (overrides if windows[layer % len(windows)] is None else {}):
                raise UnsupportedModelError(
                    f"{fields.origin}: per_layer_config of layer {layer} is not supported (only one and the same for "
                    f"all layers of type {FULL!r}, and none for others)"
                )
    layer_fields = Fields(overrides, f"{fields.origin} per_layer_config")
    usual = values["head_dim"], values["kv_heads"]
    head_dim, kv_heads = (
        int(layer_fields.pop(name, size)) for name, size in zip(("head_dim", "num_key_value_heads"), usual, strict=True)
    )
    layer_fields.finish()
    full = FullAttention(
        None if head_dim == usual[0] else head_dim, None if kv_heads == usual[1] else kv_heads, keys_are_values
    )
    return {"full": None if full == FullAttention() else full}


def _full_fields(flat: Values, spec: TransformerSpec) -> Values:
    full = flat["full"] or FullAttention()
    shape = {"head_dim": full.head_dim or flat["head_dim"], "num_key_value_heads": full.kv_heads or flat["kv_heads"]}
    return {
        "attention_k_eq_v": full.keys_are_values,
        "global_head_dim": shape["head_dim"],
        "num_global_key_value_heads": shape["num_key_value_heads"] if full.keys_are_values else None,
        "per_layer_config": {str(layer): shape for layer in range(spec.layers) if spec.window(layer) is None},
    }


FIELDS = (
    *hf.sizes(head_dim=256, context=131_072, tied=True),
    hf.rms_norm(1e-6),
    constant(norm_placement="sandwich", qk_norm="head", value_norm=True, output_scales=True),
    Field(_read_windows, lambda flat, spec: hf.window_fields(spec)),
    ropes(theta=1_000_000.0, local_theta=10_000.0),
    Field(_check_ropes),
    GEMMA_ACTIVATION,
    hf.ATTENTION_BIAS,
    _SCALES,
    Field(_read_layer_inputs, _layer_input_fields),
    Field(_read_experts, _expert_fields),
    Field(_read_shared, _shared_fields),
    Field(_read_full, _full_fields),
    hf.NO_DROPOUT,
    only("use_bidirectional_attention", None, "vision"),  # images alone are seen in both directions
    ignored("vocab_size_per_layer_input", "cache_implementation"),
)


def _with_unread(weights: WeightMap, spec: TransformerSpec, names: str) -> WeightMap:
    """The rules; what files hold of the keys and values of layers that take another one's, too, is passed over. names:
    of such tensors, a pattern with the layers' numbers left out."""
    shared = "|".join(str(layer) for layer in range(spec.layers) if spec.keys_of(layer) != layer)
    return replace(weights, ignorable=(*weights.ignorable, names.format(f"({shared})"))) if shared else weights


HF = hf_family(
    "gemma4_text",
    "Gemma4ForCausalLM",
    FIELDS,
    "gemma4",
    weights=WEIGHTS,
    examples=EXAMPLES,
    prepare=lambda config: _DEFAULTS | {name: value for name, value in config.items() if value is not None},
    weights_of=lambda spec: _with_unread(
        WEIGHTS, spec, r"model\.layers\.{}\.self_attn\.([kv]_proj|[kv]_norm)\.(weight|bias)"
    ),
)

# --- GGUF

_NO_ROTATION = 1e30
"""What divides the frequency of a pair that does not turn."""
_KV, _FEEDFORWARD, _PATTERN = "attention.head_count_kv", "feed_forward_length", 6
GGUF_WEIGHTS = gguf_files.decoder_weights(
    *(pair for pair in gguf_files.LAYER if pair[0] != "feedforward.router"),
    ("beside.dense_after_norm", "post_ffw_norm_1"),
    ("beside.norm", "pre_ffw_norm_2"),
    ("beside.after_norm", "post_ffw_norm_2"),
    ("beside.router", "ffn_gate_inp"),
    ("layer_input.gate", "inp_gate"),
    ("layer_input.down", "proj"),
    ("layer_input_norm", "post_norm"),
    norms=gguf_files.SANDWICH_NORMS,
    more=(
        renamed("layer_inputs.embedding.weight", "per_layer_token_embd.weight"),
        renamed("layer_inputs.projection.weight", "per_layer_model_proj.weight"),
        renamed("layer_inputs.norm.weight", "per_layer_proj_norm.weight"),
        renamed("layers.{i}.output_scale", "blk.{i}.layer_output_scale.weight"),
        renamed(f"{_MIXTURE}.router.scale", "blk.{i}.ffn_gate_inp.scale"),
        renamed(f"{_MIXTURE}.router.expert_scale", "blk.{i}.ffn_down_exps.scale"),
        renamed(f"{_MIXTURE}.experts.gate_up.weight", "blk.{i}.ffn_gate_up_exps.weight"),
        *gguf_files.expert_rules(f"{_MIXTURE}.experts"),
    ),
)


def _read_metadata(fields: gguf.Metadata, values: Values) -> Values:
    layers = fields.layers("block_count")
    kv_heads, feedforward_sizes = (fields.per_layer(name, layers) for name in (_KV, _FEEDFORWARD))
    windows = gguf.take_windows(fields, layers, _PATTERN)
    sees_all = [not windows or windows[layer % len(windows)] is None for layer in range(layers)]
    windowed_dim = fields.whole("attention.key_length_swa") or 0
    fields.only("attention.value_length_swa", windowed_dim, None)
    read_sizes = gguf.take_sizes(fields, values, layers)
    full_dim = read_sizes["head_dim"]
    head_dim = full_dim if all(sees_all) or not windowed_dim else windowed_dim
    rope = gguf.take_rope(fields, full_dim, {})
    local = Rope(gguf.decimal(fields.real("rope.freq_base_swa", 10_000.0)))
    fields.only("rope.dimension_count_swa", head_dim, None)
    shared = fields.whole("attention.shared_kv_layers") or 0
    cap = fields.real("final_logit_softcapping", 30.0)
    windowed_kv_heads = kv_heads[sees_all.index(False) if False in sees_all else 0]
    full_kv_heads = (count for count, is_full in zip(kv_heads, sees_all, strict=True) if is_full)
    full = FullAttention(
        None if full_dim == head_dim else full_dim,
        next((count for count in full_kv_heads if count != windowed_kv_heads), None),
        any(
            is_full and f"blk.{layer}.attn_v.weight" not in fields.names
            for layer, is_full in enumerate(sees_all[: layers - shared])
        ),
    )
    shared_size = None if feedforward_sizes[-1] == feedforward_sizes[0] else feedforward_sizes[-1]
    spec_fields: dict[str, Any] = read_sizes | {
        "head_dim": head_dim,
        "kv_heads": windowed_kv_heads,
        "rope": Rope(rope.theta, rope.scaling, _share(fields), proportional=True),
        "local_rope": local if windows else None,
        "windows": windows,
        "scales": Scales(
            read_sizes["hidden_size"] ** 0.5, attention=1.0, logit_cap=None if not cap else gguf.decimal(cap)
        ),
        "full": None if full == FullAttention() else full,
        "shared_keys": SharedKeys(shared, shared_size) if shared else None,
        "layer_input_size": fields.whole("embedding_length_per_layer_input") or 0,
        "output_scales": "blk.0.layer_output_scale.weight" in fields.names,
    }
    _check_layers(TransformerSpec.from_fields(**spec_fields), kv_heads, feedforward_sizes, sees_all)
    return spec_fields


def _check_layers(
    spec: TransformerSpec, kv_heads: Sequence[int], feedforward_sizes: Sequence[int], sees_all: Sequence[bool]
) -> None:
    """Refuses sizes by layer, and layers that share keys, that a spec cannot have."""
    origin, layers = "GGUF metadata (gemma4)", range(spec.layers)
    by_layer = ((_KV, kv_heads, spec.kv_heads_of), (_FEEDFORWARD, feedforward_sizes, spec.feedforward_size_of))
    for name, layer_sizes, meant in by_layer:
        if list(layer_sizes) != [meant(layer) for layer in layers]:
            raise UnsupportedModelError(f"{origin}: {name} = {list(layer_sizes)} is not supported")
    shared = 0 if spec.attention.shared_keys is None else spec.attention.shared_keys.layers
    first = spec.layers - shared
    # llama.cpp takes those of the last layer with its own, which must see everything, or of the one before it.
    key_layers = [layer if layer < first else first - (1 if sees_all[layer] else 2) for layer in layers]
    if [spec.keys_of(layer) for layer in layers] != key_layers:
        raise UnsupportedModelError(
            f"{origin}: attention.shared_kv_layers = {shared} needs a layer with a window, then one without"
        )


def _share(fields: gguf.Metadata) -> float:
    """The share of the pairs that turn; the others stand behind them."""
    divisors = (fields.tables or {}).get(gguf.FREQUENCIES)
    if divisors is None:
        return 0.25
    turning = sum(divisor < _NO_ROTATION / 10 for divisor in divisors)
    if not turning or any(divisor != 1 for divisor in divisors[:turning]):
        raise UnsupportedModelError(
            f"{gguf.FREQUENCIES} (gemma4): {list(divisors)} is not supported (only 1, and then {_NO_ROTATION})"
        )
    return turning / len(divisors)


def _tables(spec: TransformerSpec) -> dict[str, list[float]]:
    rope, pairs = spec.position.rope or Rope(), spec.head_dim_of(spec.layers - 1) // 2
    turning = int(rope.fraction * pairs)
    return {gguf.FREQUENCIES: [1.0] * turning + [_NO_ROTATION] * (pairs - turning)}


def _metadata_of(flat: Values, spec: TransformerSpec) -> Values:
    rope, full_dim, layers = spec.position.rope or Rope(), spec.head_dim_of(spec.layers - 1), range(spec.layers)
    metadata = {
        "attention.key_length": full_dim,
        "attention.value_length": full_dim,
        "attention.key_length_swa": spec.attention.head_dim,
        "attention.value_length_swa": spec.attention.head_dim,
        _KV: [spec.kv_heads_of(layer) for layer in layers],
        _FEEDFORWARD: [spec.feedforward_size_of(layer) for layer in layers],
        "attention.shared_kv_layers": 0 if spec.attention.shared_keys is None else spec.attention.shared_keys.layers,
        "embedding_length_per_layer_input": spec.layer_input_size,
        "rope.freq_base": rope.theta,
        "rope.freq_base_swa": (spec.position.local_rope or rope).theta,
        "rope.dimension_count": full_dim,
        "rope.dimension_count_swa": spec.attention.head_dim,
        "final_logit_softcapping": (spec.scales or Scales()).logit_cap or 0.0,
        "attention.sliding_window_pattern": [spec.window(layer) is not None for layer in layers],
    }
    return gguf.size_fields(flat, spec) | gguf.window_fields(spec, _PATTERN) | metadata


ROWS = (
    Field(_read_metadata, _metadata_of),
    constant(norm_placement="sandwich", qk_norm="head", value_norm=True, activation="gelu_tanh"),
    gguf_files.experts(beside=True, router_scales=True),
)
GGUF = gguf_files.gguf_family(
    "gemma4",
    ROWS,
    "gemma4_text",
    weights=GGUF_WEIGHTS,
    examples=(
        EXAMPLES[0] | {"layer_types": [SLIDING, SLIDING, FULL, SLIDING, FULL]},
        EXAMPLES[1] | {"attention_bias": False},
    ),
    tables=_tables,
    weights_of=lambda spec: _with_unread(GGUF_WEIGHTS, spec, r"blk\.{}\.attn_([kv]|[kv]_norm)\.weight"),
)
