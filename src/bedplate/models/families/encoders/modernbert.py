"""The modernbert family (https://arxiv.org/abs/2412.13663): layers that see all between layers that see a window, each
kind with rotary positions of its own; gated feed-forwards; a final norm in place of the first one; no biases."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from bedplate.models.families.decoders import PARTS, check_types
from bedplate.models.families.encoders.bert import ACTIVATIONS
from bedplate.models.families.encoders.labels import head, present, take_labels
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import (
    Field,
    Values,
    constant,
    flag,
    ignored,
    layers,
    named_value,
    only,
    real,
    size,
    whole,
    written,
)
from bedplate.models.families.fields import Fields
from bedplate.models.families.rope import FULL, SLIDING
from bedplate.models.families.weights import WeightMap, fused, halves, qkv_rows, renamed
from bedplate.models.specs.transformer import Activation, Classifier, MaskedHead, Rope, TransformerSpec

_THETAS = {FULL: ("global_rope_theta", 160_000.0), SLIDING: ("local_rope_theta", 10_000.0)}
_HF_NAMES = {ours: theirs for theirs, ours in ACTIVATIONS.items()}

WEIGHTS = WeightMap(
    rules=(
        renamed("embedding.weight", "embeddings.tok_embeddings.weight"),
        *(renamed(f"embedding_norm.{part}", f"embeddings.norm.{part}") for part in PARTS),
        *(
            rule
            for part in PARTS
            for rule in (
                renamed(f"layers.{{i}}.attention_norm.{part}", f"layers.{{i}}.attn_norm.{part}"),
                fused(
                    tuple(f"layers.{{i}}.attention.{name}.{part}" for name in "qkv"),
                    f"layers.{{i}}.attn.Wqkv.{part}",
                    qkv_rows,
                ),
                renamed(f"layers.{{i}}.attention.o.{part}", f"layers.{{i}}.attn.Wo.{part}"),
                renamed(f"layers.{{i}}.feedforward_norm.{part}", f"layers.{{i}}.mlp_norm.{part}"),
                # The first half goes through the activation.
                fused(
                    tuple(f"layers.{{i}}.feedforward.{name}.{part}" for name in ("gate", "up")),
                    f"layers.{{i}}.mlp.Wi.{part}",
                    halves,
                ),
                renamed(f"layers.{{i}}.feedforward.down.{part}", f"layers.{{i}}.mlp.Wo.{part}"),
            )
        ),
        *(renamed(f"norm.{part}", f"final_norm.{part}") for part in PARTS),
        *(renamed(f"classifier.dense.{part}", f"head.dense.{part}") for part in PARTS),
        *(renamed(f"classifier.norm.{part}", f"head.norm.{part}") for part in PARTS),
        *(renamed(f"classifier.out.{part}", f"classifier.{part}") for part in PARTS),
        *(renamed(f"masked_head.dense.{part}", f"head.dense.{part}") for part in PARTS),
        *(renamed(f"masked_head.norm.{part}", f"head.norm.{part}") for part in PARTS),
        renamed("masked_head.bias", "decoder.bias"),
    ),
    # The head of pretraining and a classifier have a `head` of the same names; `decoder` is the token table once more.
    ignorable=(r"head\..*", r"decoder\..*"),
    prefixes=("model.",),
    heads=("head.", "classifier.", "decoder."),
)


_TINY: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
    "local_attention": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
EXAMPLES = (_TINY, _TINY | {"num_hidden_layers": 2, "attention_bias": True, "mlp_bias": True, "norm_bias": True})


def _read_windows(fields: Fields, values: Values) -> Values:
    """The window of each layer: as its type says, or all but every so manieth one have it, from the first on."""
    count, window = values["layers"], fields.whole("local_attention", 128)
    interval = fields.whole("global_attn_every_n_layers", 3, null=3)
    types = fields.sequence("layer_types")
    if types is None:
        types = [SLIDING if layer % interval else FULL for layer in range(count)]
    check_types(types, count, (FULL, SLIDING), fields.origin)
    return {"windows": tuple(window if layer_type == SLIDING else None for layer_type in types)}


def _window_fields(flat: Values, spec: TransformerSpec) -> Values:
    windows = [spec.window(layer) for layer in range(spec.layers)]
    return {
        "layer_types": [FULL if window is None else SLIDING for window in windows],
        "local_attention": next((window for window in windows if window is not None), 128),
    }


def _read_ropes(fields: Fields, values: Values) -> Values:
    """Both spellings: `rope_parameters` by layer type (transformers 5), `global_` and `local_rope_theta` (before)."""
    parameters = Fields(fields.part("rope_parameters"), f"{fields.origin} rope_parameters")
    fields.only("rope_scaling", None)
    ropes: list[Rope] = []
    for layer_type, (older, default) in _THETAS.items():
        theta = fields.real(older)
        nested = Fields(parameters.part(layer_type), f"{fields.origin} rope_parameters.{layer_type}")
        nested.only("rope_type", "default")
        ropes.append(Rope(nested.real("rope_theta", default if theta is None else theta)))
        nested.finish()
    parameters.finish()
    return {"rope": ropes[0], "local_rope": ropes[1]}


def _rope_fields(flat: Values, spec: TransformerSpec) -> Values:
    ropes = {FULL: flat["rope"], SLIDING: flat["local_rope"] or flat["rope"]}
    by_type = {name: {"rope_type": "default", "rope_theta": rope.theta} for name, rope in ropes.items()}
    return {"rope_parameters": by_type}


def _activation(fields: Fields, name: str) -> Activation:
    text = fields.text(name, "gelu")
    Fields({name: text}, fields.origin).only(name, *ACTIVATIONS)
    return ACTIVATIONS[text]


def _read_classifier(fields: Fields, values: Values) -> Classifier:
    pooling = fields.text("classifier_pooling", "cls")
    Fields({"classifier_pooling": pooling}, fields.origin).only("classifier_pooling", "cls", "mean")
    return Classifier(
        **take_labels(fields),
        pooling="first" if pooling == "cls" else "mean",
        dense=True,
        dense_bias=fields.flag("classifier_bias", False),
        activation=_activation(fields, "classifier_activation"),
        norm=True,
    )


def _read_masked(fields: Fields, values: Values) -> MaskedHead:
    return MaskedHead(
        _activation(fields, "classifier_activation"),
        dense_bias=fields.flag("classifier_bias", False),
        bias=fields.flag("decoder_bias", True),
    )


def _head_fields(flat: Values, spec: TransformerSpec) -> Values:
    masked, classifier, config = flat["masked_head"], flat["classifier"], dict[str, Any]()
    if masked is not None:
        config["decoder_bias"] = masked.bias
    if classifier is not None and classifier.activation != "tanh":
        config["classifier_pooling"] = "cls" if classifier.pooling == "first" else "mean"
    last = masked if not config or "classifier_pooling" not in config else classifier
    if config and last is not None:
        config |= {"classifier_bias": last.dense_bias, "classifier_activation": _HF_NAMES[last.activation]}
    return config


def _with_masked_head(spec: TransformerSpec) -> TransformerSpec:
    return spec.with_(masked_head=MaskedHead(dense_bias=False))


def by_names(spec: TransformerSpec, names: Collection[str]) -> TransformerSpec:
    """Without the classifier that the files do not hold."""
    return present(spec, WEIGHTS, names)


_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
FIELDS = (
    constant(kind="encoder", norm="layer", final_norm=True, first_norm=False),
    written(**dict.fromkeys(_TOKENS)),  # its defaults lie outside a smaller vocabulary; the tokenizer's replace these
    size("vocab_size"),
    size("hidden_size"),
    layers("num_hidden_layers", "layers"),
    size("num_attention_heads", "heads"),
    Field(lambda _, values: {"kv_heads": values["heads"], "head_dim": values["hidden_size"] // values["heads"]}),
    size("intermediate_size", "feedforward_size"),
    whole("max_position_embeddings", "context_length", 8192),
    real("norm_eps", "norm_eps", 1e-5),
    flag("norm_bias", "norm_bias", False),
    Field(_read_ropes, _rope_fields),
    Field(_read_windows, _window_fields),
    named_value("hidden_activation", "activation", "gelu", ACTIVATIONS),
    flag("attention_bias", "attention_bias", False),
    flag("mlp_bias", "feedforward_bias", False),
    head("ModernBert", ("ModernBertModel",), _read_classifier, _read_masked),
    Field(write=_head_fields),
    only("position_embedding_type", "absolute", "rope"),
    # Training's dropout and first values, how its kernels are to run, and the heads of pretraining and classifiers.
    ignored("embedding_dropout", "mlp_dropout", "classifier_dropout", "initializer_cutoff_factor"),
    ignored("deterministic_flash_attn", "reference_compile", "repad_logits_with_grad", "sparse_prediction"),
    ignored("sparse_pred_ignore_index", "decoder_bias", "num_labels", "classifier_pooling", "classifier_bias"),
    ignored("classifier_activation", "layer_norm_eps"),
)

HF = hf_family(
    "modernbert",
    "ModernBertModel",
    FIELDS,
    weights=WEIGHTS,
    by_names=by_names,
    examples=EXAMPLES,
    with_masked_head=_with_masked_head,
)
