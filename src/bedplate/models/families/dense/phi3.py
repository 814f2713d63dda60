"""The phi3 family (https://arxiv.org/abs/2404.14219; Phi-4 as well): Hugging Face's `Phi3ForCausalLM`. Llama with fused
projections; ropes of a part of each head, and LongRoPE.

Past the original context LongRoPE turns all keys otherwise, those in the cache too: a sequence is served up to there,
and `context_length` says so, unless the factors before and behind it are the same. GGUF files have LongRoPE's divisors
as two tensors. (llama.cpp itself sees no window.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.models.families import decoders as hf
from bedplate.models.families import gguf_metadata as gguf
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import Field, Values, ignored, only, written
from bedplate.models.families.gguf_family import decoder_weights as gguf_weights
from bedplate.models.families.gguf_family import gguf_family
from bedplate.models.families.rope import rope
from bedplate.models.families.weights import fused, halves, qkv_rows
from bedplate.models.specs.transformer import LongRopeScaling, Rope, TransformerSpec

_ORIGINAL = "original_max_position_embeddings"
_PAIRS = (("attention.o", "self_attn.o_proj"), ("feedforward.down", "mlp.down_proj"))
_QKV = tuple(f"layers.{{i}}.attention.{name}.weight" for name in "qkv")
_GATE_UP = tuple(f"layers.{{i}}.feedforward.{name}.weight" for name in ("gate", "up"))
WEIGHTS = hf.decoder_weights(
    *_PAIRS,
    *hf.LLAMA_NORMS,
    more=(
        fused(_QKV, "model.layers.{i}.self_attn.qkv_proj.weight", qkv_rows),
        fused(_GATE_UP, "model.layers.{i}.mlp.gate_up_proj.weight", halves),
    ),
)
_LONG: dict[str, Any] = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.3],
    "long_factor": [1.0, 2.0, 4.0],
    "partial_rotary_factor": 0.75,
}
EXAMPLES = (
    hf.tiny(sliding_window=7, pad_token_id=0),
    hf.tiny()
    | {"num_key_value_heads": 6, "tie_word_embeddings": True, "original_max_position_embeddings": 64}
    | {"rope_parameters": _LONG, "pad_token_id": 0},
)


def even_context(rope: Rope, context: int) -> int:
    """How much of `context` turns in one way."""
    scaling = rope.scaling
    if not isinstance(scaling, LongRopeScaling) or scaling.is_uniform:
        return context
    return min(context, scaling.original_context)


def _contexts(flat: Values, spec: TransformerSpec) -> Values:
    """The context before LongRoPE extended it, and after."""
    rope, context = flat["rope"] or Rope(), flat["context_length"]
    scaling = rope.scaling
    longest = scaling.extended_context if isinstance(scaling, LongRopeScaling) else context
    original = scaling.original_context if isinstance(scaling, LongRopeScaling) else context
    return {"max_position_embeddings": longest, _ORIGINAL: original, "partial_rotary_factor": rope.fraction}


def _today(config: Mapping[str, Any]) -> dict[str, Any]:
    """With the context before it was extended, which counts where it stands outside, and its default too."""
    inside = {name: _longrope(config.get(name)) for name in ("rope_scaling", "rope_parameters")}
    return {_ORIGINAL: 4096, **config, **inside}


def _longrope(scaling: Any) -> Any:
    """LongRoPE under the names that Phi's first files had for it, without the context before it was extended."""
    if not isinstance(scaling, Mapping):
        return scaling
    renamed = {name: value for name, value in scaling.items() if name != _ORIGINAL}
    rope_type = renamed.get("rope_type") or renamed.get("type")
    return {**renamed, "rope_type": "longrope"} if rope_type in ("su", "yarn") else renamed


FIELDS = (
    *hf.sizes(context=4096),
    hf.rms_norm(1e-5),
    rope(fraction=1.0),
    Field(lambda _, values: {"context_length": even_context(values["rope"], values["context_length"])}, _contexts),
    hf.one_window(),
    hf.activation(),
    hf.NO_DROPOUT,
    written(pad_token_id=None),  # its default is beyond small vocabularies
    *(only(name, False) for name in ("attention_bias", "mlp_bias", "lm_head_bias")),
    # Of every layer, and of no more than was trained on.
    *(only(name, 1) for name in ("full_attn_mod", "interpolate_factor")),
    ignored(*hf.DROPOUTS),
)
HF = hf_family("phi3", "Phi3ForCausalLM", FIELDS, "phi3", weights=WEIGHTS, examples=EXAMPLES, prepare=_today)


def _read_context(fields: gguf.Metadata, values: Values) -> Values:
    # A file without the key may still name the context that it began with.
    fields.ignore(("rope.scaling.original_context_length", "rope.scaling.attn_factor"))
    window = fields.optional("attention.sliding_window") or None
    return {
        "context_length": even_context(values["rope"], values["context_length"]),
        "windows": () if window is None else (window,),
    }


def _context_fields(flat: Values, spec: TransformerSpec) -> Values:
    longest = _contexts(flat, spec)["max_position_embeddings"]
    return {"context_length": longest, "attention.sliding_window": spec.window(0)}


GGUF = gguf_family(
    "phi3",
    (gguf.SIZES, gguf.rope(is_extended=True), Field(_read_context, _context_fields)),
    "phi3",
    weights=gguf_weights(
        *(("attention.o", "attn_output"), ("feedforward.down", "ffn_down")),
        more=(fused(_QKV, "blk.{i}.attn_qkv.weight", qkv_rows), fused(_GATE_UP, "blk.{i}.ffn_up.weight", halves)),
    ),
    # A context longer than any test's: llama.cpp chooses the divisors by what it has room for.
    examples=(
        EXAMPLES[0] | {"sliding_window": 64},
        EXAMPLES[1] | {"original_max_position_embeddings": 512, "max_position_embeddings": 2048},
    ),
)
