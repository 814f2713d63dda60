"""What GGUF's architectures with experts share: the keys of their sizes, and families that differ in little else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.models.families.family import Family
from bedplate.models.families.field_map import Field, Values, constant
from bedplate.models.families.gguf.metadata import SIZES, Metadata, rope
from bedplate.models.families.gguf.tensors import ATTENTION, PRE_NORMS, QK_NORMS, ROUTER, decoder_weights, expert_rules
from bedplate.models.families.gguf.writing import gguf_family
from bedplate.models.specs.transformer import Experts, TransformerSpec

WIDTH = "expert_feed_forward_length"


def experts(*, as_dense: bool = False, width: str = WIDTH, **features: Any) -> Field:
    """The experts, where the file has any. as_dense: they are of the feed-forward's size, where the file need not say
    another; width: the key under which their size is written; features: of the spec's part."""

    def read(fields: Metadata, values: Values) -> Values:
        size = values["feedforward_size"] if as_dense else None
        return {"experts": take_experts(fields, size, **features)}

    def write(flat: Values, spec: TransformerSpec) -> Values:
        part = flat["experts"]
        if part is None:
            return {}
        return {"expert_count": part.count, "expert_used_count": part.per_token, width: part.feedforward_size}

    return Field(read, write)


def take_experts(fields: Metadata, size: int | None = None, **features: Any) -> Experts | None:
    """The experts; None where the file has none. size: of one, where the file need not say it; features: of the spec's
    part."""
    count, chosen, width = (fields.whole(name) or 0 for name in ("expert_count", "expert_used_count", WIDTH))
    if not count:
        return None
    return Experts(count, chosen, width or size or fields.size(WIDTH), **features)


def mixture(
    name: str,
    partner: str,
    examples: tuple[Mapping[str, Any], ...],
    part: Field,
    *,
    needs_head: bool = False,
    **features: Any,
) -> Family:
    """An architecture with experts in every layer and norms of queries and keys. partner: its name in Hugging Face's
    format; part: of the experts; needs_head: as `gguf_family` has it; features: of the spec."""
    weights = decoder_weights(*ATTENTION, *QK_NORMS, *PRE_NORMS, *ROUTER, more=expert_rules())
    rows = (SIZES, part, rope(), constant(**features))
    return gguf_family(name, rows, weights, partner, examples=examples, needs_head=needs_head)
