"""GGUF's `llama` (Llama 1 to 3, Mistral, SmolLM2, Mixtral …): rows of queries and keys stored for interleaved rotary
pairs, and Llama-3's scaling of frequencies as a tensor of divisors. Where there are experts, the chosen ones' weights
sum to one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bedplate.models.families.dense import llama
from bedplate.models.families.experts import mixtral
from bedplate.models.families.family import Family
from bedplate.models.families.gguf.experts import expert_fields, take_experts
from bedplate.models.families.gguf.metadata import read, rope_fields, rope_tables, size_fields, take_rope, take_sizes
from bedplate.models.families.gguf.tensors import (
    ATTENTION,
    GATED,
    IGNORABLE,
    PRE_NORMS,
    ROUTER,
    decoder_rules,
    expert_rules,
)
from bedplate.models.families.gguf.writing import take_biases, writer
from bedplate.models.families.weights import WeightMap
from bedplate.models.specs.transformer import TransformerSpec

_NAME, _WIDTH = "llama", "feed_forward_length"

WEIGHTS = WeightMap((*decoder_rules(*ATTENTION, *GATED, *PRE_NORMS, *ROUTER, turned=True), *expert_rules()), IGNORABLE)
EXAMPLES = (
    # heads wide enough that Llama-3's scaling shows in several pairs
    {**llama.EXAMPLES[0], "head_dim": 64, "num_attention_heads": 2, "num_key_value_heads": 1},
    llama.EXAMPLES[1],
)


def from_gguf(config: Mapping[str, Any]) -> TransformerSpec:
    """Metadata → spec."""
    fields = read(config, _NAME)
    sizes = take_sizes(fields, config)
    part, rope = take_experts(fields, sizes["feedforward_size"]), take_rope(fields, config, sizes["head_dim"])
    fields.finish()
    return TransformerSpec.from_fields(**sizes, **take_biases(config["tensor_names"]), rope=rope, experts=part)


def _keys(spec: TransformerSpec) -> dict[str, Any]:
    return size_fields(spec) | rope_fields(spec) | expert_fields(spec, _WIDTH)


def _sibling(spec: TransformerSpec) -> Family | None:
    return None if spec.experts is None else MIXTRAL


GGUF = Family(
    ("gguf", _NAME),
    from_gguf,
    writer(_NAME, from_gguf, _keys),
    WEIGHTS,
    (("hf", "llama"), ("hf", "mistral"), ("hf", "mixtral")),
    examples=EXAMPLES,
    sibling=_sibling,
    tables=rope_tables,
)
MIXTRAL = replace(
    GGUF,
    partners=(("hf", "mixtral"),),
    examples=(mixtral.EXAMPLES[0], {**mixtral.EXAMPLES[1], "sliding_window": None}),
    sibling=None,
)
