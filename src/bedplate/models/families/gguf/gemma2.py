"""GGUF's `gemma2`: norms stored as 1 + w; the layers with windows take turns with the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.models.families.dense import gemma2
from bedplate.models.families.family import Family
from bedplate.models.families.gguf.metadata import (
    decimal,
    read,
    rope_fields,
    rope_tables,
    size_fields,
    take_rope,
    take_sizes,
    take_windows,
    window_fields,
)
from bedplate.models.families.gguf.tensors import AFTER_NORMS, ATTENTION, GATED, IGNORABLE, PRE_NORMS, decoder_rules
from bedplate.models.families.gguf.writing import writer
from bedplate.models.families.weights import WeightMap
from bedplate.models.specs.transformer import Scales, TransformerSpec

_NAME, _PATTERN, _WINDOW = "gemma2", 2, 4096
_LARGEST = 46
"""Layers of the 27B model, whose scores llama.cpp scales by 1/√(hidden/heads)."""

WEIGHTS = WeightMap(decoder_rules(*ATTENTION, *GATED, *PRE_NORMS, *AFTER_NORMS, offset=1.0), IGNORABLE)
_FIRST_EXAMPLE, _TWO = (
    {name: value for name, value in example.items() if name != "layer_types"} for example in gemma2.EXAMPLES
)
EXAMPLES = (_FIRST_EXAMPLE | {"query_pre_attn_scalar": 8}, _TWO)


def from_gguf(config: Mapping[str, Any]) -> TransformerSpec:
    """Metadata → spec."""
    fields = read(config, _NAME)
    sizes = take_sizes(fields, config)
    size = sizes["hidden_size"] // sizes["heads"] if sizes["layers"] == _LARGEST else sizes["head_dim"]
    spec = TransformerSpec.from_fields(
        **sizes,
        norm_placement="sandwich",
        norm_offset=1.0,
        rope=take_rope(fields, config, sizes["head_dim"]),
        windows=take_windows(fields, sizes["layers"], _PATTERN, _WINDOW),
        activation="gelu_tanh",
        scales=Scales(
            embedding=sizes["hidden_size"] ** 0.5,
            attention=None if size == sizes["head_dim"] else size**-0.5,
            attention_cap=decimal(fields.pop("attn_logit_softcapping") or 50.0),
            logit_cap=decimal(fields.pop("final_logit_softcapping") or 30.0),
        ),
    )
    fields.finish()
    return spec


def _keys(spec: TransformerSpec) -> dict[str, Any]:
    scales = spec.scales or Scales()
    caps = {"attn_logit_softcapping": scales.attention_cap, "final_logit_softcapping": scales.logit_cap}
    return size_fields(spec) | rope_fields(spec) | window_fields(spec, _PATTERN) | caps


GGUF = Family(
    ("gguf", _NAME),
    from_gguf,
    writer(_NAME, from_gguf, _keys),
    WEIGHTS,
    (("hf", "gemma2"),),
    examples=EXAMPLES,
    tables=rope_tables,
)
