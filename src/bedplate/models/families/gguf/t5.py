"""GGUF files of architecture t5: T5, v1.1 and Flan. llama.cpp's graph of it (`src/models/t5*.cpp`) is the reference,
but for the first T5's head, which it does not scale: every logit is there √d times what it is here."""

from __future__ import annotations

import re
from typing import Any

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.families.encoder_decoders import t5 as hf
from bedplate.models.families.family import Family
from bedplate.models.families.field_map import Field, FieldMap, Values
from bedplate.models.families.gguf.metadata import Metadata, decimal, named, uniform
from bedplate.models.families.weights import WeightMap, renamed
from bedplate.models.specs.encoder_decoder import EncoderDecoderSpec
from bedplate.models.specs.transformer import RelativeBias, Scales

_NAME = "t5"
_MAX_DISTANCE = 128
"""Distance that the relative bias tells apart at most: a constant of llama.cpp's graph."""
_GATE = "dec.blk.0.ffn_gate.weight"
_SIDES = (("encoder", "enc"), ("decoder", "dec"))


def _weights() -> WeightMap:
    rules = [renamed("embedding.weight", "token_embd.weight")]
    for ours, theirs in _SIDES:
        parts = {
            **{f"attention.{projection}": f"attn_{projection}" for projection in "qkvo"},
            **{f"feedforward.{product_name}": f"ffn_{product_name}" for product_name in ("gate", "up", "down")},
            "attention_norm": "attn_norm",
            "feedforward_norm": "ffn_norm",
        }
        if ours == "decoder":
            parts |= {f"cross.{cross_projection}": f"cross_attn_{cross_projection}" for cross_projection in "qkvo"} | {
                "cross_norm": "cross_attn_norm"
            }
        rules += [
            renamed(f"{ours}.layers.{{i}}.{our_part}.weight", f"{theirs}.blk.{{i}}.{their_part}.weight")
            for our_part, their_part in parts.items()
        ]
        rules.append(renamed(f"{ours}.relative_positions.weight", f"{theirs}.blk.0.attn_rel_b.weight"))
        rules.append(renamed(f"{ours}.norm.weight", f"{theirs}.output_norm.weight"))
    # A table that some converters keep and that no layer reads.
    unread = re.escape("dec.blk.0.cross_attn_rel_b.weight")
    return WeightMap((*rules, renamed("lm_head.weight", "output.weight")), (unread,))


def _read(fields: Metadata, values: Values) -> Values:
    hidden, heads = fields.size("embedding_length"), uniform(fields, "attention.head_count")
    head_dim = fields.whole("attention.key_length") or hidden // heads
    fields.only("attention.value_length", head_dim)
    fields.only("attention.head_count_kv", heads)
    eps = decimal(fields.real("attention.layer_norm_rms_epsilon", 1e-6))
    # Some converters write the same number under both names.
    fields.ignore(("attention.layer_norm_epsilon", "vocab_size", "decoder_start_token_id"))
    tied, gated = "output.weight" not in fields.names, _GATE in fields.names
    depth = fields.layers("block_count")
    return {
        "vocab_size": fields.token_rows,
        "hidden_size": hidden,
        "layers": depth,
        "decoder_layers": fields.whole("decoder_block_count") or depth,
        "heads": heads,
        "kv_heads": heads,
        "head_dim": head_dim,
        "feedforward_size": uniform(fields, "feed_forward_length"),
        "context_length": fields.size("context_length"),
        "norm_eps": eps,
        "activation": "gelu_tanh" if gated else "relu",
        "gated": gated,
        "tied_head": tied,
        "relative_bias": RelativeBias(fields.size("attention.relative_buckets_count"), _MAX_DISTANCE),
        # The first T5 scales what its table reads; v1.1, which has gates, does not, tied or not.
        "scales": Scales(attention=1.0, head=hidden**-0.5 if tied and not gated else 1.0),
    }


def _write(flat: Values, spec: EncoderDecoderSpec) -> Values:
    return {
        "vocab_size": spec.vocab_size,
        "context_length": spec.context_length,
        "embedding_length": spec.hidden_size,
        "feed_forward_length": flat["feedforward_size"],
        "block_count": spec.stack.layers,
        "decoder_block_count": flat["layers"],
        "attention.head_count": flat["heads"],
        "attention.key_length": flat["head_dim"],
        "attention.value_length": flat["head_dim"],
        "attention.layer_norm_epsilon": flat["norm_eps"],
        "attention.layer_norm_rms_epsilon": flat["norm_eps"],
        "attention.relative_buckets_count": (flat["relative_bias"] or RelativeBias()).buckets,
    }


FIELD_MAP = FieldMap(lambda config: Metadata(config, _NAME), (Field(_read, _write), hf.T5), hf.two_stacks)


def to_gguf(spec: EncoderDecoderSpec) -> dict[str, Any]:
    """Metadata. UnsupportedModelError, naming it, for what the format has no key for."""
    encoder, decoder = spec.stack, spec.decoder
    metadata = named(_NAME, FIELD_MAP.to_config(spec))
    presence = {"output.weight": not decoder.tied_head, _GATE: decoder.feedforward.gated}
    names = {name for name, is_there in presence.items() if is_there}
    restored = FIELD_MAP.to_spec({**metadata, "tensor_names": names, "embedding_rows": spec.vocab_size})
    for original, read_back in ((encoder, restored.stack), (decoder, restored.decoder)):
        stored, meant = read_back.key(), original.key()
        different = next((field for field in (meant | stored) if stored.get(field) != meant.get(field)), None)
        if different is not None:
            raise UnsupportedModelError(
                f"GGUF's {_NAME} cannot say that the {original.kind}'s {different} is "
                f"{original.flat()[different]!r}: it would be {read_back.flat()[different]!r}. Export a Hugging Face "
                "directory instead"
            )
    return metadata


WEIGHTS = _weights()
GGUF = Family(
    ("gguf", _NAME),
    FIELD_MAP.to_spec,
    to_gguf,
    WEIGHTS,
    (("hf", "t5"),),
    examples=tuple(example | {"relative_attention_max_distance": _MAX_DISTANCE} for example in hf.EXAMPLES),
    whole=("attn_rel_b.weight",),
)
