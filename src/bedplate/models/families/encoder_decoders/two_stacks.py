"""What BART and its kin share in Hugging Face's files: two post-norm stacks beside each other, and one token table, or
one of each."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from bedplate.models.families.fields import HF_BOOKKEEPING, Fields
from bedplate.models.families.weights import Rule, Tensors, WeightMap, renamed
from bedplate.models.specs.encoder_decoder import EncoderDecoderSpec
from bedplate.models.specs.transformer import Activation, Scales, TransformerSpec

PARTS = ("weight", "bias")
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


def _row(tensors: Tensors, spec: EncoderDecoderSpec) -> Tensors:
    return [tensor[None] for tensor in tensors]


def _vector(tensors: Tensors, spec: EncoderDecoderSpec) -> Tensors:
    return [tensor.reshape(-1) for tensor in tensors]


def weight_map(front: Mapping[str, str], ignorable: tuple[str, ...] = (), shared: bool = True) -> WeightMap:
    """front: what stands before the first block on each side, ours → theirs. shared: one token table for both."""
    tables = {"embedding": "model.shared"}
    if not shared:
        tables = {"embedding": "model.encoder.embed_tokens", "target_embedding": "model.decoder.embed_tokens"}
    return WeightMap(
        rules=(
            *(renamed(f"{ours}.weight", f"{theirs}.weight") for ours, theirs in tables.items()),
            *(
                renamed(f"{side}.{ours}", f"model.{side}.{theirs}")
                for side, _ in _SIDES
                for ours, theirs in front.items()
            ),
            *(
                renamed(f"{side}.layers.{{i}}.{ours}.{part}", f"model.{side}.layers.{{i}}.{theirs}.{part}")
                for side, names in _SIDES
                for ours, theirs in names
                for part in PARTS
            ),
            Rule(("head_bias",), (_BIAS,), _row, _vector),
            renamed("lm_head.weight", "lm_head.weight"),
        ),
        ignorable=ignorable,
        copies=tuple(f"model.{side}.embed_tokens.weight" for side, _ in _SIDES) if shared else (),
    )


def by_names(spec: EncoderDecoderSpec, names: Collection[str]) -> EncoderDecoderSpec:
    """With a bias of the head where the files hold one: the config says nothing of it."""
    return replace(spec, decoder=spec.decoder.with_(head_bias=_BIAS in names))


def take_sides(
    fields: Fields, origin: str, offset: int | None, target_words: int | None = None, **stack_fields: Any
) -> EncoderDecoderSpec:
    """The spec of a config, all of whose fields it takes. offset: rows of the tables of positions before that of the
    first token, None without tables. target_words: tokens that it writes, where they have a table of their own. stack_fields:
    of both stacks."""
    for name, usual in (("normalize_before", False), ("add_final_layer_norm", False)):
        fields.only(name, usual)
    if target_words is None:
        fields.only("tie_word_embeddings", True)
    # What is tied is the head to the decoder's table.
    tied = fields.flag("tie_word_embeddings", True)
    fields.only("is_decoder", False)
    activation = fields.text("activation_function", "gelu")
    Fields({"activation_function": activation}, origin).only("activation_function", *_ACTIVATIONS)
    fields.ignore((*HF_BOOKKEEPING, *_HINTS))
    words, hidden = fields.size("vocab_size"), fields.size("d_model")
    context = fields.size("max_position_embeddings")
    scaled = fields.flag("scale_embedding", False)
    positions = {"position_rows": 0} if offset is None else {"position_rows": context + offset}

    def side(name: str, words: int, **side_fields: Any) -> TransformerSpec:
        heads = fields.size(f"{name}_attention_heads")
        return TransformerSpec.from_fields(
            vocab_size=words,
            hidden_size=hidden,
            layers=fields.layers(f"{name}_layers"),
            heads=heads,
            kv_heads=heads,
            head_dim=hidden // heads,
            feedforward_size=fields.size(f"{name}_ffn_dim"),
            context_length=context,
            norm="layer",
            norm_placement="post",
            activation=_ACTIVATIONS[activation],
            gated=False,
            attention_bias=True,
            feedforward_bias=True,
            final_norm=False,
            scales=Scales(embedding=hidden**0.5) if scaled else None,
            position_offset=offset or 0,
            **positions,
            **stack_fields,
            **side_fields,
        )

    reads = side("encoder", words, kind="encoder")
    writes = side("decoder", target_words or words, kind="decoder", cross_size=hidden, tied_head=tied)
    fields.finish()
    return EncoderDecoderSpec(reads, writes, shared_embedding=target_words is None)


def config_of(spec: EncoderDecoderSpec, model_type: str, model_class: str) -> dict[str, Any]:
    """The `config.json` that transformers loads."""
    encoder, decoder = spec.stack, spec.decoder
    config: dict[str, Any] = {
        "architectures": [model_class],
        "model_type": model_type,
        "is_encoder_decoder": True,
        "vocab_size": spec.source_vocab_size,
        "d_model": spec.hidden_size,
        "max_position_embeddings": spec.context_length,
        "activation_function": next(
            name for name, ours in _ACTIVATIONS.items() if ours == decoder.feedforward.activation
        ),
        "scale_embedding": (decoder.scales or Scales()).embedding != 1,
        "tie_word_embeddings": decoder.tied_head,
    }
    for name, side in (("encoder", encoder), ("decoder", decoder)):
        config |= {
            f"{name}_layers": side.layers,
            f"{name}_attention_heads": side.attention.heads,
            f"{name}_ffn_dim": side.feedforward.size,
        }
    return config
