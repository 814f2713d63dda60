"""The mistral family (https://arxiv.org/abs/2310.06825): Hugging Face's `MistralForCausalLM`. Llama, every layer with
one window, where it has any.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.models.families.decoders import (
    ATTENTION,
    GATED,
    IGNORABLE,
    LLAMA_NORMS,
    TINY,
    decoder_rules,
    one_window,
    plain_fields,
    size_fields,
    take_plain,
    take_sizes,
)
from bedplate.models.families.family import Family
from bedplate.models.families.fields import HF_BOOKKEEPING, Fields
from bedplate.models.families.weights import WeightMap
from bedplate.models.specs.transformer import TransformerSpec

_ORIGIN = "config.json (mistral)"

HF_WEIGHTS = WeightMap(decoder_rules(*ATTENTION, *GATED, *LLAMA_NORMS), IGNORABLE)
EXAMPLES = (
    {**TINY, "sliding_window": 7},
    {**TINY, "head_dim": 16, "num_key_value_heads": 6, "sliding_window": None, "tie_word_embeddings": True},
)


def from_hf(config: Mapping[str, Any]) -> TransformerSpec:
    """`config.json` of a MistralForCausalLM → spec."""
    return read_mistral(Fields(config, _ORIGIN), _ORIGIN, window=4096)


def read_mistral(
    fields: Fields, origin: str, window: int | None, eps: float = 1e-6, **defaults: Any
) -> TransformerSpec:
    """The fields that Mistral's families have in common."""
    sizes = take_sizes(fields, context=131_072, **defaults)
    fields.ignore((*HF_BOOKKEEPING, "attention_dropout"))
    spec = TransformerSpec.from_fields(
        **sizes,
        **take_plain(fields, origin, sizes["context_length"], eps=eps),
        windows=one_window(fields.optional("sliding_window", window)),
    )
    fields.finish()
    return spec


def to_hf(spec: TransformerSpec) -> dict[str, Any]:
    """Spec → the `config.json` that transformers loads."""
    return size_fields(spec, "mistral", "MistralForCausalLM") | mistral_fields(spec)


def mistral_fields(spec: TransformerSpec) -> dict[str, Any]:
    """The inverse of `read_mistral`, without the sizes."""
    return {
        **plain_fields(spec),
        "sliding_window": spec.window(0),
    }


HF = Family(("hf", "mistral"), from_hf, to_hf, HF_WEIGHTS, (("gguf", "llama"),), examples=EXAMPLES)
