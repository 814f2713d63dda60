"""The marian family (OPUS-MT translators, https://aclanthology.org/P18-4020): Hugging Face's `MarianMTModel`."""

from __future__ import annotations

from bedplate.models.families.encoder_decoders.bart import TINY, by_names, sides, two_sides, weight_map
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import Field, Values, only
from bedplate.models.families.fields import Fields
from bedplate.models.specs.encoder_decoder import EncoderDecoderSpec

# Older files hold the tables of positions, which follow from the formula.
_TABLES = (r"model\.(encoder|decoder)\.embed_positions\.weight",)
WEIGHTS, _TWO_VOCABULARIES = weight_map(ignorable=_TABLES), weight_map(ignorable=_TABLES, shared=False)

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


def _read_words(fields: Fields, values: Values) -> Values:
    """The tokens of the side that writes, where they have a table of their own, to which the head may be tied."""
    if fields.flag("share_encoder_decoder_embeddings", True):
        fields.only("decoder_vocab_size", values["vocab_size"])
        fields.only("tie_word_embeddings", True)
        return {}
    words = fields.whole("decoder_vocab_size") or values["vocab_size"]
    return {"target_words": words, "tied_head": fields.flag("tie_word_embeddings", True)}


def _word_fields(flat: Values, spec: EncoderDecoderSpec) -> Values:
    return {
        "share_encoder_decoder_embeddings": spec.shared_embedding,
        "decoder_vocab_size": spec.vocab_size,
        "tie_word_embeddings": flat["tied_head"],
    }


FIELDS = (
    *sides(None, sinusoids=True, embedding_norm=False),
    Field(_read_words, _word_fields),
    only("static_position_embeddings", True, written=True),
    only("normalize_embedding", False),
)

HF = hf_family(
    "marian",
    "MarianMTModel",
    FIELDS,
    weights=WEIGHTS,
    make=two_sides,
    by_names=by_names,
    examples=EXAMPLES,
    weights_of=lambda spec: WEIGHTS if spec.shared_embedding else _TWO_VOCABULARIES,
)
