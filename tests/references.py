"""Tiny random reference models, and their conversion to Bedplate's modules."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from bedplate.models.build import build
from bedplate.models.families import FAMILIES, Family
from bedplate.models.model import Model

LLAMA_VARIANTS: dict[str, dict[str, Any]] = {
    "tied": {"tie_word_embeddings": True},
    "untied": {"tie_word_embeddings": False},
    "multi_head": {"num_key_value_heads": 6},
    "multi_query": {"num_key_value_heads": 1},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "head_dim": {"head_dim": 16},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 123_456.0}},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 3.0}},
    "llama3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
}
BERT_VARIANTS: dict[str, dict[str, Any]] = {
    "gelu": {},
    "gelu_tanh": {"hidden_act": "gelu_new"},
    "relu": {"hidden_act": "relu"},
    "one_type": {"type_vocab_size": 1},
}


def reference_llama(seed: int, **changes: Any) -> transformers.LlamaForCausalLM:
    """A random LlamaForCausalLM. Norm weights and biases are random too: at their defaults they would prove nothing."""
    torch.manual_seed(seed)
    config: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "intermediate_size": 80,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
    }
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**(config | changes)))
    return _randomise(model)


def reference_bert(seed: int, pooler: bool = True, **changes: Any) -> transformers.BertModel:
    torch.manual_seed(seed)
    config: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "intermediate_size": 80,
        "max_position_embeddings": 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return _randomise(transformers.BertModel(transformers.BertConfig(**(config | changes)), add_pooling_layer=pooler))


def _randomise(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def converted(reference: Any, dtype: torch.dtype) -> tuple[Model, Family]:
    """The same weights in Bedplate's module."""
    family = FAMILIES[("hf", reference.config.model_type)]
    spec = family.to_spec(reference.config.to_dict())
    if reference.config.model_type == "bert":
        spec = spec.with_(pooler=reference.pooler is not None)
    model = build(spec, dtype)
    state = {family.weights.from_external(name): value for name, value in reference.state_dict().items()}
    if spec.kind == "decoder" and spec.tied_head:
        del state["lm_head.weight"]
    model.load_state_dict(state)  # strict: every name must have its place
    return model, family
