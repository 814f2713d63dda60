"""The bert family (BERT, MiniLM sentence encoders): Hugging Face's `BertModel` and `BertForSequenceClassification`.

RoBERTa and its kin are the same network with other positions, and share what stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from bedplate.models.families import field_map as row
from bedplate.models.families.decoders import multi_head_sizes, tiny
from bedplate.models.families.encoders.labels import head, present, take_labels
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import Field, Values
from bedplate.models.families.fields import Fields
from bedplate.models.families.weights import LAYER, Rule, WeightMap, renamed, renames
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
_OLD_PARTS = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}


def _with_old_names(*rules: Rule) -> tuple[Rule, ...]:
    """Norms also as files name them that were converted from TensorFlow's."""
    older = (
        renamed(rule.ours[0], rule.theirs[0].replace(name, old))
        for rule in rules
        for name, old in _OLD_PARTS.items()
        if rule.theirs[0].endswith(name)
    )
    return (*rules, *older)


BODY_RULES = _with_old_names(
    *renames(
        ("embedding", "embeddings.word_embeddings"),
        ("position_embedding", "embeddings.position_embeddings"),
        ("token_type_embedding", "embeddings.token_type_embeddings"),
        parts=("weight",),
    ),
    *renames(("embedding_norm", "embeddings.LayerNorm"), ("pooler", "pooler.dense")),
    *renames(*_LAYER, ours=LAYER, theirs="encoder.layer.{i}."),
)

WEIGHTS = WeightMap(
    rules=(
        *BODY_RULES,
        *renames(("classifier.out", "classifier")),
        *_with_old_names(
            *renames(
                ("dense", "dense"), ("norm", "LayerNorm"), ours="masked_head.", theirs="cls.predictions.transform."
            )
        ),
        renamed("masked_head.bias", "cls.predictions.bias"),
    ),
    # The position numbers 0 … n−1 as a buffer, and the other pretraining heads; the token table once more.
    ignorable=(r"(bert\.)?embeddings\.position_ids", r"cls\..*"),
    prefixes=("bert.",),
    heads=("classifier.", "cls."),
)

ACTIVATIONS: dict[str, Activation] = {"gelu": "gelu", "gelu_new": "gelu_tanh", "relu": "relu", "silu": "silu"}
TINY = tiny(max_position_embeddings=64)
del TINY["num_key_value_heads"]
EXAMPLES = (TINY, TINY | {"num_hidden_layers": 2, "hidden_act": "gelu_new", "type_vocab_size": 1})


def _read_positions(fields: Fields, values: Values) -> Values:
    offset, rows = values.get("position_offset", 0), fields.size("max_position_embeddings")
    return {"context_length": rows - offset, "position_rows": rows if offset else None}


BODY_FIELDS: tuple[Field, ...] = (
    row.constant(kind="encoder", norm="layer", norm_placement="post", gated=False, attention_bias=True),
    row.constant(feedforward_bias=True, tied_head=True),
    *multi_head_sizes(),
    Field(_read_positions, lambda flat, spec: {"max_position_embeddings": spec.positions}),
    row.real("layer_norm_eps", "norm_eps", 1e-12),
    row.named_value("hidden_act", "activation", "gelu", ACTIVATIONS),
    row.whole("type_vocab_size", "token_types", 2),
    row.only("position_embedding_type", "absolute"),
    row.only("is_decoder", False),
    row.only("add_cross_attention", False),
    # Dropout acts in pretraining only; Bedplate's encoders have none.
    row.ignored("attention_probs_dropout_prob", "hidden_dropout_prob", "classifier_dropout"),
    # BERT's size of a pooler that it never had; how XLM-RoBERTa's files were written.
    row.ignored("pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head"),
    row.ignored("pooler_type", "directionality", "output_past", "num_labels"),
)
"""The fields of all but a head. A row before them gives `position_offset`, where positions begin with one."""


def by_names(weights: WeightMap) -> Callable[[TransformerSpec, Collection[str]], TransformerSpec]:
    """A spec without a head that the files do not hold, and with a pooler where they do, or the classifier reads it:
    the config says nothing of it."""

    def present_in(spec: TransformerSpec, names: Collection[str]) -> TransformerSpec:
        spec = present(spec, weights, names)
        reads_pooler = spec.classifier is not None and spec.classifier.on_pooler
        return spec.with_(pooler=reads_pooler or any(weights.from_external(name) == "pooler.weight" for name in names))

    return present_in


_BODIES = ("BertModel", "BertForPreTraining", "BertForNextSentencePrediction")
_HEAD = head(
    "Bert",
    _BODIES,
    lambda fields, _: Classifier(**take_labels(fields), on_pooler=True),
    lambda _, values: MaskedHead(values["activation"]),
)
FIELDS = (*BODY_FIELDS[:-1], _HEAD, BODY_FIELDS[-1])

HF = hf_family(
    "bert",
    "BertModel",
    FIELDS,
    weights=WEIGHTS,
    by_names=by_names(WEIGHTS),
    examples=EXAMPLES,
    with_masked_head=lambda spec: spec.with_(masked_head=MaskedHead(spec.feedforward.activation)),
)
