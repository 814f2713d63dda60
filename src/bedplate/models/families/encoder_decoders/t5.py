"""The t5 family (T5, https://arxiv.org/abs/1910.10683; v1.1; Flan-T5, https://arxiv.org/abs/2210.11416): Hugging Face's
`T5ForConditionalGeneration`.

llama.cpp's graph (`src/models/t5*.cpp`) is the reference of GGUF's `t5`, but for the first T5's head, which it does not
scale: every logit is there √d times what it is here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from bedplate.models.families import field_map as row
from bedplate.models.families import gguf_metadata as gguf
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import Field, Values
from bedplate.models.families.fields import Fields
from bedplate.models.families.gguf_family import gguf_family
from bedplate.models.families.weights import LAYER, WeightMap, renames
from bedplate.models.specs.encoder_decoder import EncoderDecoderSpec
from bedplate.models.specs.parts import Activation
from bedplate.models.specs.position import RelativeBias
from bedplate.models.specs.transformer import Scales, TransformerSpec

_PLAIN = (("up", "wi"), ("down", "wo"))
_GATED = (("gate", "wi_0"), ("up", "wi_1"), ("down", "wo"))
_ACTIVATIONS: dict[str, Activation] = {"relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh", "silu": "silu"}
_HEAD = "lm_head.weight"
_HINTS = ("dropout_rate", "classifier_dropout", "initializer_factor", "task_specific_params", "output_past", "prefix")


def _weights(feedforward: Sequence[tuple[str, str]]) -> WeightMap:
    pairs = [("embedding", "shared"), ("lm_head", "lm_head")]
    attentions = (("attention", "SelfAttention"), ("cross", "EncDecAttention"))
    for side, count in (("encoder", 1), ("decoder", 2)):
        ours, theirs = f"{side}.{LAYER}", f"{side}.block.{{i}}.layer"
        for at, (name, attention) in enumerate(attentions[:count]):
            pairs.append((f"{ours}{name}_norm", f"{theirs}.{at}.layer_norm"))
            pairs += [(f"{ours}{name}.{part}", f"{theirs}.{at}.{attention}.{part}") for part in "qkvo"]
        pairs.append((f"{ours}feedforward_norm", f"{theirs}.{count}.layer_norm"))
        pairs += [(f"{ours}feedforward.{a}", f"{theirs}.{count}.DenseReluDense.{b}") for a, b in feedforward]
        pairs.append((f"{side}.relative_positions", f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias"))
        pairs.append((f"{side}.norm", f"{side}.final_layer_norm"))
    return WeightMap(
        tuple(renames(*pairs, parts=("weight",))),
        # A table that the first files held and that no layer reads.
        ignorable=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
        copies=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
    )


# What is read may be either.
WEIGHTS, _GATED_WEIGHTS, _PLAIN_WEIGHTS = _weights((*_GATED, _PLAIN[0])), _weights(_GATED), _weights(_PLAIN)


_TINY: dict[str, Any] = {
    "vocab_size": 96,
    "d_model": 32,
    "d_kv": 6,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 12,
    "relative_attention_max_distance": 16,
    "decoder_start_token_id": 0,
}
EXAMPLES = (
    _TINY | {"num_decoder_layers": 3},
    _TINY | {"d_kv": 4, "num_heads": 6, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
)


def weights_by(names: Collection[str]) -> WeightMap:
    """By whether there is a gate among them, or nothing of the feed-forward's first part."""
    gated = any(".feedforward.gate." in name for name in names)
    return WEIGHTS if gated or not any(".feedforward.up." in name for name in names) else _PLAIN_WEIGHTS


def _read_depths(fields: Fields, values: Values) -> Values:
    depth = fields.layers("num_layers")
    return {"layers": depth, "decoder_layers": fields.layers("num_decoder_layers", depth)}


def _read_feedforward(fields: Fields, values: Values) -> Values:
    """Whether it is gated, and by what. "gated-gelu" has always meant the approximation by tanh."""
    text = fields.text("feed_forward_proj", "relu")
    gated = text.startswith("gated-")
    name = "gelu_new" if text == "gated-gelu" else text.removeprefix("gated-")
    Fields({"feed_forward_proj": name}, fields.origin).only("feed_forward_proj", *_ACTIVATIONS)
    fields.only("is_gated_act", gated)
    fields.only("dense_act_fn", name)
    return {"gated": gated, "activation": _ACTIVATIONS[name]}


def _feedforward_fields(flat: Values, spec: EncoderDecoderSpec) -> Values:
    name = next(name for name, ours in _ACTIVATIONS.items() if ours == flat["activation"])
    gate = f"gated-{'gelu' if name == 'gelu_new' else name}"
    return {"feed_forward_proj": gate if flat["gated"] else name}


def _read_scales(fields: Fields, values: Values) -> Values:
    # Version 5 of transformers writes the one, earlier ones the other; files of T5 itself neither.
    scaled = fields.flag("scale_decoder_outputs", values["tied_head"])
    return {"scales": Scales(attention=1.0, head=values["hidden_size"] ** -0.5 if scaled else 1.0)}


T5 = row.constant(position_rows=0, embedding_norm=False, final_norm=True)


def two_stacks(*, layers: int, decoder_layers: int, **common: Any) -> EncoderDecoderSpec:
    """The spec of two stacks that have all but their depths in common, and one token table."""
    encoder = TransformerSpec.from_fields(kind="encoder", layers=layers, **common)
    cross_size = common["hidden_size"]
    decoder = TransformerSpec.from_fields(kind="decoder", layers=decoder_layers, cross_size=cross_size, **common)
    return EncoderDecoderSpec(encoder, decoder, shared_embedding=True)


def by_names(spec: EncoderDecoderSpec, names: Collection[str]) -> EncoderDecoderSpec:
    """With a head of its own where the files hold one and it is not T5's own, which scales what the table reads."""
    scaled = (spec.decoder.scales or Scales()).head != 1
    tied = _HEAD not in names or scaled
    return replace(spec, encoder=spec.stack.with_(tied_head=tied), decoder=spec.decoder.with_(tied_head=tied))


FIELDS = (
    row.written(is_encoder_decoder=True),
    T5,
    row.size("vocab_size"),
    row.size("d_model", "hidden_size"),
    row.size("d_kv", "head_dim"),
    row.size("d_ff", "feedforward_size"),
    Field(_read_depths, lambda _, spec: {"num_layers": spec.stack.layers, "num_decoder_layers": spec.decoder.layers}),
    row.size("num_heads", "heads"),
    Field(lambda _, values: {"kv_heads": values["heads"]}),
    row.whole("n_positions", "context_length", 512),
    row.real("layer_norm_epsilon", "norm_eps", 1e-6),
    Field(_read_feedforward, _feedforward_fields),
    row.part(
        "relative_bias",
        RelativeBias,
        row.whole("relative_attention_num_buckets", "buckets", 32),
        row.whole("relative_attention_max_distance", "max_distance", 128),
    ),
    row.flag("tie_word_embeddings", "tied_head", True),
    Field(_read_scales, lambda flat, _: {"scale_decoder_outputs": (flat["scales"] or Scales()).head != 1}),
    row.only("is_decoder", False),
    row.ignored(*_HINTS),
)

HF = hf_family(
    "t5",
    "T5ForConditionalGeneration",
    FIELDS,
    "t5",
    weights=WEIGHTS,
    make=two_stacks,
    by_names=by_names,
    examples=EXAMPLES,
    weights_of=lambda spec: _GATED_WEIGHTS if spec.decoder.feedforward.gated else _PLAIN_WEIGHTS,
    weights_by=weights_by,
)

# --- GGUF

_MAX_DISTANCE = 128
"""Distance that the relative bias tells apart at most: a constant of llama.cpp's graph."""


def _gguf_weights() -> WeightMap:
    parts = [(f"attention.{name}", f"attn_{name}") for name in "qkvo"]
    parts += [(f"feedforward.{name}", f"ffn_{name}") for name in ("gate", "up", "down")]
    parts += [("attention_norm", "attn_norm"), ("feedforward_norm", "ffn_norm"), ("cross_norm", "cross_attn_norm")]
    parts += [(f"cross.{name}", f"cross_attn_{name}") for name in "qkvo"]
    pairs = [("embedding", "token_embd"), ("lm_head", "output")]
    for ours, theirs in (("encoder", "enc"), ("decoder", "dec")):
        pairs += [(f"{ours}.{LAYER}{a}", f"{theirs}.blk.{{i}}.{b}") for a, b in parts]
        pairs.append((f"{ours}.relative_positions", f"{theirs}.blk.0.attn_rel_b"))
        pairs.append((f"{ours}.norm", f"{theirs}.output_norm"))
    # A table that some converters keep and that no layer reads.
    return WeightMap(tuple(renames(*pairs, parts=("weight",))), (re.escape("dec.blk.0.cross_attn_rel_b.weight"),))


def _read_metadata(fields: gguf.Metadata, values: Values) -> Values:
    # Some converters write the same number under both names.
    fields.ignore(("attention.layer_norm_epsilon", "decoder_start_token_id"))
    is_gated = "dec.blk.0.ffn_gate.weight" in fields.names
    return {
        "decoder_layers": fields.whole("decoder_block_count") or values["layers"],
        "activation": "gelu_tanh" if is_gated else "relu",
        "gated": is_gated,
        "relative_bias": RelativeBias(fields.size("attention.relative_buckets_count"), _MAX_DISTANCE),
        # The first T5 scales what its table reads; v1.1, which has gates, does not, tied or not.
        "scales": Scales(
            attention=1.0, head=values["hidden_size"] ** -0.5 if values["tied_head"] and not is_gated else 1.0
        ),
    }


def _metadata_of(flat: Values, spec: EncoderDecoderSpec) -> Values:
    return {
        "block_count": spec.stack.layers,
        "decoder_block_count": flat["layers"],
        "attention.head_count_kv": None,
        "attention.layer_norm_epsilon": flat["norm_eps"],
        "attention.relative_buckets_count": (flat["relative_bias"] or RelativeBias()).buckets,
    }


GGUF = gguf_family(
    "t5",
    (gguf.SIZES, Field(_read_metadata, _metadata_of), T5),
    "t5",
    weights=_gguf_weights(),
    make=lambda kind, **fields: two_stacks(**fields),
    tables=lambda _: {},
    examples=tuple(example | {"relative_attention_max_distance": _MAX_DISTANCE} for example in EXAMPLES),
    whole=("attn_rel_b.weight",),
)
