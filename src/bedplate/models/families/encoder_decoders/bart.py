"""The bart family (BART, https://arxiv.org/abs/1910.13461): Hugging Face's `BartForConditionalGeneration`, and what its
kin share in their files: two post-norm stacks beside each other, and one token table, or one of each."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import Field, Values, constant, ignored, named_value, only, size, written
from bedplate.models.families.fields import Fields
from bedplate.models.families.weights import LAYER, Rule, WeightMap, renamed, renames
from bedplate.models.specs.encoder_decoder import EncoderDecoderSpec
from bedplate.models.specs.parts import Activation
from bedplate.models.specs.transformer import Scales, TransformerSpec

_LAYER = (
    *((f"attention.{ours}", f"self_attn.{ours}_proj") for ours in "qkv"),
    ("attention.o", "self_attn.out_proj"),
    ("attention_norm", "self_attn_layer_norm"),
    ("feedforward.up", "fc1"),
    ("feedforward.down", "fc2"),
    ("feedforward_norm", "final_layer_norm"),
)
_CROSS = (
    *((f"cross.{ours}", f"encoder_attn.{ours}_proj") for ours in "qkv"),
    ("cross.o", "encoder_attn.out_proj"),
    ("cross_norm", "encoder_attn_layer_norm"),
)
_SIDES = (("encoder", _LAYER), ("decoder", (*_LAYER, *_CROSS)))
_BIAS = "final_logits_bias"
_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
# Hints for training, and what says the same as another field.
_HINTS = (
    *("dropout", "attention_dropout", "activation_dropout", "classifier_dropout", "classif_dropout", "init_std"),
    *("encoder_layerdrop", "decoder_layerdrop", "num_hidden_layers", "task_specific_params", "output_past"),
    *("save_step", "num_labels", "prefix", "add_bias_logits", "extra_pos_embeddings", "replacing_rate"),
)

TINY: dict[str, Any] = {
    "vocab_size": 96,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 56,
    "max_position_embeddings": 64,
}


def weight_map(*front: tuple[str, str], ignorable: tuple[str, ...] = (), shared: bool = True) -> WeightMap:
    """front: what stands before the first block on each side, in our names and theirs. shared: one token table."""
    tables = {"embedding": "model.shared"}
    if not shared:
        tables = {"embedding": "model.encoder.embed_tokens", "target_embedding": "model.decoder.embed_tokens"}
    return WeightMap(
        rules=(
            *renames(*tables.items(), parts=("weight",)),
            *(rule for side, _ in _SIDES for rule in renames(*front, ours=f"{side}.", theirs=f"model.{side}.")),
            *(
                rule
                for side, names in _SIDES
                for rule in renames(*names, ours=f"{side}.{LAYER}", theirs=f"model.{side}.{LAYER}")
            ),
            Rule(("head_bias",), (_BIAS,), lambda bias, _: [bias[0][None]], lambda bias, _: [bias[0].reshape(-1)]),
            renamed("lm_head.weight", "lm_head.weight"),
        ),
        ignorable=ignorable,
        copies=tuple(f"model.{side}.embed_tokens.weight" for side, _ in _SIDES) if shared else (),
    )


def by_names(spec: EncoderDecoderSpec, names: Collection[str]) -> EncoderDecoderSpec:
    """With a bias of the head where the files hold one: the config says nothing of it."""
    return replace(spec, decoder=spec.decoder.with_(head_bias=_BIAS in names))


def _side(name: str) -> Field:
    """The fields of one side, which `two_sides` gets as a mapping of its name."""

    def read(fields: Fields, values: Values) -> Values:
        heads = fields.size(f"{name}_attention_heads")
        side = {
            "layers": fields.layers(f"{name}_layers"),
            "heads": heads,
            "kv_heads": heads,
            "head_dim": values["hidden_size"] // heads,
            "feedforward_size": fields.size(f"{name}_ffn_dim"),
        }
        return {name: side}

    def write(flat: Values, spec: EncoderDecoderSpec) -> Values:
        stack = getattr(spec, name)
        sizes = {"layers": stack.layers, "attention_heads": stack.attention.heads, "ffn_dim": stack.feedforward.size}
        return {f"{name}_{size}": value for size, value in sizes.items()}

    return Field(read, write)


def _scales(fields: Fields, values: Values) -> Values:
    scaled = fields.flag("scale_embedding", False)
    return {"scales": Scales(embedding=values["hidden_size"] ** 0.5) if scaled else None}


def _table(offset: int | None) -> Field:
    """The learned positions. offset: rows before that of the first token; None: there is no table."""

    def read(fields: Fields, values: Values) -> Values:
        context = fields.size("max_position_embeddings")
        rows = 0 if offset is None else context + offset
        return {"context_length": context, "position_rows": rows, "position_offset": offset or 0}

    return Field(read, lambda flat, spec: {"max_position_embeddings": spec.context_length})


def sides(offset: int | None, **features: Any) -> tuple[Field, ...]:
    """What BART and its kin have in common. offset: rows of the tables of positions before that of the first token,
    None without tables; features: of both stacks."""
    return (
        written(is_encoder_decoder=True),
        constant(norm="layer", norm_placement="post", gated=False, final_norm=False, **features),
        constant(attention_bias=True, feedforward_bias=True),
        size("d_model", "hidden_size"),
        Field(
            lambda fields, _: {"vocab_size": fields.size("vocab_size")},
            lambda flat, spec: {"vocab_size": spec.source_vocab_size},
        ),
        _table(offset),
        named_value("activation_function", "activation", "gelu", _ACTIVATIONS),
        Field(_scales, lambda flat, _: {"scale_embedding": (flat["scales"] or Scales()).embedding != 1}),
        _side("encoder"),
        _side("decoder"),
        only("normalize_before", False),
        only("add_final_layer_norm", False),
        only("is_decoder", False),
        ignored(*_HINTS),
    )


def two_sides(
    *,
    encoder: Mapping[str, Any],
    decoder: Mapping[str, Any],
    tied_head: bool = True,
    target_words: int | None = None,
    **common: Any,
) -> EncoderDecoderSpec:
    """The spec of two stacks. tied_head: the head is the decoder's table; target_words: tokens that it writes, if they
    have a table of their own."""
    reads = TransformerSpec.from_fields(kind="encoder", **common, **encoder)
    words = {"vocab_size": target_words or common["vocab_size"], "cross_size": common["hidden_size"]}
    writes = TransformerSpec.from_fields(**{**common, **decoder, **words}, kind="decoder", tied_head=tied_head)
    return EncoderDecoderSpec(reads, writes, shared_embedding=target_words is None)


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
