"""What a config.json says of the classes that compute its model: code of the checkpoint's own, and classes of another
family than its `model_type`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bedplate.core.errors import CheckpointError, UnsupportedModelError
from bedplate.models.families import FAMILIES, Family, find_family
from bedplate.models.families.fields import shown

_OWN_CODE = "the Python code that its auto_map names would have to be run, which Bedplate never does"
_CLASS = re.compile(
    r"(?P<stem>\w+?)(Text)?(Encoder)?(Model|LMHeadModel|WithLMHeadModel|PreTrainedModel|For(CausalLM|MaskedLM|PreTraining|"
    r"ConditionalGeneration|SequenceClassification|TokenClassification|QuestionAnswering|MultipleChoice))"
)
"""transformers' names of classes: the model's, and what it is for."""


def claimed_family(config: Mapping[str, Any], origin: str) -> Family:
    """The family that `model_type` names. UnsupportedModelError where there is none."""
    if config.get("trust_remote_code"):
        raise UnsupportedModelError(f"{origin}: trust_remote_code is set; {_OWN_CODE}")
    try:
        return find_family("hf", config.get("model_type"), origin)
    except UnsupportedModelError as error:
        if config.get("auto_map"):
            raise UnsupportedModelError(f"{error}; {_OWN_CODE}") from error
        raise


def refuse_other_classes(config: Mapping[str, Any], family: Family, origin: str) -> None:
    """A config may name code of the checkpoint's own (`auto_map`), as published models do that a family reads all the
    same; where the class is of another name, nobody knows what it computes. `architectures` must not name the class of
    another family: some programs go by that, and others by `model_type`.

    CheckpointError, or UnsupportedModelError with the class's name."""
    named = config.get("auto_map") or {}
    if not isinstance(named, Mapping):
        raise CheckpointError(f"{origin}: auto_map must be an object, not {shown(named)}")
    architectures = config.get("architectures") or []
    if not family.examples:
        return
    ours = _class_of(family)
    for key, class_path in named.items():
        name = str(class_path).rpartition(".")[2]
        if key.startswith("AutoModel") and _stem(name) != _stem(ours):
            raise UnsupportedModelError(f"{origin}: its model is {shown(name)}, not {ours!r}; {_OWN_CODE}")
    for name in (
        [architectures]
        if isinstance(architectures, str)
        else architectures
        if isinstance(architectures, list)
        else [architectures]
    ):
        if not isinstance(name, str):
            raise CheckpointError(f"{origin}: architectures must be a list of names, not {shown(architectures)}")
        if _stem(name) not in (None, _stem(ours)) and (class_family := _family_of(name)) is not None:
            raise UnsupportedModelError(
                f"{origin}: model_type is {family.key[1]!r}, but architectures names {name}, a class of "
                f"{class_family}; "
                "correct the one that the weights are not of"
            )


def _stem(name: str) -> str | None:
    """What the names of a family's classes begin with; None for a name of another form."""
    match = _CLASS.fullmatch(name)
    return None if match is None else match["stem"].lower()


def _class_of(family: Family) -> str:
    return family.to_config(family.to_spec(family.examples[0]))["architectures"][0]


def _family_of(name: str) -> str | None:
    """The `model_type` of the family that has a class of this name's stem."""
    for (format_, model_type), family in FAMILIES.items():
        if format_ == "hf" and family.examples and _stem(_class_of(family)) == _stem(name):
            return model_type
    return None
