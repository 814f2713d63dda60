"""GGUF's `olmo2`: norms of what attention and feed-forward give, and of whole queries and keys; a head of its own.
Olmo 3, whose files have the same name and a window, is refused by that field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.models.families.dense import olmo2
from bedplate.models.families.family import Family
from bedplate.models.families.gguf.metadata import read, rope_fields, rope_tables, size_fields, take_rope, take_sizes
from bedplate.models.families.gguf.tensors import ATTENTION, GATED, IGNORABLE, QK_NORMS, decoder_rules
from bedplate.models.families.gguf.writing import writer
from bedplate.models.families.weights import WeightMap
from bedplate.models.specs.transformer import TransformerSpec

_NAME = "olmo2"
_NORMS = (("attention_norm", "post_attention_norm"), ("feedforward_norm", "post_ffw_norm"))

WEIGHTS = WeightMap(decoder_rules(*ATTENTION, *QK_NORMS, *GATED, *_NORMS), IGNORABLE)
EXAMPLES = (olmo2.EXAMPLES[0], {**olmo2.EXAMPLES[1], "attention_bias": False, "tie_word_embeddings": False})


def from_gguf(config: Mapping[str, Any]) -> TransformerSpec:
    """Metadata → spec."""
    fields = read(config, _NAME)
    sizes = take_sizes(fields, config)
    rope = take_rope(fields, config, sizes["head_dim"])
    spec = TransformerSpec(**sizes, norm_placement="branch", qk_norm="projection", rope=rope)
    fields.finish()
    return spec


def _keys(spec: TransformerSpec) -> dict[str, Any]:
    return size_fields(spec) | rope_fields(spec)


GGUF = Family(
    ("gguf", _NAME),
    from_gguf,
    writer(_NAME, from_gguf, _keys, needs_head=True),
    WEIGHTS,
    (("hf", "olmo2"),),
    examples=EXAMPLES,
    tables=rope_tables,
)
