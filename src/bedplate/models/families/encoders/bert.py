"""The bert family (BERT, MiniLM sentence encoders): Hugging Face's `BertModel` and `BertForSequenceClassification`.

RoBERTa and its kin are the same network with other positions, and share what stands here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from bedplate.models.families.encoders.labels import label_fields, masked_spec, present, take_head, take_labels
from bedplate.models.families.family import Family
from bedplate.models.families.fields import HF_BOOKKEEPING, Fields
from bedplate.models.families.weights import Rule, WeightMap, renamed
from bedplate.models.specs.transformer import Activation, Classifier, MaskedHead, TransformerSpec

_LAYER = (
    ("attention.q", "attention.self.query"),
    ("attention.k", "attention.self.key"),
    ("attention.v", "attention.self.value"),
    ("attention.o", "attention.output.dense"),
    ("attention_norm", "attention.output.LayerNorm"),
    ("feedforward.up", "intermediate.dense"),
    ("feedforward.down", "output.dense"),
    ("feedforward_norm", "output.LayerNorm"),
)
PARTS = ("weight", "bias")
_OLD_PARTS = (("weight", "gamma"), ("bias", "beta"))

BODY_RULES: tuple[Rule, ...] = (
    renamed("embedding.weight", "embeddings.word_embeddings.weight"),
    renamed("position_embedding.weight", "embeddings.position_embeddings.weight"),
    renamed("token_type_embedding.weight", "embeddings.token_type_embeddings.weight"),
    *(renamed(f"embedding_norm.{part}", f"embeddings.LayerNorm.{part}") for part in PARTS),
    *(
        renamed(f"layers.{{i}}.{ours}.{part}", f"encoder.layer.{{i}}.{theirs}.{part}")
        for ours, theirs in _LAYER
        for part in PARTS
    ),
    *(renamed(f"pooler.{part}", f"pooler.dense.{part}") for part in PARTS),
    # As files say it that were converted from TensorFlow's.
    *(renamed(f"embedding_norm.{part}", f"embeddings.LayerNorm.{old}") for part, old in _OLD_PARTS),
    *(
        renamed(f"layers.{{i}}.{ours}.{part}", f"encoder.layer.{{i}}.{theirs}.{old}")
        for ours, theirs in _LAYER
        if theirs.endswith("LayerNorm")
        for part, old in _OLD_PARTS
    ),
)

_HEAD = "cls.predictions"
HF_WEIGHTS = WeightMap(
    rules=(
        *BODY_RULES,
        *(renamed(f"classifier.out.{part}", f"classifier.{part}") for part in PARTS),
        *(renamed(f"masked_head.dense.{part}", f"{_HEAD}.transform.dense.{part}") for part in PARTS),
        *(renamed(f"masked_head.norm.{part}", f"{_HEAD}.transform.LayerNorm.{part}") for part in PARTS),
        *(renamed(f"masked_head.norm.{part}", f"{_HEAD}.transform.LayerNorm.{old}") for part, old in _OLD_PARTS),
        renamed("masked_head.bias", f"{_HEAD}.bias"),
    ),
    # The position numbers 0 … n−1 as a buffer, and the other pretraining heads; the token table once more.
    ignorable=(r"(bert\.)?embeddings\.position_ids", r"cls\..*"),
    prefixes=("bert.",),
    heads=("classifier.", "cls."),
)

ACTIVATIONS: dict[str, Activation] = {"gelu": "gelu", "gelu_new": "gelu_tanh", "relu": "relu", "silu": "silu"}
_BODIES = ("BertModel", "BertForPreTraining", "BertForNextSentencePrediction")
_CLASSIFIER, _MASKED = "BertForSequenceClassification", "BertForMaskedLM"


TINY: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
}
EXAMPLES = (TINY, TINY | {"num_hidden_layers": 2, "hidden_act": "gelu_new", "type_vocab_size": 1})


def from_hf(config: Mapping[str, Any]) -> TransformerSpec:
    """`config.json` → spec, without a pooler: see `by_names`."""
    origin = "config.json (bert)"
    fields = Fields(config, origin)
    classifier = None
    head = take_head(fields, origin, _BODIES, _CLASSIFIER, _MASKED)
    if head == "classifier":
        classifier = Classifier(**take_labels(fields, origin), on_pooler=True)
    spec = body(fields, origin).with_(classifier=classifier, pooler=classifier is not None)
    return masked_spec(spec, config, _masked_head(spec)) if head == "masked" else spec


def _masked_head(spec: TransformerSpec) -> MaskedHead:
    return MaskedHead(spec.feedforward.activation)


def _with_masked_head(spec: TransformerSpec) -> TransformerSpec:
    return spec.with_(masked_head=_masked_head(spec))


def body(fields: Fields, origin: str, offset: int = 0) -> TransformerSpec:
    """The spec of all but a head. offset: rows of the table of positions before that of a text's first token."""
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    fields.only("position_embedding_type", "absolute")
    fields.only("is_decoder", False)
    fields.only("add_cross_attention", False)
    activation = fields.text("hidden_act", "gelu")
    Fields({"hidden_act": activation}, origin).only("hidden_act", *ACTIVATIONS)
    # Dropout acts in pretraining only; Bedplate's encoders have none.
    fields.ignore((*HF_BOOKKEEPING, "attention_probs_dropout_prob", "hidden_dropout_prob", "classifier_dropout"))
    # The head of pretraining; BERT's size of a pooler that it never had; how XLM-RoBERTa's files were written.
    fields.ignore(("tie_word_embeddings", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers"))
    fields.ignore(("pooler_size_per_head", "pooler_type", "directionality", "output_past", "num_labels"))
    rows = fields.size("max_position_embeddings")
    spec = TransformerSpec.from_fields(
        kind="encoder",
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden,
        layers=fields.layers("num_hidden_layers"),
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        feedforward_size=fields.size("intermediate_size"),
        context_length=rows - offset,
        position_rows=rows if offset else None,
        position_offset=offset,
        norm="layer",
        norm_eps=fields.real("layer_norm_eps", 1e-12),
        norm_placement="post",
        activation=ACTIVATIONS[activation],
        gated=False,
        attention_bias=True,
        feedforward_bias=True,
        tied_head=True,
        token_types=fields.whole("type_vocab_size", 2),
    )
    fields.finish()
    return spec


def by_names(spec: TransformerSpec, names: Collection[str]) -> TransformerSpec:
    """With a pooler where the files hold one: the config says nothing of it."""
    return pooled(present(spec, HF_WEIGHTS, names), HF_WEIGHTS, names)


def pooled(spec: TransformerSpec, weights: WeightMap, names: Collection[str]) -> TransformerSpec:
    """With the pooler that the names tell of, or that the classifier reads."""
    reads_pooler = spec.classifier is not None and spec.classifier.on_pooler
    return spec.with_(pooler=reads_pooler or any(weights.from_external(name) == "pooler.weight" for name in names))


def to_hf(spec: TransformerSpec) -> dict[str, Any]:
    """Spec → the `config.json` that transformers loads."""
    return body_config(spec, "bert", "BertModel", _CLASSIFIER, _MASKED)


def body_config(
    spec: TransformerSpec, model_type: str, body_class: str, classifier_class: str, masked_class: str
) -> dict[str, Any]:
    """What all of the kin write."""
    bare = body_class if spec.masked_head is None else masked_class
    return {
        "architectures": [bare if spec.classifier is None else classifier_class],
        "model_type": model_type,
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.attention.heads,
        "intermediate_size": spec.feedforward.size,
        "max_position_embeddings": spec.positions,
        "layer_norm_eps": spec.norm.eps,
        "hidden_act": next(name for name, ours in ACTIVATIONS.items() if ours == spec.feedforward.activation),
        "type_vocab_size": spec.token_types,
        **label_fields(spec),
    }


HF = Family(
    ("hf", "bert"),
    from_hf,
    to_hf,
    HF_WEIGHTS,
    by_names=by_names,
    examples=EXAMPLES,
    with_masked_head=_with_masked_head,
)
