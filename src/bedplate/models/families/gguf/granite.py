"""GGUF's `granite`: as llama, with factors on embeddings, scores, residuals and logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.models.families.dense import granite
from bedplate.models.families.family import Family
from bedplate.models.families.gguf.metadata import (
    decimal,
    read,
    rope_fields,
    rope_tables,
    size_fields,
    take_rope,
    take_sizes,
)
from bedplate.models.families.gguf.tensors import ATTENTION, GATED, IGNORABLE, PRE_NORMS, decoder_rules
from bedplate.models.families.gguf.writing import take_biases, writer
from bedplate.models.families.weights import WeightMap
from bedplate.models.specs.transformer import Scales, TransformerSpec

_NAME = "granite"

WEIGHTS = WeightMap(decoder_rules(*ATTENTION, *GATED, *PRE_NORMS, turned=True), IGNORABLE)
EXAMPLES = granite.EXAMPLES


def from_gguf(config: Mapping[str, Any]) -> TransformerSpec:
    """Metadata → spec. A factor that a file does not give is none."""
    fields = read(config, _NAME)
    sizes = take_sizes(fields, config)
    scores = fields.pop("attention.scale")
    fields.only("expert_count", 0)
    fields.only("expert_used_count", 0)
    fields.only("rope.scaling.finetuned", True)  # False: no rotary positions at all
    spec = TransformerSpec.from_fields(
        **sizes,
        **take_biases(config["tensor_names"]),
        rope=take_rope(fields, config, sizes["head_dim"]),
        scales=Scales(
            embedding=decimal(fields.pop("embedding_scale") or 1.0),
            attention=decimal(scores) if scores else sizes["head_dim"] ** -0.5,
            head=1.0 / decimal(fields.need("logit_scale")),
            residual=decimal(fields.pop("residual_scale") or 1.0),
        ),
    )
    fields.finish()
    return spec


def _keys(spec: TransformerSpec) -> dict[str, Any]:
    scales = spec.scales or Scales()
    return (
        size_fields(spec)
        | rope_fields(spec)
        | {
            "embedding_scale": scales.embedding,
            "attention.scale": scales.attention,
            "logit_scale": 1.0 / scales.head,
            "residual_scale": scales.residual,
        }
    )


GGUF = Family(
    ("gguf", _NAME),
    from_gguf,
    writer(_NAME, from_gguf, _keys),
    WEIGHTS,
    (("hf", "granite"),),
    examples=EXAMPLES,
    tables=rope_tables,
)
