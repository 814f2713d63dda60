"""The lfm2 family (https://arxiv.org/abs/2511.23404): Hugging Face's `Lfm2ForCausalLM`.

Most layers are a short convolution between two gates, some attention with normalised queries and keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.models.families.decoders import convolution, sizes, state_layers, tiny
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import Field, Values, constant, flag, ignored, only, part, real, whole
from bedplate.models.families.fields import Fields
from bedplate.models.families.rope import FULL, rope
from bedplate.models.families.weights import LAYER, WeightMap, renamed, renames
from bedplate.models.specs.parts import ShortConvolution

_CONVOLUTION = "conv"
_GATED = (("gate", "w1"), ("up", "w3"), ("down", "w2"))

WEIGHTS = WeightMap(
    (
        renamed("embedding.weight", "model.embed_tokens.weight"),
        *renames(
            ("attention_norm", "operator_norm"),
            ("feedforward_norm", "ffn_norm"),
            *((f"attention.{name}", f"self_attn.{name}_proj") for name in "qkv"),
            ("attention.o", "self_attn.out_proj"),
            ("attention.q_norm", "self_attn.q_layernorm"),
            ("attention.k_norm", "self_attn.k_layernorm"),
            ("attention.input", "conv.in_proj"),
            ("attention.output", "conv.out_proj"),
            *((f"feedforward.{ours}", f"feed_forward.{theirs}") for ours, theirs in _GATED),
            ours=LAYER,
            theirs="model.layers.{i}.",
        ),
        convolution("layers.{i}.attention.convolution.weight", "model.layers.{i}.conv.conv.weight"),
        renamed("layers.{i}.attention.convolution.bias", "model.layers.{i}.conv.conv.bias"),
        renamed("norm.weight", "model.embedding_norm.weight"),
        renamed("lm_head.weight", "lm_head.weight"),
    )
)
EXAMPLES = (
    tiny(layer_types=[_CONVOLUTION, FULL, _CONVOLUTION], block_multiple_of=16, intermediate_size=100),
    tiny()
    | {"num_hidden_layers": 4, "full_attn_idxs": [1, 3], "conv_bias": True, "conv_L_cache": 4}
    | {"block_auto_adjust_ff_dim": False, "tie_word_embeddings": False},
)


def _adjusted(fields: Fields, values: Values) -> Values:
    """The feed-forward's size: where it is to be adjusted, two thirds of what is said, and then rounded up."""
    factor, multiple = fields.pop("block_ffn_dim_multiplier", 1.0), fields.whole("block_multiple_of", 256)
    if not fields.flag("block_auto_adjust_ff_dim", True):
        return {}
    size = int(2 * values["feedforward_size"] / 3)
    return {"feedforward_size": size if factor is None else multiple * -(-int(factor * size) // multiple)}


def _default_types(fields: Fields, values: Values) -> list[str]:
    whole = fields.sequence("full_attn_idxs")
    return [FULL if whole is None or layer in whole else _CONVOLUTION for layer in range(values["layers"])]


def _check_repeated(fields: Fields, values: Values) -> Values:
    """Reads what the model's makers wrote beside the fields above, and repeats them."""
    for name in ("block_dim", "conv_dim", "conv_dim_out"):
        fields.only(name, values["hidden_size"], None)
    fields.only("num_heads", values["heads"], None)
    fields.only("block_norm_eps", values["norm_eps"], None)
    return {}


_MIXER = part("state", ShortConvolution, whole("conv_L_cache", "width", 3), flag("conv_bias", "bias", False))
FIELDS = (
    *sizes(context=128_000, tied=True),
    Field(_adjusted, lambda *_: {"block_auto_adjust_ff_dim": False}),
    constant(qk_norm="head"),
    real("norm_eps", "norm_eps", 1e-5),
    rope(theta=1_000_000.0),
    state_layers(_MIXER, {_CONVOLUTION: True, FULL: False}, _default_types),
    Field(_check_repeated),
    only("block_use_swiglu", True, None),
    only("use_pos_enc", True, None),
    ignored("block_mlp_init_scale", "block_out_init_scale", "block_use_xavier_init", "conv_use_xavier_init"),
)


def _named_as_now(config: Mapping[str, Any]) -> dict[str, Any]:
    """The first checkpoints' names of three fields."""
    settings = dict(config)
    for before, current in (("block_ff_dim", "intermediate_size"), ("tie_embedding", "tie_word_embeddings")):
        if before in settings:
            settings[current] = settings.pop(before)
    if "theta" in settings:
        settings.setdefault("rope_theta", settings.pop("theta"))
    return settings


HF = hf_family("lfm2", "Lfm2ForCausalLM", FIELDS, weights=WEIGHTS, examples=EXAMPLES, prepare=_named_as_now)
