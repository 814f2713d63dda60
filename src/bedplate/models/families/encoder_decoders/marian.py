"""The marian family (OPUS-MT translators, https://aclanthology.org/P18-4020): Hugging Face's `MarianMTModel`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.models.families.encoder_decoders.two_stacks import TINY, by_names, config_of, take_sides, weight_map
from bedplate.models.families.family import Family
from bedplate.models.families.fields import Fields
from bedplate.models.families.weights import WeightMap
from bedplate.models.specs.encoder_decoder import EncoderDecoderSpec

# Older files hold the tables of positions, which follow from the formula.
_TABLES = (r"model\.(encoder|decoder)\.embed_positions\.weight",)
HF_WEIGHTS, _TWO_VOCABULARIES = weight_map({}, _TABLES), weight_map({}, _TABLES, shared=False)

# Published files start with the padding, whose row transformers does not train.
_STARTS = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 2, "forced_eos_token_id": None}
EXAMPLES = (
    TINY
    | _STARTS
    | {"d_model": 16, "scale_embedding": True, "activation_function": "swish", "encoder_attention_heads": 2},
    TINY | _STARTS | {"d_model": 20, "encoder_layers": 1},
    TINY | _STARTS | {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 72},
    TINY
    | _STARTS
    | {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 104, "tie_word_embeddings": False},
)


def weights_of(spec: EncoderDecoderSpec) -> WeightMap:
    """By whether both sides read one token table."""
    return HF_WEIGHTS if spec.shared_embedding else _TWO_VOCABULARIES


def from_hf(config: Mapping[str, Any]) -> EncoderDecoderSpec:
    """`config.json` → spec, without a bias of the head: see `by_names`."""
    origin = "config.json (marian)"
    fields = Fields(config, origin)
    fields.only("static_position_embeddings", True)
    fields.only("normalize_embedding", False)
    words: int | None = None
    if fields.flag("share_encoder_decoder_embeddings", True):
        fields.only("decoder_vocab_size", config.get("vocab_size"))
    else:
        words = fields.whole("decoder_vocab_size") or fields.size("vocab_size")
    return take_sides(fields, origin, None, words, sinusoids=True, embedding_norm=False)


def to_hf(spec: EncoderDecoderSpec) -> dict[str, Any]:
    """Spec → the `config.json` that transformers loads."""
    marian_fields = {"static_position_embeddings": True, "share_encoder_decoder_embeddings": spec.shared_embedding}
    return config_of(spec, "marian", "MarianMTModel") | marian_fields | {"decoder_vocab_size": spec.vocab_size}


HF = Family(("hf", "marian"), from_hf, to_hf, HF_WEIGHTS, by_names=by_names, examples=EXAMPLES, weights_of=weights_of)
