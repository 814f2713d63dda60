"""The phi3 family (https://arxiv.org/abs/2404.14219; Phi-4 as well): Hugging Face's `Phi3ForCausalLM`. Llama with fused
projections; ropes of a part of each head, and LongRoPE.

Past the original context LongRoPE turns all keys otherwise, those in the cache too: a sequence is served up to there,
and `context_length` says so, unless the factors before and behind it are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.models.families.decoders import (
    DROPOUTS,
    IGNORABLE,
    LLAMA_NORMS,
    TINY,
    activation_name,
    decoder_rules,
    one_window,
    size_fields,
    take_activation,
    take_sizes,
)
from bedplate.models.families.family import Family
from bedplate.models.families.fields import HF_BOOKKEEPING, Fields
from bedplate.models.families.rope import rope_parameters, take_rope
from bedplate.models.families.weights import WeightMap, fused
from bedplate.models.specs.transformer import LongRopeScaling, Rope, TransformerSpec

_ORIGIN, _ORIGINAL = "config.json (phi3)", "original_max_position_embeddings"


def _qkv(spec: TransformerSpec) -> tuple[int, int, int]:
    keys = spec.attention.kv_heads * spec.attention.head_dim
    return spec.attention.heads * spec.attention.head_dim, keys, keys


def _halves(spec: TransformerSpec) -> tuple[int, int]:
    return spec.feedforward.size, spec.feedforward.size


_PAIRS = (("attention.o", "self_attn.o_proj"), ("feedforward.down", "mlp.down_proj"))
_QKV = tuple(f"layers.{{i}}.attention.{name}.weight" for name in "qkv")
_GATE_UP = tuple(f"layers.{{i}}.feedforward.{name}.weight" for name in ("gate", "up"))
HF_WEIGHTS = WeightMap(
    (
        *decoder_rules(*_PAIRS, *LLAMA_NORMS),
        fused(_QKV, "model.layers.{i}.self_attn.qkv_proj.weight", _qkv),
        fused(_GATE_UP, "model.layers.{i}.mlp.gate_up_proj.weight", _halves),
    ),
    IGNORABLE,
)
_LONG: dict[str, Any] = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.3],
    "long_factor": [1.0, 2.0, 4.0],
    "partial_rotary_factor": 0.75,
}
EXAMPLES = (
    {**TINY, "sliding_window": 7, "pad_token_id": 0},
    {
        **TINY,
        "num_key_value_heads": 6,
        "tie_word_embeddings": True,
        "original_max_position_embeddings": 64,
        "rope_parameters": _LONG,
        "pad_token_id": 0,
    },
)


def from_hf(config: Mapping[str, Any]) -> TransformerSpec:
    """`config.json` of a Phi3ForCausalLM → spec."""
    # What stands outside is what counts, and its default too.
    inside = {name: _renamed(config.get(name)) for name in ("rope_scaling", "rope_parameters")}
    fields = Fields({_ORIGINAL: 4096, **config, **inside}, _ORIGIN)
    sizes = take_sizes(fields, context=4096)
    for name in ("attention_bias", "mlp_bias", "lm_head_bias"):
        fields.only(name, False)
    for name in ("full_attn_mod", "interpolate_factor"):  # of every layer, and of no more than was trained on
        fields.only(name, 1)
    fields.ignore((*HF_BOOKKEEPING, *DROPOUTS))
    rope = take_rope(fields, _ORIGIN, context=sizes["context_length"], fraction=1.0)
    sizes["context_length"] = even_context(rope, sizes["context_length"])
    spec = TransformerSpec.from_fields(
        **sizes,
        norm_eps=fields.real("rms_norm_eps", 1e-5),
        rope=rope,
        windows=one_window(fields.optional("sliding_window")),
        activation=take_activation(fields, "hidden_act", "silu", _ORIGIN),
    )
    fields.finish()
    return spec


def even_context(rope: Rope, context: int) -> int:
    """Of `context`, as much as turns in one way."""
    scaling = rope.scaling
    if not isinstance(scaling, LongRopeScaling) or scaling.is_uniform:
        return context
    return min(context, scaling.original_context)


def _renamed(scaling: Any) -> Any:
    """LongRoPE under the names that Phi's first files had for it, without the context before it was extended."""
    if not isinstance(scaling, Mapping):
        return scaling
    renamed = {name: value for name, value in scaling.items() if name != _ORIGINAL}
    rope_type = renamed.get("rope_type") or renamed.get("type")
    return {**renamed, "rope_type": "longrope"} if rope_type in ("su", "yarn") else renamed


def to_hf(spec: TransformerSpec) -> dict[str, Any]:
    """Spec → the `config.json` that transformers loads."""
    rope = spec.position.rope or Rope()
    original, longest = spec.context_length, spec.context_length
    if isinstance(rope.scaling, LongRopeScaling):
        original = rope.scaling.original_context
        longest = round(original * rope.scaling.factor)
    return size_fields(spec, "phi3", "Phi3ForCausalLM") | {
        "max_position_embeddings": longest,
        "original_max_position_embeddings": original,
        "rms_norm_eps": spec.norm.eps,
        "hidden_act": activation_name(spec.feedforward.activation),
        "attention_dropout": 0.0,
        # Its default is beyond small vocabularies.
        "pad_token_id": None,
        "sliding_window": spec.window(0),
        "rope_theta": rope.theta,
        "partial_rotary_factor": rope.fraction,
        "rope_parameters": rope_parameters(rope),
    }


HF = Family(("hf", "phi3"), from_hf, to_hf, HF_WEIGHTS, (("gguf", "phi3"),), examples=EXAMPLES)
