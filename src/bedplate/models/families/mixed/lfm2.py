"""The lfm2 family (https://arxiv.org/abs/2511.23404): Hugging Face's `Lfm2ForCausalLM`.

Most layers are a short convolution between two gates, some attention with normalised queries and keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.models.families.decoders import TINY, layer_rules, size_fields, take_sizes
from bedplate.models.families.family import Family
from bedplate.models.families.fields import HF_BOOKKEEPING, Fields
from bedplate.models.families.mixed.layers import convolution, layer_types, state_layers
from bedplate.models.families.rope import FULL, rope_parameters, take_rope
from bedplate.models.families.weights import WeightMap, renamed
from bedplate.models.specs.state_mixers import ShortConvolution
from bedplate.models.specs.transformer import Rope, TransformerSpec

_ORIGIN = "config.json (lfm2)"
_CONVOLUTION = "conv"
_GATED = (("gate", "w1"), ("up", "w3"), ("down", "w2"))

HF_WEIGHTS = WeightMap(
    (
        renamed("embedding.weight", "model.embed_tokens.weight"),
        *layer_rules(
            ("attention_norm", "operator_norm"),
            ("feedforward_norm", "ffn_norm"),
            *((f"attention.{name}", f"self_attn.{name}_proj") for name in "qkv"),
            ("attention.o", "self_attn.out_proj"),
            ("attention.q_norm", "self_attn.q_layernorm"),
            ("attention.k_norm", "self_attn.k_layernorm"),
            ("attention.input", "conv.in_proj"),
            ("attention.output", "conv.out_proj"),
            *((f"feedforward.{ours}", f"feed_forward.{theirs}") for ours, theirs in _GATED),
            prefix="model.layers.{i}.",
        ),
        convolution("layers.{i}.attention.convolution.weight", "model.layers.{i}.conv.conv.weight"),
        renamed("layers.{i}.attention.convolution.bias", "model.layers.{i}.conv.conv.bias"),
        renamed("norm.weight", "model.embedding_norm.weight"),
        renamed("lm_head.weight", "lm_head.weight"),
    )
)
EXAMPLES = (
    {**TINY, "layer_types": [_CONVOLUTION, FULL, _CONVOLUTION], "block_multiple_of": 16, "intermediate_size": 100},
    {
        **TINY,
        "num_hidden_layers": 4,
        "full_attn_idxs": [1, 3],
        "conv_bias": True,
        "conv_L_cache": 4,
        "block_auto_adjust_ff_dim": False,
        "tie_word_embeddings": False,
    },
)


def from_hf(config: Mapping[str, Any]) -> TransformerSpec:
    """`config.json` of an Lfm2ForCausalLM → spec."""
    fields = Fields(_named_as_now(config), _ORIGIN)
    sizes = take_sizes(fields, context=128_000, tied=True)
    layers, hidden = sizes["layers"], sizes["hidden_size"]
    sizes["feedforward_size"] = _adjusted(fields, sizes["feedforward_size"])
    whole, types = fields.sequence("full_attn_idxs"), fields.sequence("layer_types")
    if types is None:
        types = [FULL if whole is None or layer in whole else _CONVOLUTION for layer in range(layers)]
    # Written beside the fields above by the model's makers; they repeat them.
    for name in ("block_dim", "conv_dim", "conv_dim_out"):
        fields.only(name, hidden, None)
    fields.only("num_heads", sizes["heads"], None)
    fields.only("block_use_swiglu", True, None)
    fields.only("use_pos_enc", True, None)
    fields.ignore((*HF_BOOKKEEPING, "block_mlp_init_scale", "block_out_init_scale", "block_use_xavier_init"))
    fields.ignore(("conv_use_xavier_init",))
    eps = fields.real("norm_eps", 1e-5)
    fields.only("block_norm_eps", eps, None)
    part = ShortConvolution(fields.whole("conv_L_cache", 3), fields.flag("conv_bias", False))
    pattern = state_layers(types, layers, {_CONVOLUTION: True, FULL: False}, _ORIGIN)
    spec = TransformerSpec.from_fields(
        **sizes,
        norm_eps=eps,
        qk_norm="head",
        rope=take_rope(fields, _ORIGIN, context=sizes["context_length"], theta=1_000_000.0),
        state=part if any(pattern) else None,
        state_layers=pattern if any(pattern) else (),
    )
    fields.finish()
    return spec


def _named_as_now(config: Mapping[str, Any]) -> dict[str, Any]:
    """The first checkpoints' names of three fields."""
    settings = dict(config)
    for before, current in (("block_ff_dim", "intermediate_size"), ("tie_embedding", "tie_word_embeddings")):
        if before in settings:
            settings[current] = settings.pop(before)
    if "theta" in settings:
        settings.setdefault("rope_theta", settings.pop("theta"))
    return settings


def _adjusted(fields: Fields, size: int) -> int:
    """The feed-forward's size: where it is to be adjusted, two thirds of what is said, and then rounded up."""
    factor, multiple = fields.pop("block_ffn_dim_multiplier", 1.0), fields.whole("block_multiple_of", 256)
    if not fields.flag("block_auto_adjust_ff_dim", True):
        return size
    size = int(2 * size / 3)
    return size if factor is None else multiple * -(-int(factor * size) // multiple)


def to_hf(spec: TransformerSpec) -> dict[str, Any]:
    """Spec → the `config.json` that transformers loads."""
    part = spec.state.mixer if isinstance(spec.state.mixer, ShortConvolution) else ShortConvolution()
    return size_fields(spec, "lfm2", "Lfm2ForCausalLM") | {
        "block_auto_adjust_ff_dim": False,
        "norm_eps": spec.norm.eps,
        "rope_theta": (spec.position.rope or Rope()).theta,
        "rope_parameters": rope_parameters(spec.position.rope or Rope()),
        "conv_L_cache": part.width,
        "conv_bias": part.bias,
        "layer_types": layer_types(spec, _CONVOLUTION, FULL),
    }


HF = Family(("hf", "lfm2"), from_hf, to_hf, HF_WEIGHTS, examples=EXAMPLES)
