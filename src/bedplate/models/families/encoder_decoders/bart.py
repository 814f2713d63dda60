"""The bart family (BART, https://arxiv.org/abs/1910.13461): Hugging Face's `BartForConditionalGeneration`."""

from __future__ import annotations

from bedplate.models.families.encoder_decoders.two_stacks import TINY, by_names, sides, two_sides, weight_map
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import only

OFFSET = 2
"""Rows of the tables of positions before the first token's: the class counts from its padding's number."""

WEIGHTS = weight_map(("position_embedding", "embed_positions"), ("embedding_norm", "layernorm_embedding"))

EXAMPLES = (
    TINY | {"encoder_layers": 2, "decoder_layers": 3, "scale_embedding": True},
    TINY | {"d_model": 48, "activation_function": "gelu_new", "decoder_attention_heads": 2},
)


FIELDS = (
    *sides(OFFSET, embedding_norm=True),
    only("static_position_embeddings", False),
    only("normalize_embedding", True),
    only("tie_word_embeddings", True, written=True),
)

HF = hf_family(
    "bart",
    "BartForConditionalGeneration",
    FIELDS,
    weights=WEIGHTS,
    make=two_sides,
    by_names=by_names,
    examples=EXAMPLES,
)
