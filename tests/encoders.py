"""Tiny random encoders of every family, with and without a classifier, and their conversion to Bedplate's modules."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import transformers

from bedplate.models.build import build
from bedplate.models.checkpoints.conversion import read_parameters
from bedplate.models.families import FAMILIES, Family
from bedplate.models.model import Model

TINY = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "intermediate_size": 80,
    "max_position_embeddings": 70,
    "pad_token_id": 0,
}
BERT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
MODERN = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2, "local_attention": 8}
OTHER_MODERN = {
    **MODERN,
    "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
    "attention_bias": True,
    "mlp_bias": True,
    "norm_bias": True,
    "classifier_pooling": "mean",
    "classifier_bias": True,
    "classifier_activation": "silu",
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 5_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
    },
}


@dataclass(frozen=True)
class Reference:
    """A class of transformers', and what its config says."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)

    def random_model(self, seed: int, dtype: torch.dtype, **changes: Any) -> Any:
        """A random model, its norms and biases random too."""
        torch.manual_seed(seed)
        model_class = getattr(transformers, self.name)
        model = model_class(model_class.config_class(**(TINY | self.config | changes)))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        return model.to(dtype).eval()


ENCODERS = {
    "bert": Reference("BertModel", BERT),
    "bert, three labels": Reference("BertForSequenceClassification", {**BERT, "num_labels": 3}),
    "roberta": Reference("RobertaModel", {**BERT, "type_vocab_size": 1}),
    "roberta, a cross-encoder": Reference("RobertaForSequenceClassification", {**BERT, "num_labels": 1}),
    "xlm-roberta": Reference("XLMRobertaModel", {**BERT, "pad_token_id": 4}),
    "xlm-roberta, two labels": Reference("XLMRobertaForSequenceClassification", {**BERT, "type_vocab_size": 1}),
    "modernbert": Reference("ModernBertModel", MODERN),
    "modernbert, three labels": Reference("ModernBertForSequenceClassification", {**OTHER_MODERN, "num_labels": 3}),
}


def converted(reference: Any, dtype: torch.dtype) -> tuple[Model, Family]:
    """The same weights in Bedplate's module."""
    family = FAMILIES[("hf", reference.config.model_type)]
    state = reference.state_dict()
    config = {**reference.config.to_dict(), "architectures": [type(reference).__name__]}
    spec = family.by_names(family.to_spec(config), tuple(state))
    ours = build(spec, dtype)
    parameters = dict(ours.named_parameters())
    read = dict(read_parameters(family, spec, tuple(state), state.__getitem__, parameters, "reference"))
    ours.load_state_dict(read)
    return ours, family
