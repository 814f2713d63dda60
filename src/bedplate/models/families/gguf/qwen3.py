"""GGUF's `qwen3`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.models.families.dense import qwen3
from bedplate.models.families.family import Family
from bedplate.models.families.gguf.metadata import read, rope_fields, rope_tables, size_fields, take_rope, take_sizes
from bedplate.models.families.gguf.tensors import ATTENTION, GATED, IGNORABLE, PRE_NORMS, QK_NORMS, decoder_rules
from bedplate.models.families.gguf.writing import take_biases, writer
from bedplate.models.families.weights import WeightMap
from bedplate.models.specs.transformer import TransformerSpec

_NAME = "qwen3"

WEIGHTS = WeightMap(decoder_rules(*ATTENTION, *QK_NORMS, *GATED, *PRE_NORMS), IGNORABLE)
EXAMPLES = (qwen3.EXAMPLES[0], {**qwen3.EXAMPLES[1], "attention_bias": False})


def from_gguf(config: Mapping[str, Any]) -> TransformerSpec:
    """Metadata → spec."""
    fields = read(config, _NAME)
    sizes = take_sizes(fields, config)
    rope = take_rope(fields, config, sizes["head_dim"])
    spec = TransformerSpec.from_fields(**sizes, **take_biases(config["tensor_names"]), qk_norm="head", rope=rope)
    fields.finish()
    return spec


def _keys(spec: TransformerSpec) -> dict[str, Any]:
    return size_fields(spec) | rope_fields(spec)


GGUF = Family(
    ("gguf", _NAME),
    from_gguf,
    writer(_NAME, from_gguf, _keys),
    WEIGHTS,
    (("hf", "qwen3"),),
    examples=EXAMPLES,
    tables=rope_tables,
)
