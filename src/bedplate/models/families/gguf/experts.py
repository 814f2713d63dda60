"""What GGUF's architectures with experts share: the keys of their sizes, and families that differ in little else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.models.families.family import Family
from bedplate.models.families.fields import Fields
from bedplate.models.families.gguf.metadata import read, rope_fields, rope_tables, size_fields, take_rope, take_sizes
from bedplate.models.families.gguf.tensors import (
    ATTENTION,
    IGNORABLE,
    PRE_NORMS,
    QK_NORMS,
    ROUTER,
    decoder_rules,
    expert_rules,
)
from bedplate.models.families.gguf.writing import writer
from bedplate.models.families.weights import WeightMap
from bedplate.models.specs.transformer import Experts, TransformerSpec

WIDTH = "expert_feed_forward_length"


def take_experts(fields: Fields, size: int | None = None, **features: Any) -> Experts | None:
    """The experts; None where the file has none. size: of one, where the file need not say it; features: of the spec's
    part."""
    count, chosen, width = (fields.whole(name) or 0 for name in ("expert_count", "expert_used_count", WIDTH))
    if not count:
        return None
    return Experts(count, chosen, width or size or fields.size(WIDTH), **features)


def expert_fields(spec: TransformerSpec, width: str = WIDTH) -> dict[str, Any]:
    """The inverse. width: the key of an expert's size."""
    part = spec.experts
    if part is None:
        return {}
    return {"expert_count": part.count, "expert_used_count": part.per_token, width: part.feedforward_size}


def mixture(
    name: str,
    partner: str,
    examples: tuple[Mapping[str, Any], ...],
    *,
    width: str = WIDTH,
    renormalise: bool,
    needs_head: bool = False,
    **features: Any,
) -> Family:
    """An architecture with experts in every layer and norms of queries and keys. partner: its name in Hugging Face's
    format; width: the key of an expert's size; needs_head: as `writer` has it; features: of the spec."""

    def from_gguf(config: Mapping[str, Any]) -> TransformerSpec:
        fields = read(config, name)
        sizes = take_sizes(fields, config)
        part = take_experts(fields, None if width == WIDTH else sizes["feedforward_size"], renormalise=renormalise)
        rope = take_rope(fields, config, sizes["head_dim"])
        fields.finish()
        return TransformerSpec.from_fields(**sizes, rope=rope, experts=part, **features)

    def keys(spec: TransformerSpec) -> dict[str, Any]:
        return size_fields(spec) | rope_fields(spec) | expert_fields(spec, width)

    rules = (*decoder_rules(*ATTENTION, *QK_NORMS, *PRE_NORMS, *ROUTER), *expert_rules())
    return Family(
        ("gguf", name),
        from_gguf,
        writer(name, from_gguf, keys, needs_head=needs_head),
        WeightMap(rules, IGNORABLE),
        (("hf", partner),),
        examples=examples,
        tables=rope_tables,
    )
