"""The olmoe family (https://arxiv.org/abs/2409.02060): Hugging Face's `OlmoeForCausalLM`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.models.families.decoders import (
    ATTENTION,
    IGNORABLE,
    LLAMA_NORMS,
    QK_NORMS,
    TINY,
    decoder_rules,
    size_fields,
    take_sizes,
)
from bedplate.models.families.experts.expert_weights import expert_rules
from bedplate.models.families.experts.fields import TRAINING, take_count
from bedplate.models.families.family import Family
from bedplate.models.families.fields import HF_BOOKKEEPING, Fields
from bedplate.models.families.rope import rope_parameters, take_rope
from bedplate.models.families.weights import WeightMap, renamed
from bedplate.models.specs.transformer import Experts, Rope, TransformerSpec

_ORIGIN = "config.json (olmoe)"
_MLP = "model.layers.{i}.mlp"

WEIGHTS = WeightMap(
    rules=(
        *decoder_rules(*LLAMA_NORMS, *ATTENTION, *QK_NORMS),
        renamed("layers.{i}.feedforward.router.weight", f"{_MLP}.gate.weight"),
        *expert_rules(_MLP),
    ),
    ignorable=IGNORABLE,
)
_TINY = {**TINY, "intermediate_size": 24, "num_experts": 6, "num_experts_per_tok": 2, "eos_token_id": 2}
EXAMPLES = (_TINY, _TINY | {"num_key_value_heads": 6, "norm_topk_prob": True, "attention_bias": True})


def from_hf(config: Mapping[str, Any]) -> TransformerSpec:
    """`config.json` of an OlmoeForCausalLM → spec."""
    fields = Fields(config, _ORIGIN)
    sizes = take_sizes(fields, context=4096)
    fields.only("hidden_act", "silu")
    fields.only("clip_qkv", None)
    part = Experts(
        take_count(fields, "num_experts", "num_local_experts"),
        fields.whole("num_experts_per_tok", 8),
        sizes["feedforward_size"],
        renormalise=fields.flag("norm_topk_prob", False),
    )
    fields.ignore((*HF_BOOKKEEPING, *TRAINING, "attention_dropout"))
    spec = TransformerSpec.from_fields(
        **sizes,
        norm_eps=fields.real("rms_norm_eps", 1e-5),
        rope=take_rope(fields, _ORIGIN, context=sizes["context_length"]),
        attention_bias=fields.flag("attention_bias", False),
        qk_norm="projection",
        experts=part,
    )
    fields.finish()
    return spec


def to_hf(spec: TransformerSpec) -> dict[str, Any]:
    """Spec → the `config.json` that transformers loads."""
    part = spec.experts
    assert part is not None
    return size_fields(spec, "olmoe", "OlmoeForCausalLM") | {
        "rms_norm_eps": spec.norm.eps,
        "hidden_act": "silu",
        "rope_parameters": rope_parameters(spec.position.rope or Rope()),
        "attention_bias": spec.attention.bias,
        "clip_qkv": None,
        "num_experts": part.count,
        "num_experts_per_tok": part.per_token,
        "norm_topk_prob": part.renormalise,
    }


HF = Family(("hf", "olmoe"), from_hf, to_hf, WEIGHTS, (("gguf", "olmoe"),), examples=EXAMPLES)
