"""GGUF's `gemma3`: as gemma3_text, with norms stored as 1 + w, and in layers with windows an unscaled rope of base
10,000 where the file says no other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.models.families.dense import gemma3_text
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
from bedplate.models.families.gguf.tensors import (
    AFTER_NORMS,
    ATTENTION,
    GATED,
    IGNORABLE,
    PRE_NORMS,
    QK_NORMS,
    decoder_rules,
)
from bedplate.models.families.gguf.writing import writer
from bedplate.models.families.weights import WeightMap
from bedplate.models.specs.transformer import Rope, Scales, TransformerSpec

_NAME, _PATTERN = "gemma3", 6
_LARGEST = 62
"""Layers of the 27B model, whose scores llama.cpp scales by 1/√(hidden/heads)."""

WEIGHTS = WeightMap(decoder_rules(*ATTENTION, *QK_NORMS, *GATED, *PRE_NORMS, *AFTER_NORMS, offset=1.0), IGNORABLE)


def from_gguf(config: Mapping[str, Any]) -> TransformerSpec:
    """Metadata → spec."""
    fields = read(config, _NAME)
    sizes = take_sizes(fields, config)
    cap = fields.pop("final_logit_softcapping")
    rope = take_rope(fields, config, sizes["head_dim"])
    windows = take_windows(fields, sizes["layers"], _PATTERN)
    local = Rope(decimal(fields.real("rope.freq_base_swa", 10_000.0)))
    spec = TransformerSpec.from_fields(
        **sizes,
        norm_placement="sandwich",
        norm_offset=1.0,
        qk_norm="head",
        rope=rope,
        windows=windows,
        local_rope=None if local == rope or not windows else local,
        activation="gelu_tanh",
        scales=Scales(
            embedding=sizes["hidden_size"] ** 0.5,
            attention=_scale(sizes["layers"], sizes["hidden_size"], sizes["heads"], sizes["head_dim"]),
            logit_cap=None if not cap else decimal(cap),
        ),
    )
    fields.finish()
    return spec


def _scale(layers: int, hidden: int, heads: int, head_dim: int) -> float | None:
    size = hidden // heads if layers == _LARGEST else head_dim
    return None if size == head_dim else size**-0.5


def _keys(spec: TransformerSpec) -> dict[str, Any]:
    scales, local = spec.scales or Scales(), spec.position.local_rope or spec.position.rope or Rope()
    gemma_keys = {
        "rope.freq_base_swa": local.theta if spec.attention.windows else None,
        "final_logit_softcapping": scales.logit_cap,
    }
    return size_fields(spec) | rope_fields(spec) | window_fields(spec, _PATTERN) | gemma_keys


EXAMPLES = ({**gemma3_text.EXAMPLES[0], "query_pre_attn_scalar": 8}, gemma3_text.EXAMPLES[1])
GGUF = Family(
    ("gguf", _NAME),
    from_gguf,
    writer(_NAME, from_gguf, _keys),
    WEIGHTS,
    (("hf", "gemma3_text"),),
    examples=EXAMPLES,
    tables=rope_tables,
)
