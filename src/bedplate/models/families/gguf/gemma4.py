"""GGUF's `gemma4`: as gemma4_text. What differs from layer to layer is a list; divisors of the pairs' frequencies say
which pairs turn; a layer without a tensor of values takes its keys for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.families.dense import gemma4_text
from bedplate.models.families.field_map import Field, Values, constant
from bedplate.models.families.gguf.experts import experts
from bedplate.models.families.gguf.metadata import (
    FREQUENCIES,
    Metadata,
    decimal,
    size_fields,
    take_rope,
    take_sizes,
    take_windows,
    window_fields,
)
from bedplate.models.families.gguf.tensors import (
    AFTER_NORMS,
    ATTENTION,
    GATED,
    PRE_NORMS,
    QK_NORMS,
    decoder_weights,
    expert_rules,
)
from bedplate.models.families.gguf.writing import gguf_family
from bedplate.models.families.rope import FULL, SLIDING
from bedplate.models.families.weights import WeightMap, renamed
from bedplate.models.specs.transformer import FullAttention, Rope, Scales, SharedKeys, TransformerSpec

_NAME, _PATTERN = "gemma4", 6
_NO_ROTATION = 1e30
"""What divides the frequency of a pair that does not turn."""
_SHARE = 0.25
"""The share of a head's pairs that turn, where nothing is known but metadata."""
_CAP = 30.0
"""The cap of logits, where the file says nothing."""
_KV, _FEEDFORWARD = "attention.head_count_kv", "feed_forward_length"

_EXPERTS = (
    ("beside.dense_after_norm", "post_ffw_norm_1"),
    ("beside.norm", "pre_ffw_norm_2"),
    ("beside.after_norm", "post_ffw_norm_2"),
    ("beside.router", "ffn_gate_inp"),
)
_LAYER_INPUTS = (("layer_input.gate", "inp_gate"), ("layer_input.down", "proj"), ("layer_input_norm", "post_norm"))
_MIXTURE = "layers.{i}.beside"
WEIGHTS = decoder_weights(
    *ATTENTION,
    *QK_NORMS,
    *GATED,
    *PRE_NORMS,
    *AFTER_NORMS,
    *_EXPERTS,
    *_LAYER_INPUTS,
    more=(
        renamed("layer_inputs.embedding.weight", "per_layer_token_embd.weight"),
        renamed("layer_inputs.projection.weight", "per_layer_model_proj.weight"),
        renamed("layer_inputs.norm.weight", "per_layer_proj_norm.weight"),
        renamed("layers.{i}.output_scale", "blk.{i}.layer_output_scale.weight"),
        renamed(f"{_MIXTURE}.router.scale", "blk.{i}.ffn_gate_inp.scale"),
        renamed(f"{_MIXTURE}.router.expert_scale", "blk.{i}.ffn_down_exps.scale"),
        renamed(f"{_MIXTURE}.experts.gate_up.weight", "blk.{i}.ffn_gate_up_exps.weight"),
        *expert_rules(f"{_MIXTURE}.experts"),
    ),
)
EXAMPLES = (
    {**gemma4_text.EXAMPLES[0], "layer_types": [SLIDING, SLIDING, FULL, SLIDING, FULL]},
    {**gemma4_text.EXAMPLES[1], "attention_bias": False},
)


def _read(fields: Metadata, values: Values) -> Values:
    layers = fields.layers("block_count")
    kv_heads, feedforward_sizes = (fields.per_layer(name, layers) for name in (_KV, _FEEDFORWARD))
    windows = take_windows(fields, layers, _PATTERN)
    sees_all = [not windows or windows[layer % len(windows)] is None for layer in range(layers)]
    windowed_dim = fields.whole("attention.key_length_swa") or 0
    fields.only("attention.value_length_swa", windowed_dim, None)
    sizes = take_sizes(fields, values, layers)
    full_dim = sizes["head_dim"]
    head_dim = full_dim if all(sees_all) or not windowed_dim else windowed_dim
    rope = take_rope(fields, full_dim, {})
    local = Rope(decimal(fields.real("rope.freq_base_swa", 10_000.0)))
    fields.only("rope.dimension_count_swa", head_dim, None)
    shared = fields.whole("attention.shared_kv_layers") or 0
    cap = fields.real("final_logit_softcapping", _CAP)
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
    spec_fields: dict[str, Any] = sizes | {
        "head_dim": head_dim,
        "kv_heads": windowed_kv_heads,
        "rope": Rope(rope.theta, rope.scaling, _share(fields), proportional=True),
        "local_rope": local if windows else None,
        "windows": windows,
        "scales": Scales(sizes["hidden_size"] ** 0.5, attention=1.0, logit_cap=None if not cap else decimal(cap)),
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
    origin, layers = f"GGUF metadata ({_NAME})", range(spec.layers)
    by_layer = ((_KV, kv_heads, spec.kv_heads_of), (_FEEDFORWARD, feedforward_sizes, spec.feedforward_size_of))
    for name, sizes, meant in by_layer:
        if list(sizes) != [meant(layer) for layer in layers]:
            raise UnsupportedModelError(f"{origin}: {name} = {list(sizes)} is not supported")
    shared = 0 if spec.attention.shared_keys is None else spec.attention.shared_keys.layers
    first = spec.layers - shared
    # llama.cpp takes those of the last layer with its own, which must see everything, or of the one before it.
    key_layers = [layer if layer < first else first - (1 if sees_all[layer] else 2) for layer in layers]
    if [spec.keys_of(layer) for layer in layers] != key_layers:
        raise UnsupportedModelError(
            f"{origin}: attention.shared_kv_layers = {shared} needs a layer with a window and then one without before "
            "them"
        )


def _share(fields: Metadata) -> float:
    """The share of the pairs that turn; the others stand behind them."""
    divisors = (fields.tables or {}).get(FREQUENCIES)
    if divisors is None:
        return _SHARE
    turning = sum(divisor < _NO_ROTATION / 10 for divisor in divisors)
    if not turning or any(divisor != 1 for divisor in divisors[:turning]):
        raise UnsupportedModelError(
            f"{FREQUENCIES} ({_NAME}): {list(divisors)} is not supported (only 1, and then {_NO_ROTATION})"
        )
    return turning / len(divisors)


def _tables(spec: TransformerSpec) -> dict[str, list[float]]:
    rope, pairs = spec.position.rope or Rope(), spec.head_dim_of(spec.layers - 1) // 2
    turning = int(rope.fraction * pairs)
    return {FREQUENCIES: [1.0] * turning + [_NO_ROTATION] * (pairs - turning)}


def _write(flat: Values, spec: TransformerSpec) -> Values:
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
    return size_fields(flat, spec) | window_fields(spec, _PATTERN) | metadata


def _weights_of(spec: TransformerSpec) -> WeightMap:
    return gemma4_text.with_unread(WEIGHTS, spec, r"blk\.{}\.attn_([kv]|[kv]_norm)\.weight")


ROWS = (
    Field(_read, _write),
    constant(norm_placement="sandwich", qk_norm="head", value_norm=True, activation="gelu_tanh"),
    experts(beside=True, router_scales=True),
)

GGUF = gguf_family(_NAME, ROWS, WEIGHTS, "gemma4_text", examples=EXAMPLES, tables=_tables, weights_of=_weights_of)
