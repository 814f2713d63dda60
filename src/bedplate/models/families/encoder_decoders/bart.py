"""The bart family (BART, https://arxiv.org/abs/1910.13461): Hugging Face's `BartForConditionalGeneration`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.models.families.encoder_decoders.two_stacks import (
    PARTS,
    TINY,
    by_names,
    config_of,
    take_sides,
    weight_map,
)
from bedplate.models.families.family import Family
from bedplate.models.families.fields import Fields
from bedplate.models.specs.encoder_decoder import EncoderDecoderSpec

OFFSET = 2
"""Rows of the tables of positions before the first token's: the class counts from its padding's number."""

HF_WEIGHTS = weight_map(
    {"position_embedding.weight": "embed_positions.weight"}
    | {f"embedding_norm.{part}": f"layernorm_embedding.{part}" for part in PARTS}
)

EXAMPLES = (
    TINY | {"encoder_layers": 2, "decoder_layers": 3, "scale_embedding": True},
    TINY | {"d_model": 48, "activation_function": "gelu_new", "decoder_attention_heads": 2},
)


def from_hf(config: Mapping[str, Any]) -> EncoderDecoderSpec:
    """`config.json` → spec, without a bias of the head: see `by_names`."""
    origin = "config.json (bart)"
    fields = Fields(config, origin)
    fields.only("static_position_embeddings", False)
    fields.only("normalize_embedding", True)
    return take_sides(fields, origin, OFFSET, embedding_norm=True)


def to_hf(spec: EncoderDecoderSpec) -> dict[str, Any]:
    """Spec → the `config.json` that transformers loads."""
    return config_of(spec, "bart", "BartForConditionalGeneration")


HF = Family(("hf", "bart"), from_hf, to_hf, HF_WEIGHTS, by_names=by_names, examples=EXAMPLES)
