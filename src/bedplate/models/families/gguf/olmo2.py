"""GGUF's `olmo2`: norms of what attention and feed-forward give, and of whole queries and keys; a head of its own.
Where there is a window, it is OLMo 3: three layers of four have it, and a rope that is not scaled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bedplate.models.families.dense import olmo2, olmo3
from bedplate.models.families.family import Family
from bedplate.models.families.gguf.metadata import (
    read,
    rope_fields,
    rope_tables,
    size_fields,
    take_rope,
    take_sizes,
    take_windows,
)
from bedplate.models.families.gguf.tensors import ATTENTION, GATED, IGNORABLE, QK_NORMS, decoder_rules
from bedplate.models.families.gguf.writing import writer
from bedplate.models.families.rope import FULL, SLIDING
from bedplate.models.families.weights import WeightMap
from bedplate.models.specs.transformer import Rope, TransformerSpec

_NAME, _PATTERN = "olmo2", 4
_NORMS = (("attention_norm", "post_attention_norm"), ("feedforward_norm", "post_ffw_norm"))

WEIGHTS = WeightMap(decoder_rules(*ATTENTION, *QK_NORMS, *GATED, *_NORMS), IGNORABLE)
EXAMPLES = (olmo2.EXAMPLES[0], {**olmo2.EXAMPLES[1], "attention_bias": False, "tie_word_embeddings": False})
_WINDOWED = (
    olmo3.EXAMPLES[0],
    {
        **olmo3.EXAMPLES[1],
        "num_hidden_layers": 4,
        "layer_types": [SLIDING, SLIDING, SLIDING, FULL],
        "attention_bias": False,
    },
)


def from_gguf(config: Mapping[str, Any]) -> TransformerSpec:
    """Metadata → spec."""
    fields = read(config, _NAME)
    sizes = take_sizes(fields, config)
    rope, windows = take_rope(fields, config, sizes["head_dim"]), take_windows(fields, sizes["layers"], _PATTERN)
    fields.finish()
    return TransformerSpec.from_fields(
        **sizes,
        norm_placement="branch",
        qk_norm="projection",
        rope=rope,
        windows=windows,
        local_rope=Rope(rope.theta) if windows and rope.scaling is not None else None,
    )


def _keys(spec: TransformerSpec) -> dict[str, Any]:
    # llama.cpp reads no list of the layers that have it.
    window = next((size for size in spec.attention.windows if size is not None), None)
    return size_fields(spec) | rope_fields(spec) | {"attention.sliding_window": window}


def _sibling(spec: TransformerSpec) -> Family | None:
    return OLMO3 if spec.attention.windows else None


GGUF = Family(
    ("gguf", _NAME),
    from_gguf,
    writer(_NAME, from_gguf, _keys, needs_head=True),
    WEIGHTS,
    (("hf", "olmo2"), ("hf", "olmo3")),
    examples=EXAMPLES,
    sibling=_sibling,
    tables=rope_tables,
)
OLMO3 = replace(GGUF, partners=(("hf", "olmo3"),), examples=_WINDOWED, sibling=None)
