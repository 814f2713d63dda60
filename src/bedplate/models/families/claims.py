"""The family that a config.json names, and the checkpoint's own code that it may ask for, which is never run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bedplate.core.errors import CheckpointError, UnsupportedModelError
from bedplate.models.families import Family, find_family
from bedplate.models.families.fields import shown

_OWN_CODE = "the Python code that its auto_map names would have to be run, which Bedplate never does"
_CLASS = re.compile(
    r"(?P<stem>\w+?)(Text)?(Encoder)?(Model|LMHeadModel|WithLMHeadModel|PreTrainedModel|For(CausalLM|MaskedLM|PreTraining|"
    r"ConditionalGeneration|SequenceClassification|TokenClassification|QuestionAnswering|MultipleChoice))"
)
"""transformers' names of classes: the model's, and what it is for."""


def claimed_family(config: Mapping[str, Any], origin: str) -> Family:
    """The family that `model_type` names. Published models that a family reads may name code of their own all the same
    (`auto_map`); where the class is of another name, nobody knows what it computes.

    UnsupportedModelError where there is no such family, or the class is another."""
    if config.get("trust_remote_code"):
        raise UnsupportedModelError(f"{origin}: trust_remote_code is set; {_OWN_CODE}")
    try:
        family = find_family("hf", config.get("model_type"), origin)
    except UnsupportedModelError as error:
        if config.get("auto_map"):
            raise UnsupportedModelError(f"{error}; {_OWN_CODE}") from error
        raise
    named = config.get("auto_map") or {}
    if not isinstance(named, Mapping):
        raise CheckpointError(f"{origin}: auto_map must be an object, not {shown(named)}")
    if not named or not family.examples:
        return family
    ours = family.to_config(family.to_spec(family.examples[0]))["architectures"][0]
    for key, class_path in named.items():
        name = str(class_path).rpartition(".")[2]
        if key.startswith("AutoModel") and _stem(name) != _stem(ours):
            raise UnsupportedModelError(f"{origin}: its model is {shown(name)}, not {ours!r}; {_OWN_CODE}")
    return family


def _stem(name: str) -> str | None:
    """What the names of a family's classes begin with; None for a name of another form."""
    match = _CLASS.fullmatch(name)
    return None if match is None else match["stem"].lower()
