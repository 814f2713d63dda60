"""GGUF's `qwen3moe`: the chosen experts' weights sum to one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.models.families.experts import qwen3_moe
from bedplate.models.families.family import Family
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

_NAME = "qwen3moe"

WEIGHTS = WeightMap((*decoder_rules(*ATTENTION, *QK_NORMS, *PRE_NORMS, *ROUTER), *expert_rules()), IGNORABLE)
EXAMPLES = (qwen3_moe.EXAMPLES[0], {**qwen3_moe.EXAMPLES[0], "num_key_value_heads": 6, "head_dim": 8, "num_experts": 4})


def from_gguf(config: Mapping[str, Any]) -> TransformerSpec:
    """Metadata → spec."""
    fields = read(config, _NAME)
    sizes = take_sizes(fields, config)
    count, chosen = int(fields.need("expert_count")), int(fields.need("expert_used_count"))
    size = int(fields.need("expert_feed_forward_length"))
    spec = TransformerSpec(
        **sizes,
        qk_norm="head",
        rope=take_rope(fields, config, sizes["head_dim"]),
        experts=Experts(count, chosen, size, renormalise=True),
    )
    fields.finish()
    return spec


def _keys(spec: TransformerSpec) -> dict[str, Any]:
    part = spec.experts
    assert part is not None
    own = {
        "expert_count": part.count,
        "expert_used_count": part.per_token,
        "expert_feed_forward_length": part.feedforward_size,
    }
    return size_fields(spec) | rope_fields(spec) | own


GGUF = Family(
    ("gguf", _NAME),
    from_gguf,
    writer(_NAME, from_gguf, _keys),
    WEIGHTS,
    (("hf", "qwen3_moe"),),
    examples=EXAMPLES,
    tables=rope_tables,
)
