"""The roberta family (https://arxiv.org/abs/1907.11692): BERT whose positions begin behind the padding token's row, and
whose classifier has a layer of its own in place of the pooler."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from bedplate.models.families.encoders.bert import BODY_RULES, PARTS, TINY, body, body_config, pooled
from bedplate.models.families.encoders.labels import masked_spec, present, take_head, take_labels
from bedplate.models.families.family import Family
from bedplate.models.families.fields import Fields
from bedplate.models.families.weights import WeightMap, renamed
from bedplate.models.specs.transformer import Classifier, MaskedHead, TransformerSpec

HF_WEIGHTS = WeightMap(
    rules=(
        *BODY_RULES,
        *(renamed(f"classifier.dense.{part}", f"classifier.dense.{part}") for part in PARTS),
        *(renamed(f"classifier.out.{part}", f"classifier.out_proj.{part}") for part in PARTS),
        *(renamed(f"masked_head.dense.{part}", f"lm_head.dense.{part}") for part in PARTS),
        *(renamed(f"masked_head.norm.{part}", f"lm_head.layer_norm.{part}") for part in PARTS),
        renamed("masked_head.bias", "lm_head.bias"),
    ),
    # The position numbers as a buffer, and the token table once more in the head of pretraining.
    ignorable=(r"(roberta\.)?embeddings\.position_ids", r"lm_head\..*"),
    prefixes=("roberta.",),
    heads=("classifier.", "lm_head."),
)


EXAMPLES = (
    TINY | {"max_position_embeddings": 66, "pad_token_id": 1},
    TINY | {"max_position_embeddings": 66, "pad_token_id": 1, "num_hidden_layers": 2, "type_vocab_size": 1},
)


def from_hf(config: Mapping[str, Any]) -> TransformerSpec:
    """`config.json` of a RobertaModel or RobertaForSequenceClassification → spec, without a pooler: see `by_names`."""
    return kin_from_hf(config, "roberta", "Roberta")


def kin_from_hf(config: Mapping[str, Any], model_type: str, classes: str) -> TransformerSpec:
    """The same for a family whose classes' names begin with `classes`."""
    origin = f"config.json ({model_type})"
    fields = Fields(config, origin)
    classifier = None
    names = f"{classes}ForSequenceClassification", f"{classes}ForMaskedLM"
    head = take_head(fields, origin, (f"{classes}Model",), *names)
    if head == "classifier":
        classifier = Classifier(**take_labels(fields, origin), dense=True)
    padding = fields.optional("pad_token_id", 1)
    spec = body(fields, origin, (1 if padding is None else padding) + 1).with_(classifier=classifier)
    return masked_spec(spec, config, MaskedHead()) if head == "masked" else spec


def with_masked_head(spec: TransformerSpec) -> TransformerSpec:
    """With the head of pretraining, whose activation is GELU in all of the kin."""
    return spec.with_(masked_head=MaskedHead())


def by_names(spec: TransformerSpec, names: Collection[str]) -> TransformerSpec:
    """With a pooler where the files hold one."""
    return pooled(present(spec, HF_WEIGHTS, names), HF_WEIGHTS, names)


def to_hf(spec: TransformerSpec) -> dict[str, Any]:
    """Spec → the `config.json` that transformers loads."""
    return kin_to_hf(spec, "roberta", "Roberta")


def kin_to_hf(spec: TransformerSpec, model_type: str, classes: str) -> dict[str, Any]:
    """The inverse of `kin_from_hf`."""
    names = (f"{classes}{end}" for end in ("Model", "ForSequenceClassification", "ForMaskedLM"))
    fields = body_config(spec, model_type, *names)
    return fields | {"pad_token_id": spec.position.offset - 1}


HF = Family(
    ("hf", "roberta"),
    from_hf,
    to_hf,
    HF_WEIGHTS,
    by_names=by_names,
    examples=EXAMPLES,
    with_masked_head=with_masked_head,
)
