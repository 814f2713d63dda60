"""The roberta family (https://arxiv.org/abs/1907.11692): BERT whose positions begin behind the padding token's row, and
whose classifier has a layer of its own in place of the pooler."""

from __future__ import annotations

from bedplate.models.families.encoders.bert import BODY_FIELDS, BODY_RULES, TINY, by_names, head, take_labels
from bedplate.models.families.family import Family, hf_family
from bedplate.models.families.field_map import Field, Values
from bedplate.models.families.fields import Fields
from bedplate.models.families.weights import WeightMap, renamed, renames
from bedplate.models.specs.transformer import Classifier, MaskedHead

WEIGHTS = WeightMap(
    rules=(
        *BODY_RULES,
        *renames(
            ("classifier.dense", "classifier.dense"),
            ("classifier.out", "classifier.out_proj"),
            ("masked_head.dense", "lm_head.dense"),
            ("masked_head.norm", "lm_head.layer_norm"),
        ),
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


def _read_offset(fields: Fields, values: Values) -> Values:
    padding = fields.optional("pad_token_id", 1)
    return {"position_offset": (1 if padding is None else padding) + 1}


def relative(model_type: str, classes: str) -> Family:
    """RoBERTa, or a family of the same network whose classes' names begin with `classes`."""
    offset = Field(_read_offset, lambda flat, _: {"pad_token_id": flat["position_offset"] - 1})
    heads = head(
        classes,
        (f"{classes}Model",),
        lambda fields, _: Classifier(**take_labels(fields), dense=True),
        lambda *_: MaskedHead(),
    )
    return hf_family(
        model_type,
        f"{classes}Model",
        (offset, *BODY_FIELDS[:-1], heads, BODY_FIELDS[-1]),
        weights=WEIGHTS,
        by_names=by_names(WEIGHTS),
        examples=EXAMPLES,
        with_masked_head=lambda spec: spec.with_(masked_head=MaskedHead()),
    )


HF = relative("roberta", "Roberta")
