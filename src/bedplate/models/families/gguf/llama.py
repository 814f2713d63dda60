"""GGUF's `llama` (Llama 1 to 3, Mistral, SmolLM2 …): rows of queries and keys stored for interleaved rotary pairs, and
Llama-3's scaling of frequencies as a tensor of divisors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.families.dense import llama
from bedplate.models.families.family import Family
from bedplate.models.families.gguf.metadata import (
    named,
    read,
    rope_fields,
    rope_tables,
    size_fields,
    take_rope,
    take_sizes,
)
from bedplate.models.families.gguf.tensors import ATTENTION, GATED, IGNORABLE, PRE_NORMS, decoder_rules
from bedplate.models.families.weights import WeightMap
from bedplate.models.specs.transformer import TransformerSpec

_NAME = "llama"

WEIGHTS = WeightMap(decoder_rules(*ATTENTION, *GATED, *PRE_NORMS, turned=True), IGNORABLE)


def from_gguf(config: Mapping[str, Any]) -> TransformerSpec:
    """Metadata → spec."""
    fields, names = read(config, _NAME), frozenset(config["tensor_names"])
    sizes = take_sizes(fields, config)
    fields.only("expert_count", 0)
    fields.only("expert_used_count", 0)
    spec = TransformerSpec(
        **sizes,
        rope=take_rope(fields, config, sizes["head_dim"]),
        attention_bias="blk.0.attn_q.bias" in names,
        output_bias=False if "blk.0.attn_q.bias" in names and "blk.0.attn_output.bias" not in names else None,
        feedforward_bias="blk.0.ffn_gate.bias" in names,
    )
    fields.finish()
    return spec


def to_gguf(spec: TransformerSpec) -> dict[str, Any]:
    """Spec → metadata."""
    if spec.windows:
        raise UnsupportedModelError(f"GGUF's {_NAME} cannot say that layers see a window of {spec.windows} tokens")
    return named(_NAME, size_fields(spec) | rope_fields(spec))


EXAMPLES = (
    # heads wide enough that Llama-3's scaling shows in several pairs
    {**llama.EXAMPLES[0], "head_dim": 64, "num_attention_heads": 2, "num_key_value_heads": 1},
    llama.EXAMPLES[1],
)
GGUF = Family(("gguf", _NAME), from_gguf, to_gguf, WEIGHTS, (("hf", "llama"),), examples=EXAMPLES, tables=rope_tables)
