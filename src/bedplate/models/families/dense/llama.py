"""The llama family (Llama 2 and 3, SmolLM2, TinyLlama …): Hugging Face's `LlamaForCausalLM` and GGUF's `llama`."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.families.decoders import (
    ATTENTION,
    GATED,
    IGNORABLE,
    LLAMA_NORMS,
    PARTS,
    TINY,
    decoder_rules,
    size_fields,
    take_sizes,
)
from bedplate.models.families.family import Family
from bedplate.models.families.fields import HF_BOOKKEEPING, Fields
from bedplate.models.families.rope import rope_parameters, take_rope
from bedplate.models.families.weights import WeightMap, interleaved, renamed
from bedplate.models.specs.transformer import LinearScaling, Llama3Scaling, Rope, TransformerSpec

_WHERE = "config.json (llama)"

HF_WEIGHTS = WeightMap(decoder_rules(*ATTENTION, *GATED, *LLAMA_NORMS), IGNORABLE)

GGUF_WEIGHTS = WeightMap(
    rules=(
        renamed("embedding.weight", "token_embd.weight"),
        renamed("layers.{i}.attention_norm.weight", "blk.{i}.attn_norm.weight"),
        *(
            interleaved(f"layers.{{i}}.attention.{name}.{part}", f"blk.{{i}}.attn_{name}.{part}", heads)
            for name, heads in (("q", attrgetter("heads")), ("k", attrgetter("kv_heads")))
            for part in PARTS
        ),
        *(
            renamed(f"layers.{{i}}.attention.{ours}.{part}", f"blk.{{i}}.attn_{theirs}.{part}")
            for ours, theirs in (("v", "v"), ("o", "output"))
            for part in PARTS
        ),
        renamed("layers.{i}.feedforward_norm.weight", "blk.{i}.ffn_norm.weight"),
        *(
            renamed(f"layers.{{i}}.feedforward.{name}.{part}", f"blk.{{i}}.ffn_{name}.{part}")
            for name in ("gate", "up", "down")
            for part in PARTS
        ),
        renamed("norm.weight", "output_norm.weight"),
        renamed("lm_head.weight", "output.weight"),
    ),
)


_LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
EXAMPLES = (
    {**TINY, "tie_word_embeddings": True, "rope_parameters": _LLAMA3},
    {**TINY, "num_key_value_heads": 6, "head_dim": 16, "attention_bias": True, "mlp_bias": True},
)


def from_hf(config: Mapping[str, Any]) -> TransformerSpec:
    """`config.json` of a LlamaForCausalLM → spec."""
    fields = Fields(config, _WHERE)
    sizes = take_sizes(fields)
    fields.only("hidden_act", "silu")
    fields.only("rope_interleaved", False)
    fields.only("attention_dropout", 0.0, 0)
    fields.ignore((*HF_BOOKKEEPING, "pretraining_tp", "is_llama_config", "mlp_dropout"))
    spec = TransformerSpec(
        **sizes,
        norm_eps=float(fields.take("rms_norm_eps", 1e-6)),
        rope=take_rope(fields, _WHERE, context=sizes["context_length"]),
        attention_bias=bool(fields.take("attention_bias", False)),
        feedforward_bias=bool(fields.take("mlp_bias", False)),
    )
    fields.finish()
    return spec


def to_hf(spec: TransformerSpec) -> dict[str, Any]:
    """Spec → the `config.json` that transformers loads."""
    rope = spec.rope or Rope()
    return size_fields(spec, "llama", "LlamaForCausalLM") | {
        "rms_norm_eps": spec.norm_eps,
        "hidden_act": "silu",
        "attention_bias": spec.attention_bias,
        "attention_dropout": 0.0,
        "mlp_bias": spec.feedforward_bias,
        "rope_theta": rope.theta,
        "rope_parameters": rope_parameters(rope),
    }


def from_gguf(fields_: Mapping[str, Any]) -> TransformerSpec:
    """GGUF metadata (`llama.*`, plus `tensor_names` that the reader adds) → spec."""
    fields = Fields({k: v for k, v in fields_.items() if k.startswith("llama.")}, "GGUF metadata (llama)")
    names = frozenset(fields_["tensor_names"])
    heads, hidden = int(fields.need("llama.attention.head_count")), int(fields.need("llama.embedding_length"))
    head_dim = int(fields.take("llama.attention.key_length") or hidden // heads)
    fields.only("llama.attention.value_length", head_dim)
    fields.only("llama.rope.dimension_count", head_dim)
    fields.only("llama.rope.scaling.type", "none", "linear")
    factor = float(fields.take("llama.rope.scaling.factor") or 1.0)
    fields.only("llama.expert_count", 0)
    fields.only("llama.expert_used_count", 0)
    embedding_rows = fields_["embedding_rows"]
    # Written by some converters; it repeats the number of token rows.
    fields.ignore(("llama.vocab_size", "llama.rope.scaling.original_context_length"))
    if "rope_freqs.weight" in names:
        raise UnsupportedModelError(
            "GGUF metadata (llama): the file scales its rotary frequencies (rope_freqs.weight), which cannot be "
            "read back as llama-3 scaling; load the Hugging Face form of this model instead"
        )
    spec = TransformerSpec(
        kind="decoder",
        vocab_size=int(embedding_rows),
        hidden_size=hidden,
        layers=int(fields.need("llama.block_count")),
        heads=heads,
        kv_heads=int(fields.take("llama.attention.head_count_kv") or heads),
        head_dim=head_dim,
        feedforward_size=int(fields.need("llama.feed_forward_length")),
        context_length=int(fields.need("llama.context_length")),
        norm_eps=float(round(float(fields.take("llama.attention.layer_norm_rms_epsilon") or 1e-6), 12)),
        rope=Rope(
            float(fields.take("llama.rope.freq_base") or 10_000.0), LinearScaling(factor) if factor != 1.0 else None
        ),
        attention_bias="blk.0.attn_q.bias" in names,
        feedforward_bias="blk.0.ffn_gate.bias" in names,
        tied_head="output.weight" not in names,
    )
    fields.finish()
    return spec


def to_gguf(spec: TransformerSpec) -> dict[str, Any]:
    """Spec → GGUF metadata."""
    rope = spec.rope or Rope()
    if isinstance(rope.scaling, Llama3Scaling):
        raise UnsupportedModelError("llama-3 rotary scaling cannot be written to GGUF yet; export to safetensors")
    fields: dict[str, Any] = {
        "llama.vocab_size": spec.vocab_size,
        "llama.context_length": spec.context_length,
        "llama.embedding_length": spec.hidden_size,
        "llama.block_count": spec.layers,
        "llama.feed_forward_length": spec.feedforward_size,
        "llama.rope.dimension_count": spec.head_dim,
        "llama.rope.freq_base": rope.theta,
        "llama.attention.head_count": spec.heads,
        "llama.attention.head_count_kv": spec.kv_heads,
        "llama.attention.key_length": spec.head_dim,
        "llama.attention.value_length": spec.head_dim,
        "llama.attention.layer_norm_rms_epsilon": spec.norm_eps,
    }
    if isinstance(rope.scaling, LinearScaling):
        fields |= {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": rope.scaling.factor}
    return fields


HF = Family(("hf", "llama"), from_hf, to_hf, HF_WEIGHTS, (("gguf", "llama"),), examples=EXAMPLES)
GGUF = Family(("gguf", "llama"), from_gguf, to_gguf, GGUF_WEIGHTS, (HF.key,))
