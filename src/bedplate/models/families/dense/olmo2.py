"""The olmo2 family (https://arxiv.org/abs/2501.00656): Hugging Face's `Olmo2ForCausalLM`. Norms of what attention and
feed-forward give, before it is added; queries and keys normalised over the whole projection.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.models.families.decoders import (
    ATTENTION,
    GATED,
    IGNORABLE,
    QK_NORMS,
    TINY,
    decoder_rules,
    plain_fields,
    size_fields,
    take_plain,
    take_sizes,
)
from bedplate.models.families.family import Family
from bedplate.models.families.fields import HF_BOOKKEEPING, Fields
from bedplate.models.families.weights import WeightMap
from bedplate.models.specs.transformer import TransformerSpec

_ORIGIN = "config.json (olmo2)"

BRANCH_NORMS = (("attention_norm", "post_attention_layernorm"), ("feedforward_norm", "post_feedforward_layernorm"))
HF_WEIGHTS = WeightMap(decoder_rules(*ATTENTION, *QK_NORMS, *GATED, *BRANCH_NORMS), IGNORABLE)
EXAMPLES = (
    dict(TINY),
    {**TINY, "num_key_value_heads": 6, "attention_bias": True, "tie_word_embeddings": True, "num_hidden_layers": 2},
)


def from_hf(config: Mapping[str, Any]) -> TransformerSpec:
    """`config.json` of an Olmo2ForCausalLM → spec."""
    fields = Fields(config, _ORIGIN)
    sizes = take_sizes(fields)
    fields.ignore((*HF_BOOKKEEPING, "attention_dropout"))
    spec = TransformerSpec.from_fields(
        **sizes,
        **take_plain(fields, _ORIGIN, sizes["context_length"], eps=1e-5),
        norm_placement="branch",
        qk_norm="projection",
        attention_bias=fields.flag("attention_bias", False),
    )
    fields.finish()
    return spec


def to_hf(spec: TransformerSpec) -> dict[str, Any]:
    """Spec → the `config.json` that transformers loads."""
    return size_fields(spec, "olmo2", "Olmo2ForCausalLM") | {
        **plain_fields(spec),
        "attention_bias": spec.attention.bias,
    }


HF = Family(("hf", "olmo2"), from_hf, to_hf, HF_WEIGHTS, (("gguf", "olmo2"),), examples=EXAMPLES)
