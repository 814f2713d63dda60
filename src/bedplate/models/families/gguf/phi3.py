"""GGUF's `phi3`: fused projections; LongRoPE's divisors as two tensors. (llama.cpp itself sees no window.)"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.models.families.decoders import one_window
from bedplate.models.families.dense import phi3
from bedplate.models.families.family import Family
from bedplate.models.families.gguf.metadata import (
    longest_context,
    read,
    rope_fields,
    rope_tables,
    size_fields,
    take_rope,
    take_sizes,
)
from bedplate.models.families.gguf.tensors import IGNORABLE, PRE_NORMS, decoder_rules, qkv_rows
from bedplate.models.families.gguf.writing import writer
from bedplate.models.families.weights import WeightMap, fused
from bedplate.models.specs.transformer import TransformerSpec

_NAME = "phi3"
_GATE_UP = ("layers.{i}.feedforward.gate.weight", "layers.{i}.feedforward.up.weight")
_QKV = tuple(f"layers.{{i}}.attention.{name}.weight" for name in "qkv")


def _halves(spec: TransformerSpec) -> tuple[int, int]:
    return spec.feedforward.size, spec.feedforward.size


WEIGHTS = WeightMap(
    (
        *decoder_rules(("attention.o", "attn_output"), ("feedforward.down", "ffn_down"), *PRE_NORMS),
        fused(_QKV, "blk.{i}.attn_qkv.weight", qkv_rows),
        fused(_GATE_UP, "blk.{i}.ffn_up.weight", _halves),
    ),
    IGNORABLE,
)
# A context longer than any test's: llama.cpp chooses the divisors by what it has room for.
EXAMPLES = (
    {**phi3.EXAMPLES[0], "sliding_window": 64},
    {**phi3.EXAMPLES[1], "original_max_position_embeddings": 512, "max_position_embeddings": 2048},
)


def from_gguf(config: Mapping[str, Any]) -> TransformerSpec:
    """Metadata → spec."""
    fields = read(config, _NAME)
    sizes = take_sizes(fields, config)
    rope = take_rope(fields, config, sizes["head_dim"], longest=sizes["context_length"])
    sizes["context_length"] = phi3.even_context(rope, sizes["context_length"])
    # a file without the key may still name the context that it began with
    fields.ignore(("rope.scaling.original_context_length", "rope.scaling.attn_factor"))
    windows = one_window(fields.optional("attention.sliding_window") or None)
    spec = TransformerSpec.from_fields(**sizes, rope=rope, windows=windows)
    fields.finish()
    return spec


def _keys(spec: TransformerSpec) -> dict[str, Any]:
    context_keys = {"context_length": longest_context(spec), "attention.sliding_window": spec.window(0)}
    return size_fields(spec) | rope_fields(spec) | context_keys


GGUF = Family(
    ("gguf", _NAME),
    from_gguf,
    writer(_NAME, from_gguf, _keys),
    WEIGHTS,
    (("hf", "phi3"),),
    examples=EXAMPLES,
    tables=rope_tables,
)
