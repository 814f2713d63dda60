"""GGUF's `gemma4`: as gemma4_text. What differs from layer to layer is a list; divisors of the pairs' frequencies say
which pairs turn; a layer without a tensor of values takes its keys for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.families.dense import gemma4_text
from bedplate.models.families.family import Family
from bedplate.models.families.fields import Fields
from bedplate.models.families.gguf.experts import expert_fields, take_experts
from bedplate.models.families.gguf.metadata import (
    FREQUENCIES,
    decimal,
    read,
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
    IGNORABLE,
    PRE_NORMS,
    QK_NORMS,
    decoder_rules,
    expert_rules,
)
from bedplate.models.families.gguf.writing import writer
from bedplate.models.families.rope import FULL, SLIDING
from bedplate.models.families.weights import WeightMap, renamed
from bedplate.models.specs.transformer import FullAttention, Rope, Scales, SharedKeys, TransformerSpec

_NAME, _PATTERN = "gemma4", 6
_NO_ROTATION = 1e30
"""What divides the frequency of a pair that does not turn."""
_SHARE = 0.25
"""Of a head's pairs that turn, where nothing is known but metadata."""
_CAP = 30.0
"""Of logits, where the file says nothing."""
_KV, _FEEDFORWARD = "attention.head_count_kv", "feed_forward_length"

_EXPERTS = (
    ("beside.dense_after_norm", "post_ffw_norm_1"),
    ("beside.norm", "pre_ffw_norm_2"),
    ("beside.after_norm", "post_ffw_norm_2"),
    ("beside.router", "ffn_gate_inp"),
)
_LAYER_INPUTS = (("layer_input.gate", "inp_gate"), ("layer_input.down", "proj"), ("layer_input_norm", "post_norm"))
_MIXTURE = "layers.{i}.beside"
WEIGHTS = WeightMap(
    (
        *decoder_rules(*ATTENTION, *QK_NORMS, *GATED, *PRE_NORMS, *AFTER_NORMS, *_EXPERTS, *_LAYER_INPUTS),
        renamed("layer_inputs.embedding.weight", "per_layer_token_embd.weight"),
        renamed("layer_inputs.projection.weight", "per_layer_model_proj.weight"),
        renamed("layer_inputs.norm.weight", "per_layer_proj_norm.weight"),
        renamed("layers.{i}.output_scale", "blk.{i}.layer_output_scale.weight"),
        renamed(f"{_MIXTURE}.router.scale", "blk.{i}.ffn_gate_inp.scale"),
        renamed(f"{_MIXTURE}.router.expert_scale", "blk.{i}.ffn_down_exps.scale"),
        renamed(f"{_MIXTURE}.experts.gate_up.weight", "blk.{i}.ffn_gate_up_exps.weight"),
        *expert_rules(f"{_MIXTURE}.experts"),
    ),
    IGNORABLE,
)
EXAMPLES = (
    {**gemma4_text.EXAMPLES[0], "layer_types": [SLIDING, SLIDING, FULL, SLIDING, FULL]},
    {**gemma4_text.EXAMPLES[1], "attention_bias": False},
)


def from_gguf(config: Mapping[str, Any]) -> TransformerSpec:
    """Metadata → spec."""
    layers = read(config, _NAME).layers("block_count")
    kv_heads, feedforward_sizes = (_per_layer(config, name, layers) for name in (_KV, _FEEDFORWARD))
    first = {f"{_NAME}.{_KV}": kv_heads[0], f"{_NAME}.{_FEEDFORWARD}": feedforward_sizes[0]}
    fields = read({**config, **first}, _NAME)
    windows = take_windows(fields, layers, _PATTERN)
    sees_all = [not windows or windows[layer % len(windows)] is None for layer in range(layers)]
    sizes, full_dim = _take_sizes(fields, config, all(sees_all))
    rope = take_rope(fields, {**config, "tables": {}}, full_dim)
    local = Rope(decimal(fields.real("rope.freq_base_swa", 10_000.0)))
    fields.only("rope.dimension_count_swa", sizes["head_dim"], None)
    shared, cap = (
        (fields.whole("attention.shared_kv_layers") or 0),
        fields.real("final_logit_softcapping", _CAP),
    )
    names = config["tensor_names"]
    sizes["kv_heads"] = kv_heads[sees_all.index(False) if False in sees_all else 0]
    full = FullAttention(
        None if full_dim == sizes["head_dim"] else full_dim,
        next((n for n, all_ in zip(kv_heads, sees_all, strict=True) if all_ and n != sizes["kv_heads"]), None),
        any(all_ and f"blk.{n}.attn_v.weight" not in names for n, all_ in enumerate(sees_all[: layers - shared])),
    )
    input_size = fields.whole("embedding_length_per_layer_input") or 0
    spec = TransformerSpec.from_fields(
        **sizes,
        norm_placement="sandwich",
        qk_norm="head",
        value_norm=True,
        rope=Rope(rope.theta, rope.scaling, _share(config), proportional=True),
        local_rope=local if windows else None,
        windows=windows,
        activation="gelu_tanh",
        scales=Scales(
            embedding=sizes["hidden_size"] ** 0.5, attention=1.0, logit_cap=None if not cap else decimal(cap)
        ),
        experts=take_experts(fields, beside=True, router_scales=True),
        full=None if full == FullAttention() else full,
        shared_keys=SharedKeys(shared, None if feedforward_sizes[-1] == feedforward_sizes[0] else feedforward_sizes[-1])
        if shared
        else None,
        layer_input_size=input_size,
        output_scales="blk.0.layer_output_scale.weight" in names,
    )
    fields.finish()
    for name, layer_sizes, meant in (
        (_KV, kv_heads, spec.kv_heads_of),
        (_FEEDFORWARD, feedforward_sizes, spec.feedforward_size_of),
    ):
        if list(layer_sizes) != [meant(layer) for layer in range(layers)]:
            raise UnsupportedModelError(f"GGUF metadata ({_NAME}): {name} = {list(layer_sizes)} is not supported")
    # llama.cpp takes those of the last layer with its own, which must see everything, or of the one before it.
    key_layers = [n if n < layers - shared else layers - shared - (1 if sees_all[n] else 2) for n in range(layers)]
    if [spec.keys_of(n) for n in range(layers)] != key_layers:
        raise UnsupportedModelError(
            f"GGUF metadata ({_NAME}): attention.shared_kv_layers = {shared} needs a layer with a window and then one "
            "without before them"
        )
    return spec


def _take_sizes(fields: Fields, config: Mapping[str, Any], alone: bool) -> tuple[dict[str, Any], int]:
    """The sizes, of layers with a window where those differ, and the head's of layers that see everything. alone: there
    are no others."""
    windowed = fields.whole("attention.key_length_swa") or 0
    fields.only("attention.value_length_swa", windowed, None)
    sizes = take_sizes(fields, config)
    full = sizes["head_dim"]
    return sizes | {"head_dim": full if alone or not windowed else windowed}, full


def _per_layer(config: Mapping[str, Any], name: str, layers: int) -> Sequence[int]:
    """What each layer has of it: a list, or one number for all."""
    value = config.get(f"{_NAME}.{name}", 0)
    return value if isinstance(value, list | tuple) else [value] * layers


def _share(config: Mapping[str, Any]) -> float:
    """Of the pairs that turn; the others stand behind them."""
    divisors: Sequence[float] | None = config.get("tables", {}).get(FREQUENCIES)
    if divisors is None:
        return _SHARE
    turning = sum(divisor < _NO_ROTATION / 10 for divisor in divisors)
    if not turning or any(turning_divisor != 1 for turning_divisor in divisors[:turning]):
        raise UnsupportedModelError(
            f"{FREQUENCIES} ({_NAME}): {list(divisors)} is not supported (only 1, and then {_NO_ROTATION})"
        )
    return turning / len(divisors)


def _tables(spec: TransformerSpec) -> dict[str, list[float]]:
    rope, pairs = spec.position.rope or Rope(), spec.head_dim_of(spec.layers - 1) // 2
    turning = int(rope.fraction * pairs)
    return {FREQUENCIES: [1.0] * turning + [_NO_ROTATION] * (pairs - turning)}


def _keys(spec: TransformerSpec) -> dict[str, Any]:
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
    return size_fields(spec) | window_fields(spec, _PATTERN) | metadata | expert_fields(spec)


def _weights_of(spec: TransformerSpec) -> WeightMap:
    return gemma4_text.with_unread(WEIGHTS, spec, r"blk\.{}\.attn_([kv]|[kv]_norm)\.weight")


GGUF = Family(
    ("gguf", _NAME),
    from_gguf,
    writer(_NAME, from_gguf, _keys, tables=_tables),
    WEIGHTS,
    (("hf", "gemma4_text"),),
    examples=EXAMPLES,
    weights_of=_weights_of,
    tables=_tables,
)
