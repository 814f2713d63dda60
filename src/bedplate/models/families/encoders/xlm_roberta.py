"""The xlm-roberta family (https://arxiv.org/abs/1911.02116): RoBERTa's network with a vocabulary of 100 languages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.models.families.encoders.roberta import (
    EXAMPLES,
    HF_WEIGHTS,
    by_names,
    kin_from_hf,
    kin_to_hf,
    with_masked_head,
)
from bedplate.models.families.family import Family
from bedplate.models.specs.transformer import TransformerSpec

__all__ = ["HF_WEIGHTS", "by_names", "from_hf", "to_hf"]


def from_hf(config: Mapping[str, Any]) -> TransformerSpec:
    """`config.json` of an XLMRobertaModel or an XLMRobertaForSequenceClassification → spec."""
    return kin_from_hf(config, "xlm-roberta", "XLMRoberta")


def to_hf(spec: TransformerSpec) -> dict[str, Any]:
    """Spec → the `config.json` that transformers loads."""
    return kin_to_hf(spec, "xlm-roberta", "XLMRoberta")


HF = Family(
    ("hf", "xlm-roberta"),
    from_hf,
    to_hf,
    HF_WEIGHTS,
    by_names=by_names,
    examples=EXAMPLES,
    with_masked_head=with_masked_head,
)
