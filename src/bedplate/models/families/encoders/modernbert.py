"""The modernbert family (https://arxiv.org/abs/2412.13663): layers that see all between layers that see a window, each
kind with rotary positions of its own; gated feed-forwards; a final norm in place of the first one; no biases."""

from __future__ import annotations

from typing import Any, Literal

from bedplate.models.families import field_map as row
from bedplate.models.families.decoders import check_types, multi_head_sizes
from bedplate.models.families.encoders.bert import ACTIVATIONS, TINY, head, present, take_labels
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import Field, Values
from bedplate.models.families.fields import Fields
from bedplate.models.families.rope import FULL, SLIDING
from bedplate.models.families.weights import LAYER, PARTS, WeightMap, fused, halves, qkv_rows, renamed, renames
from bedplate.models.specs.transformer import Classifier, MaskedHead, Rope, TransformerSpec

_THETAS = {FULL: ("global_rope_theta", 160_000.0), SLIDING: ("local_rope_theta", 10_000.0)}
_POOLINGS: dict[str, Literal["first", "mean"]] = {"cls": "first", "mean": "mean"}
_HF_NAMES = {ours: theirs for theirs, ours in ACTIVATIONS.items()}

WEIGHTS = WeightMap(
    rules=(
        renamed("embedding.weight", "embeddings.tok_embeddings.weight"),
        *renames(
            ("attention_norm", "attn_norm"),
            ("attention.o", "attn.Wo"),
            ("feedforward_norm", "mlp_norm"),
            ("feedforward.down", "mlp.Wo"),
            ours=LAYER,
            theirs=LAYER,
        ),
        # The first half of the feed-forward's goes through the activation.
        *(
            fused(tuple(f"{LAYER}{name}.{part}" for name in names), f"{LAYER}{theirs}.{part}", rows)
            for part in PARTS
            for names, theirs, rows in (
                (("attention.q", "attention.k", "attention.v"), "attn.Wqkv", qkv_rows),
                (("feedforward.gate", "feedforward.up"), "mlp.Wi", halves),
            )
        ),
        *renames(
            ("embedding_norm", "embeddings.norm"),
            ("norm", "final_norm"),
            ("classifier.dense", "head.dense"),
            ("classifier.norm", "head.norm"),
            ("classifier.out", "classifier"),
            ("masked_head.dense", "head.dense"),
            ("masked_head.norm", "head.norm"),
        ),
        renamed("masked_head.bias", "decoder.bias"),
    ),
    # The head of pretraining and a classifier have a `head` of the same names; `decoder` is the token table once more.
    ignorable=(r"head\..*", r"decoder\..*"),
    prefixes=("model.",),
    heads=("head.", "classifier.", "decoder."),
)


_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
_TINY = TINY | _IDS | {"num_hidden_layers": 4, "local_attention": 8}
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


def _read_classifier(fields: Fields, values: Values) -> Classifier:
    return Classifier(
        **take_labels(fields),
        pooling=fields.named("classifier_pooling", "cls", _POOLINGS),
        dense=True,
        dense_bias=fields.flag("classifier_bias", False),
        activation=fields.named("classifier_activation", "gelu", ACTIVATIONS),
        norm=True,
    )


def _read_masked(fields: Fields, values: Values) -> MaskedHead:
    return MaskedHead(
        fields.named("classifier_activation", "gelu", ACTIVATIONS),
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


FIELDS = (
    row.constant(kind="encoder", norm="layer", final_norm=True, first_norm=False),
    row.written(**dict.fromkeys(_IDS)),  # its defaults lie outside a smaller vocabulary; the tokenizer's replace these
    *multi_head_sizes(),
    row.whole("max_position_embeddings", "context_length", 8192),
    row.real("norm_eps", "norm_eps", 1e-5),
    row.flag("norm_bias", "norm_bias", False),
    Field(_read_ropes, _rope_fields),
    Field(_read_windows, _window_fields),
    row.named_value("hidden_activation", "activation", "gelu", ACTIVATIONS),
    row.flag("attention_bias", "attention_bias", False),
    row.flag("mlp_bias", "feedforward_bias", False),
    head("ModernBert", ("ModernBertModel",), _read_classifier, _read_masked),
    Field(write=_head_fields),
    row.only("position_embedding_type", "absolute", "rope"),
    # Training's dropout and first values, how its kernels are to run, and the heads of pretraining and classifiers.
    row.ignored("embedding_dropout", "mlp_dropout", "classifier_dropout", "initializer_cutoff_factor"),
    row.ignored("deterministic_flash_attn", "reference_compile", "repad_logits_with_grad", "sparse_prediction"),
    row.ignored("sparse_pred_ignore_index", "decoder_bias", "num_labels", "classifier_pooling", "classifier_bias"),
    row.ignored("classifier_activation", "layer_norm_eps"),
)

HF = hf_family(
    "modernbert",
    "ModernBertModel",
    FIELDS,
    weights=WEIGHTS,
    by_names=lambda spec, names: present(spec, WEIGHTS, names),
    examples=EXAMPLES,
    with_masked_head=lambda spec: spec.with_(masked_head=MaskedHead(dense_bias=False)),
)
