"""The modernbert family (https://arxiv.org/abs/2412.13663): layers that see all between layers that see a window, each
kind with rotary positions of its own; gated feed-forwards; a final norm in place of the first one; no biases."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.families.encoders.labels import label_fields, masked_spec, present, take_head, take_labels
from bedplate.models.families.family import Family
from bedplate.models.families.fields import HF_BOOKKEEPING, Fields
from bedplate.models.families.weights import WeightMap, fused, renamed
from bedplate.models.specs.transformer import Activation, Classifier, MaskedHead, Rope, TransformerSpec

_PARTS = ("weight", "bias")
_ORIGIN = "config.json (modernbert)"
_ACTIVATIONS: dict[str, Activation] = {"gelu": "gelu", "gelu_new": "gelu_tanh", "relu": "relu", "silu": "silu"}
_FULL, _SLIDING = "full_attention", "sliding_attention"
_THETAS = {_FULL: ("global_rope_theta", 160_000.0), _SLIDING: ("local_rope_theta", 10_000.0)}
_CLASSIFIER, _MASKED = "ModernBertForSequenceClassification", "ModernBertForMaskedLM"


def _qkv(spec: TransformerSpec) -> tuple[int, int, int]:
    keys = spec.attention.kv_heads * spec.attention.head_dim
    return spec.attention.heads * spec.attention.head_dim, keys, keys


def _halves(spec: TransformerSpec) -> tuple[int, int]:
    return spec.feedforward.size, spec.feedforward.size


HF_WEIGHTS = WeightMap(
    rules=(
        renamed("embedding.weight", "embeddings.tok_embeddings.weight"),
        *(renamed(f"embedding_norm.{part}", f"embeddings.norm.{part}") for part in _PARTS),
        *(
            rule
            for part in _PARTS
            for rule in (
                renamed(f"layers.{{i}}.attention_norm.{part}", f"layers.{{i}}.attn_norm.{part}"),
                fused(
                    tuple(f"layers.{{i}}.attention.{name}.{part}" for name in "qkv"),
                    f"layers.{{i}}.attn.Wqkv.{part}",
                    _qkv,
                ),
                renamed(f"layers.{{i}}.attention.o.{part}", f"layers.{{i}}.attn.Wo.{part}"),
                renamed(f"layers.{{i}}.feedforward_norm.{part}", f"layers.{{i}}.mlp_norm.{part}"),
                # The first half goes through the activation.
                fused(
                    tuple(f"layers.{{i}}.feedforward.{name}.{part}" for name in ("gate", "up")),
                    f"layers.{{i}}.mlp.Wi.{part}",
                    _halves,
                ),
                renamed(f"layers.{{i}}.feedforward.down.{part}", f"layers.{{i}}.mlp.Wo.{part}"),
            )
        ),
        *(renamed(f"norm.{part}", f"final_norm.{part}") for part in _PARTS),
        *(renamed(f"classifier.dense.{part}", f"head.dense.{part}") for part in _PARTS),
        *(renamed(f"classifier.norm.{part}", f"head.norm.{part}") for part in _PARTS),
        *(renamed(f"classifier.out.{part}", f"classifier.{part}") for part in _PARTS),
        *(renamed(f"masked_head.dense.{part}", f"head.dense.{part}") for part in _PARTS),
        *(renamed(f"masked_head.norm.{part}", f"head.norm.{part}") for part in _PARTS),
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


def from_hf(config: Mapping[str, Any]) -> TransformerSpec:
    """`config.json` of a ModernBertModel or a ModernBertForSequenceClassification → spec."""
    fields = Fields(config, _ORIGIN)
    classifier = None
    head = take_head(fields, _ORIGIN, ("ModernBertModel",), _CLASSIFIER, _MASKED)
    if head == "classifier":
        classifier = _classifier(fields)
    masked = _masked_head(fields) if head == "masked" else None
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    layers = fields.layers("num_hidden_layers")
    window = fields.whole("local_attention", 128)
    ropes = _ropes(fields)
    # Training's dropout and first values, how its kernels are to run, and the heads of pretraining and classifiers.
    fields.ignore((*HF_BOOKKEEPING, "attention_dropout", "embedding_dropout", "mlp_dropout", "classifier_dropout"))
    fields.ignore(
        ("initializer_cutoff_factor", "deterministic_flash_attn", "reference_compile", "repad_logits_with_grad")
    )
    fields.ignore(
        ("sparse_prediction", "sparse_pred_ignore_index", "decoder_bias", "tie_word_embeddings", "num_labels")
    )
    fields.ignore(("classifier_pooling", "classifier_bias", "classifier_activation", "layer_norm_eps"))
    fields.only("position_embedding_type", "absolute", "rope")
    spec = TransformerSpec.from_fields(
        kind="encoder",
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        feedforward_size=fields.size("intermediate_size"),
        context_length=fields.whole("max_position_embeddings", 8192),
        norm="layer",
        norm_eps=fields.real("norm_eps", 1e-5),
        norm_bias=fields.flag("norm_bias", False),
        final_norm=True,
        first_norm=False,
        rope=ropes[_FULL],
        local_rope=ropes[_SLIDING],
        windows=_windows(fields, layers, window),
        activation=_activation(fields, "hidden_activation"),
        attention_bias=fields.flag("attention_bias", False),
        feedforward_bias=fields.flag("mlp_bias", False),
        classifier=classifier,
    )
    fields.finish()
    return spec if masked is None else masked_spec(spec, config, masked)


def _masked_head(fields: Fields) -> MaskedHead:
    return MaskedHead(
        _activation(fields, "classifier_activation"),
        dense_bias=fields.flag("classifier_bias", False),
        bias=fields.flag("decoder_bias", True),
    )


def _with_masked_head(spec: TransformerSpec) -> TransformerSpec:
    return spec.with_(masked_head=MaskedHead(dense_bias=False))


def _windows(fields: Fields, layers: int, window: int) -> tuple[int | None, ...]:
    """Of each layer: as its type says, or every so manieth one sees everything, from the first on."""
    interval = fields.whole("global_attn_every_n_layers", 3, null=3)
    types = fields.sequence("layer_types")
    if types is None:
        return tuple(window if layer % interval else None for layer in range(layers))
    for layer_type in types:
        Fields({"layer_types": layer_type}, _ORIGIN).only("layer_types", _FULL, _SLIDING)
    if len(types) != layers:
        raise UnsupportedModelError(f"{_ORIGIN}: {len(types)} layer_types for {layers} layers")
    return tuple(window if attention_type == _SLIDING else None for attention_type in types)


def _ropes(fields: Fields) -> dict[str, Rope]:
    """Both spellings: `rope_parameters` by layer type (transformers 5), `global_` and `local_rope_theta` (before)."""
    parameters = Fields(fields.part("rope_parameters"), f"{_ORIGIN} rope_parameters")
    fields.only("rope_scaling", None)
    ropes: dict[str, Rope] = {}
    for layer_type, (older, default) in _THETAS.items():
        theta = fields.real(older)
        nested = Fields(parameters.part(layer_type), f"{_ORIGIN} rope_parameters.{layer_type}")
        nested.only("rope_type", "default")
        ropes[layer_type] = Rope(nested.real("rope_theta", default if theta is None else theta))
        nested.finish()
    parameters.finish()
    return ropes


def _classifier(fields: Fields) -> Classifier:
    pooling = fields.text("classifier_pooling", "cls")
    Fields({"classifier_pooling": pooling}, _ORIGIN).only("classifier_pooling", "cls", "mean")
    return Classifier(
        **take_labels(fields, _ORIGIN),
        pooling="first" if pooling == "cls" else "mean",
        dense=True,
        dense_bias=fields.flag("classifier_bias", False),
        activation=_activation(fields, "classifier_activation"),
        norm=True,
    )


def _activation(fields: Fields, name: str) -> Activation:
    activation = fields.text(name, "gelu")
    Fields({name: activation}, _ORIGIN).only(name, *_ACTIVATIONS)
    return _ACTIVATIONS[activation]


def by_names(spec: TransformerSpec, names: Collection[str]) -> TransformerSpec:
    """Without the classifier that the files do not hold."""
    return present(spec, HF_WEIGHTS, names)


def to_hf(spec: TransformerSpec) -> dict[str, Any]:
    """Spec → the `config.json` that transformers loads."""
    assert spec.position.rope is not None
    local = spec.position.local_rope or spec.position.rope
    names = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
    windows = [spec.window(layer) for layer in range(spec.layers)]
    bare = "ModernBertModel" if spec.masked_head is None else _MASKED
    config: dict[str, Any] = {
        "architectures": [bare if spec.classifier is None else _CLASSIFIER],
        "model_type": "modernbert",
        # Its defaults lie outside a smaller vocabulary; the tokenizer's are written over these.
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")),
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.attention.heads,
        "intermediate_size": spec.feedforward.size,
        "max_position_embeddings": spec.context_length,
        "norm_eps": spec.norm.eps,
        "norm_bias": spec.norm.bias,
        "hidden_activation": names[spec.feedforward.activation],
        "attention_bias": spec.attention.bias,
        "mlp_bias": spec.feedforward.bias,
        "layer_types": [_FULL if window is None else _SLIDING for window in windows],
        "local_attention": next((window for window in windows if window is not None), 128),
        "rope_parameters": {
            _FULL: {"rope_type": "default", "rope_theta": spec.position.rope.theta},
            _SLIDING: {"rope_type": "default", "rope_theta": local.theta},
        },
        **label_fields(spec),
    }
    if spec.masked_head is not None:
        config |= {
            "classifier_activation": names[spec.masked_head.activation],
            "classifier_bias": spec.masked_head.dense_bias,
            "decoder_bias": spec.masked_head.bias,
        }
    if spec.classifier is None or spec.classifier.activation == "tanh":
        return config
    return config | {
        "classifier_pooling": "cls" if spec.classifier.pooling == "first" else "mean",
        "classifier_bias": spec.classifier.dense_bias,
        "classifier_activation": names[spec.classifier.activation],
    }


HF = Family(
    ("hf", "modernbert"),
    from_hf,
    to_hf,
    HF_WEIGHTS,
    by_names=by_names,
    examples=EXAMPLES,
    with_masked_head=_with_masked_head,
)
