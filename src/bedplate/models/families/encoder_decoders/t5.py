"""The t5 family (T5, https://arxiv.org/abs/1910.10683; v1.1; Flan-T5, https://arxiv.org/abs/2210.11416): Hugging Face's
`T5ForConditionalGeneration`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bedplate.models.families.family import Family
from bedplate.models.families.fields import HF_BOOKKEEPING, Fields
from bedplate.models.families.weights import WeightMap, renamed
from bedplate.models.specs.encoder_decoder import EncoderDecoderSpec
from bedplate.models.specs.transformer import Activation, RelativeBias, Scales, TransformerSpec

_ORIGIN = "config.json (t5)"
_PLAIN = (("up", "wi"), ("down", "wo"))
_GATED = (("gate", "wi_0"), ("up", "wi_1"), ("down", "wo"))
_ACTIVATIONS: dict[str, Activation] = {"relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh", "silu": "silu"}
_HEAD = "lm_head.weight"
_HINTS = ("dropout_rate", "classifier_dropout", "initializer_factor", "task_specific_params", "output_past", "prefix")


def _weights(feedforward: Sequence[tuple[str, str]]) -> WeightMap:
    sides = (("encoder", ("attention",)), ("decoder", ("attention", "cross")))
    rules = [renamed("embedding.weight", "shared.weight")]
    for side, attentions in sides:
        block = f"{side}.block.{{i}}.layer"
        for at, name in enumerate(attentions):
            theirs = "SelfAttention" if name == "attention" else "EncDecAttention"
            rules.append(renamed(f"{side}.layers.{{i}}.{name}_norm.weight", f"{block}.{at}.layer_norm.weight"))
            rules += [
                renamed(f"{side}.layers.{{i}}.{name}.{projection}.weight", f"{block}.{at}.{theirs}.{projection}.weight")
                for projection in "qkvo"
            ]
        last = f"{block}.{len(attentions)}"
        rules.append(renamed(f"{side}.layers.{{i}}.feedforward_norm.weight", f"{last}.layer_norm.weight"))
        rules += [
            renamed(f"{side}.layers.{{i}}.feedforward.{ours}.weight", f"{last}.DenseReluDense.{theirs}.weight")
            for ours, theirs in feedforward
        ]
        bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        rules.append(renamed(f"{side}.relative_positions.weight", bias))
        rules.append(renamed(f"{side}.norm.weight", f"{side}.final_layer_norm.weight"))
    return WeightMap(
        rules=(*rules, renamed("lm_head.weight", _HEAD)),
        # A table that the first files held and that no layer reads.
        ignorable=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
        copies=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
    )


# What is read may be either.
HF_WEIGHTS, _HF_GATED, _HF_PLAIN = _weights((*_GATED, _PLAIN[0])), _weights(_GATED), _weights(_PLAIN)


def weights_of(spec: EncoderDecoderSpec) -> WeightMap:
    """By whether the feed-forward is gated."""
    return _HF_GATED if spec.decoder.feedforward.gated else _HF_PLAIN


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
    return HF_WEIGHTS if gated or not any(".feedforward.up." in name for name in names) else _HF_PLAIN


def from_hf(config: Mapping[str, Any]) -> EncoderDecoderSpec:
    """`config.json` → spec."""
    fields = Fields(config, _ORIGIN)
    gated, activation = _feedforward(fields)
    hidden, heads = fields.size("d_model"), fields.size("num_heads")
    # Version 5 of transformers writes the one, earlier ones the other; files of T5 itself neither.
    tied = fields.flag("tie_word_embeddings", True)
    scaled = fields.flag("scale_decoder_outputs", tied)
    fields.only("is_decoder", False)
    fields.ignore((*HF_BOOKKEEPING, *_HINTS))
    layers = fields.layers("num_layers")
    deep = fields.layers("num_decoder_layers", layers)
    buckets = fields.whole("relative_attention_num_buckets", 32)
    common: dict[str, Any] = {
        "vocab_size": fields.size("vocab_size"),
        "hidden_size": hidden,
        "heads": heads,
        "kv_heads": heads,
        "head_dim": fields.size("d_kv"),
        "feedforward_size": fields.size("d_ff"),
        "context_length": fields.whole("n_positions", 512),
        "norm_eps": fields.real("layer_norm_epsilon", 1e-6),
        "activation": activation,
        "gated": gated,
        "tied_head": tied,
        "position_rows": 0,
        "relative_bias": RelativeBias(buckets, fields.whole("relative_attention_max_distance", 128)),
        "embedding_norm": False,
        "final_norm": True,
        "scales": Scales(attention=1.0, head=hidden**-0.5 if scaled else 1.0),
    }
    fields.finish()
    encoder = TransformerSpec.from_fields(kind="encoder", layers=layers, **common)
    return EncoderDecoderSpec(
        encoder, TransformerSpec.from_fields(kind="decoder", layers=deep, cross_size=hidden, **common), True
    )


def _feedforward(fields: Fields) -> tuple[bool, Activation]:
    """Whether it is gated, and by what. "gated-gelu" has always meant the approximation by tanh."""
    hf_name = fields.text("feed_forward_proj", "relu")
    gated = hf_name.startswith("gated-")
    name = "gelu_new" if hf_name == "gated-gelu" else hf_name.removeprefix("gated-")
    Fields({"feed_forward_proj": name}, _ORIGIN).only("feed_forward_proj", *_ACTIVATIONS)
    fields.only("is_gated_act", gated)
    fields.only("dense_act_fn", name)
    return gated, _ACTIVATIONS[name]


def by_names(spec: EncoderDecoderSpec, names: Collection[str]) -> EncoderDecoderSpec:
    """With a head of its own where the files hold one and it is not T5's own, which scales what the table reads."""
    scaled = (spec.decoder.scales or Scales()).head != 1
    tied = _HEAD not in names or scaled
    return replace(spec, encoder=spec.stack.with_(tied_head=tied), decoder=spec.decoder.with_(tied_head=tied))


def to_hf(spec: EncoderDecoderSpec) -> dict[str, Any]:
    """Spec → the `config.json` that transformers loads."""
    encoder, decoder = spec.stack, spec.decoder
    bias, scaled = decoder.position.relative_bias or RelativeBias(), (decoder.scales or Scales()).head != 1
    name = next(name for name, ours in _ACTIVATIONS.items() if ours == decoder.feedforward.activation)
    hf_name = f"gated-{'gelu' if name == 'gelu_new' else name}" if decoder.feedforward.gated else name
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": spec.vocab_size,
        "d_model": spec.hidden_size,
        "d_kv": decoder.attention.head_dim,
        "d_ff": decoder.feedforward.size,
        "num_layers": encoder.layers,
        "num_decoder_layers": decoder.layers,
        "num_heads": decoder.attention.heads,
        "n_positions": spec.context_length,
        "layer_norm_epsilon": decoder.norm.eps,
        "feed_forward_proj": hf_name,
        "relative_attention_num_buckets": bias.buckets,
        "relative_attention_max_distance": bias.max_distance,
        "scale_decoder_outputs": scaled,
        "tie_word_embeddings": decoder.tied_head,
    }


HF = Family(
    ("hf", "t5"),
    from_hf,
    to_hf,
    HF_WEIGHTS,
    (("gguf", "t5"),),
    by_names=by_names,
    examples=EXAMPLES,
    weights_of=weights_of,
    weights_by=weights_by,
)
