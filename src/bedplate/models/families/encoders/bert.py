"""The bert family (BERT, MiniLM sentence encoders): Hugging Face's `BertModel` and `BertForSequenceClassification`.

RoBERTa and its kin are the same network with other positions, and share what stands here, as all encoders do what
configs say of labels (`id2label`, `num_labels`, `problem_type`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.families import field_map as row
from bedplate.models.families.decoders import multi_head_sizes, tiny
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import Field, Values
from bedplate.models.families.fields import Fields
from bedplate.models.families.weights import LAYER, Rule, WeightMap, renamed, renames
from bedplate.models.specs.parts import Activation, Problem
from bedplate.models.specs.transformer import Classifier, MaskedHead, TransformerSpec

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

# Where cross-encoders keep what makes a score of their output: sentence-transformers, and before its version 4.
_ACTIVATION, _OLDER = "sentence_transformers", "sbert_ce_default_activation_function"
_IDENTITY = "torch.nn.modules.linear.Identity"

_MAX_LABELS = 1_000_000
_PROBLEMS: dict[str, Problem] = {
    "single_label_classification": "one",
    "multi_label_classification": "any",
    "regression": "score",
}


_MASKED = ("masked_head.dense.weight", "masked_head.norm.weight", "masked_head.bias")
Reader = Callable[[Fields, Values], Any]


def head(classes: str, bodies: Sequence[str], read_classifier: Reader, read_masked: Reader) -> Field:
    """The checkpoint's head: a classifier, that of pretraining, or none of `bodies`, whose heads are not read; written
    as the class that has it. classes: what the names of the family's classes begin with. A pretraining head that is not
    the token table is left out.

    UnsupportedModelError for any other class: its head would be taken for another.
    """
    classifier, masked = f"{classes}ForSequenceClassification", f"{classes}ForMaskedLM"

    def read(fields: Fields, values: Values) -> Values:
        architectures = fields.pop("architectures") or []
        named = [architectures] if isinstance(architectures, str) else list(architectures)
        supported = (*bodies, masked, classifier)
        unsupported = next((name for name in named if name not in supported), None)
        if unsupported is not None:
            raise UnsupportedModelError(
                f"{fields.origin}: the head of {unsupported} is not supported (only {', '.join(supported)})"
            )
        is_tied = fields.pop("tie_word_embeddings") is not False
        if classifier in named:
            part = read_classifier(fields, values)
            return {"classifier": part, "pooler": part.on_pooler}
        return {"masked_head": read_masked(fields, values)} if masked in named and is_tied else {}

    def write(flat: Values, spec: TransformerSpec) -> Values:
        bare = bodies[0] if flat["masked_head"] is None else masked
        return {"architectures": [bare if flat["classifier"] is None else classifier], **label_fields(spec)}

    return Field(read, write)


def take_labels(fields: Fields) -> dict[str, Any]:
    """Fields of a Classifier: the labels in the order of the head's rows, and what their scores are. A config without
    any means transformers' two."""
    origin = fields.origin
    names: Mapping[Any, Any] | None = fields.pop("id2label")
    names = None if names is None else Fields({"id2label": names}, origin).part("id2label")
    count = fields.whole("num_labels")
    if count is not None and not 0 <= count <= _MAX_LABELS:
        raise UnsupportedModelError(f"{origin}: num_labels is {count}; at most {_MAX_LABELS:,} are read")
    problem = fields.pop("problem_type")
    fields.ignore(("label2id",))
    if names is None:
        labels = tuple(f"LABEL_{number}" for number in range(2 if count is None else count))
    else:
        by_number = {int(number): str(label) for number, label in names.items()}
        if sorted(by_number) != list(range(len(by_number))):
            raise UnsupportedModelError(f"{origin}: id2label must number its labels from 0 on, without a gap")
        labels = tuple(by_number[number] for number in range(len(by_number)))
    if count is not None and count != len(labels):
        raise UnsupportedModelError(f"{origin}: num_labels is {count}, but id2label names {len(labels)}")
    if problem is not None and problem not in _PROBLEMS:
        raise UnsupportedModelError(f"{origin}: problem_type = {problem!r} is not one of {', '.join(_PROBLEMS)}")
    problem_type = _PROBLEMS[problem] if problem is not None else "score" if len(labels) == 1 else "one"
    return {"labels": labels, "problem": problem_type, "raw": _is_raw(fields)}


def _is_raw(fields: Fields) -> bool:
    """Whether a cross-encoder gives its output as it is. Its sigmoid is the default."""
    settings = fields.part(_ACTIVATION)
    older = fields.pop(_OLDER)
    name = settings.get("activation_fn") or older
    return name is not None and is_raw(name, fields.origin)


def is_raw(name: Any, origin: str) -> bool:
    """Whether torch's function of this name leaves a score as it is; UnsupportedModelError for one that does anything
    but that or a sigmoid."""
    class_name = str(name).rpartition(".")[2]
    if not str(name).startswith("torch.nn.") or class_name not in ("Sigmoid", "Identity"):
        raise UnsupportedModelError(f"{origin}: the activation {name!r} is not supported (only Sigmoid and Identity)")
    return class_name == "Identity"


def label_fields(spec: TransformerSpec) -> dict[str, Any]:
    """The config's fields of a spec's labels; none for a spec without a classifier."""
    if spec.classifier is None:
        return {}
    labels = spec.classifier.labels
    raw = {_ACTIVATION: {"activation_fn": _IDENTITY}} if spec.classifier.raw else {}
    return raw | {
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
        "problem_type": next(theirs for theirs, ours in _PROBLEMS.items() if ours == spec.classifier.problem),
    }


def present(spec: TransformerSpec, weights: WeightMap, names: Collection[str]) -> TransformerSpec:
    """Without a head where the files hold none of it: sentence encoders are often saved under the class of the
    model that they were trained from."""
    if spec.masked_head is not None and not any(weights.from_external(name, _MASKED) in _MASKED for name in names):
        spec = spec.with_(masked_head=None)
    has_classifier = any((weights.from_external(name) or "").startswith("classifier.") for name in names)
    return spec if has_classifier else spec.with_(classifier=None)


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
