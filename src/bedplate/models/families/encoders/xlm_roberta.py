"""The xlm-roberta family (https://arxiv.org/abs/1911.02116): RoBERTa's network with a vocabulary of 100 languages."""

from __future__ import annotations

from bedplate.models.families.encoders.roberta import relative

HF = relative("xlm-roberta", "XLMRoberta")
