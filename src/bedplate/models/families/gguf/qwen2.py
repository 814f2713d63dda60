"""GGUF's `qwen2`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.models.families.dense import qwen2
from bedplate.models.families.family import Family
from bedplate.models.families.gguf.metadata import read, rope_fields, rope_tables, size_fields, take_rope, take_sizes
from bedplate.models.families.gguf.tensors import ATTENTION, GATED, IGNORABLE, PRE_NORMS, decoder_rules
from bedplate.models.families.gguf.writing import take_biases, writer
from bedplate.models.families.weights import WeightMap
from bedplate.models.specs.transformer import TransformerSpec

_NAME = "qwen2"

WEIGHTS = WeightMap(decoder_rules(*ATTENTION, *GATED, *PRE_NORMS), IGNORABLE)
EXAMPLES = ({**qwen2.EXAMPLES[0], "num_key_value_heads": 3}, {**qwen2.EXAMPLES[1], "use_sliding_window": False})


def from_gguf(config: Mapping[str, Any]) -> TransformerSpec:
    """Metadata → spec."""
    fields = read(config, _NAME)
    sizes = take_sizes(fields, config)
    rope = take_rope(fields, config, sizes["head_dim"])
    spec = TransformerSpec.from_fields(**sizes, **take_biases(config["tensor_names"]), rope=rope)
    fields.finish()
    return spec


def _keys(spec: TransformerSpec) -> dict[str, Any]:
    return size_fields(spec) | rope_fields(spec)


GGUF = Family(
    ("gguf", _NAME),
    from_gguf,
    writer(_NAME, from_gguf, _keys),
    WEIGHTS,
    (("hf", "qwen2"),),
    examples=EXAMPLES,
    tables=rope_tables,
)
